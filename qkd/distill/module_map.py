"""A mapping of modules that takes any name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleMap(nn.Module, Generic[M]):
    """A read-only mapping of registered modules.

    Unlike ModuleDict it takes any name: one that torch.nn.Module has as an attribute (``float``) gets a trailing
    underscore where torch sees it, in the state dict. ``borrowed`` are the names of modules whose parameters belong to
    others: they are found by name like the rest, but torch does not see them, so they are in no state dict.
    """

    def __init__(self, modules: Mapping[str, M], borrowed: Collection[str] = ()) -> None:
        super().__init__()
        self.registered = {n: f"{n}_" if hasattr(nn.Module, n) else n for n in modules if n not in borrowed}
        self._names = tuple(modules)
        self._borrowed = {name: modules[name] for name in borrowed}
        for name, known in self.registered.items():
            self.add_module(known, modules[name])

    def __getitem__(self, name: str) -> M:
        return self._borrowed[name] if name in self._borrowed else cast(M, self._modules[self.registered[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: str) -> M | None:
        return self[name] if name in self._names else None

    def items(self) -> list[tuple[str, M]]:
        return [(name, self[name]) for name in self]

    def values(self) -> list[M]:
        return [self[name] for name in self]
