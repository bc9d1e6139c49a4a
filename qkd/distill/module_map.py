"""Members: modules by the names people give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleMap(nn.Module, Generic[M]):
    """A read-only mapping of registered modules.

    Unlike ModuleDict it takes any name: one that torch.nn.Module keeps for itself (``float``) gets a trailing underscore
    where torch sees it, in the state dict.
    """

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        self.inside = {name: f"{name}_" if hasattr(nn.Module, name) else name for name in modules}
        for name, module in modules.items():
            self.add_module(self.inside[name], module)

    def __getitem__(self, name: str) -> M:
        return cast(M, self._modules[self.inside[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.inside)

    def __contains__(self, name: object) -> bool:
        return name in self.inside

    def __len__(self) -> int:
        return len(self.inside)

    def get(self, name: str) -> M | None:
        return cast(M, self._modules[self.inside[name]]) if name in self.inside else None

    def items(self) -> list[tuple[str, M]]:
        return [(name, self[name]) for name in self]

    def values(self) -> list[M]:
        return [self[name] for name in self]
