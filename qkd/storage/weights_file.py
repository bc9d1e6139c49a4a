"""Files of float weights as training scripts write them: every group of tensors by name in it; nothing is executed.

A training script stores more than weights: its arguments, its metrics, the state of its optimizer. Objects of classes that
torch does not call safe are read as empty placeholders, so that they neither run nor stand in the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qkd.errors import NetworkError

DEPTH = 4  # how far mappings are searched for weights: {"checkpoint": {"state": {"model": ...}}}


@dataclass(frozen=True)
class StoredTensors:
    """``path``: the keys under which a file holds the ``tensors``, none where they are all it holds."""

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]


class _Placeholder:
    """Stands for an object of a class that is not loaded; takes whatever a file says of it and keeps nothing."""

    stands_for = ""

    def __new__(cls, *arguments: Any, **more: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **more: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


def read_tensors(path: Path) -> list[StoredTensors]:
    """Every group of tensors in a file of safetensors or of torch.save, on the CPU, from the outermost to the innermost.

    Raises NetworkError for a file that is not there or not readable, and one that holds no tensors by name: a whole
    pickled network is not a state dict, and unpickling it would execute the file.
    """
    if not path.is_file():
        raise NetworkError(
            f"start_from: {path}: no such file; possible are `float`, `scratch` or a checkpoint",
            key="start_from.no-file",
        )
    try:
        content = load_file(path) if _is_safetensors(path) else _load_torch(path)
    except Exception as error:
        raise NetworkError(
            f"start_from: {path}: not readable: {_reason(error)}", key="start_from.not-readable"
        ) from error
    found = list(_groups(content, ()))
    if not found:
        whole = dict.fromkeys(_placeholders(content))
        classes = f": {', '.join(whole)}" if whole else ""
        pickled = f"pickled objects{classes}; unpickling executes code" if whole else "no tensors by name"
        raise NetworkError(
            f"start_from: {path}: holds {pickled}; write the weights alone: torch.save(network.state_dict(), path)",
            key="start_from.no-state-dict",
        )
    return found


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:  # a length in 8 bytes, then a header in JSON
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _load_torch(path: Path) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, AttributeError):  # the format of before torch 1.6, or TorchScript; or torch 2.5
        names = []
    with torch.serialization.safe_globals([_placeholder(name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _placeholder(name: str) -> type[_Placeholder]:
    """A class that torch takes for the one of that name (``argparse.Namespace``)."""
    module, _, last = name.rpartition(".")
    return type(last, (_Placeholder,), {"__module__": module, "__qualname__": last, "stands_for": name})


def _reason(error: Exception) -> str:
    """The reason in one line; torch's advice to unpickle after all is left out."""
    text = str(error)
    if needs := re.search(r"GLOBAL (\S+)", text):
        return f"it needs {needs[1]}, and unpickling that executes code; write the weights alone: network.state_dict()"
    if "TorchScript" in text:
        return (
            "it is a TorchScript archive; write its weights alone: torch.save(torch.jit.load(path).state_dict(), ...)"
        )
    return re.sub(r"\x1b\[\d*m", "", next(iter(text.splitlines()), type(error).__name__))


def _groups(content: object, path: tuple[str, ...]) -> Iterator[StoredTensors]:
    if not isinstance(content, Mapping) or len(path) > DEPTH:
        return
    tensors = {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, Tensor)}
    if tensors:
        yield StoredTensors(path, tensors)
    for name, inner in content.items():
        if isinstance(name, str):
            yield from _groups(inner, (*path, name))


def _placeholders(content: object) -> Iterator[str]:
    """The classes of the objects that were not loaded, on the outside of a file and in its mappings."""
    if isinstance(content, _Placeholder):
        yield content.stands_for
    for inner in content.values() if isinstance(content, Mapping) else ():
        yield from _placeholders(inner)
