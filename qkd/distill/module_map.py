"""A mapping of modules that takes any name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleMap(nn.Module, Generic[M]):
    """A read-only mapping of registered modules.

    Unlike ModuleDict it takes any name: one that torch.nn.Module has as an attribute (``float``) gets a trailing
    underscore where torch sees it, in the state dict.
    """

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        self.registered = {name: f"{name}_" if hasattr(nn.Module, name) else name for name in modules}
        for name, module in modules.items():
            self.add_module(self.registered[name], module)

    def __getitem__(self, name: str) -> M:
        return cast(M, self._modules[self.registered[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.registered)

    def __contains__(self, name: object) -> bool:
        return name in self.registered

    def __len__(self) -> int:
        return len(self.registered)

    def get(self, name: str) -> M | None:
        return self[name] if name in self.registered else None

    def items(self) -> list[tuple[str, M]]:
        return [(name, self[name]) for name in self]

    def values(self) -> list[M]:
        return [self[name] for name in self]
