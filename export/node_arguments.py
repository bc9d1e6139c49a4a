"""The arguments of a node in a traced network, whether it calls a module, a function or a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from qkd.export.converter import Converter


def arguments(converter: Converter, node: fx.Node, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments after the first: of a module its attributes, else what was passed, by position or name.

    ``wanted`` holds names and defaults in the order of the function's signature.
    """
    if node.op == "call_module":
        module = converter.submodule(node)
        return {name: getattr(module, name, default) for name, default in wanted.items()}
    passed = dict(zip(wanted, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k in wanted}
    return {name: _resolved(converter, passed.get(name, default)) for name, default in wanted.items()}


def pair(value: Any) -> list[int]:
    """Height and width of a setting that may be one number for both."""
    height, width = value if isinstance(value, (tuple, list)) else (value, value)
    return [int(height), int(width)]


def _resolved(converter: Converter, value: Any) -> Any:
    return fx.node.map_aggregate(value, converter.value)
