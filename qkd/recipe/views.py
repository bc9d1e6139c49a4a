"""Checks of the networks of a recipe that are views of another one, which need the other one's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qkd.errors import nearest
from qkd.recipe.models import STUDENT, NetworkEntry, ViewEntry
from qkd.recipe.source import Source


def views_in(teachers: Any) -> dict[str, str]:
    """Names of the views among the teachers as a recipe writes them, and of the networks they see."""
    entries = teachers.items() if isinstance(teachers, dict) else ()
    return {name: str(each["of"]) for name, each in entries if isinstance(each, dict) and "of" in each}


def check_views(
    source: Source,
    student: NetworkEntry | None,
    teachers: Mapping[str, NetworkEntry | ViewEntry | None],
    owners: Sequence[str],
) -> None:
    """Report views of no network, of another view, and such as do not fit the network they see.

    ``owners``: the names of the networks that are no views, also of those whose entries have mistakes.
    """
    entries = {STUDENT: student, **teachers}
    for name, view in teachers.items():
        if not isinstance(view, ViewEntry):
            continue
        owner = entries.get(view.of)
        if isinstance(owner, ViewEntry):
            message = f"{view.of} is a view itself: name the network whose parameters it has, {owner.of}"
            source.report(("teachers", name, "of"), "a view of itself" if view.of == name else message)
        elif view.of not in owners:
            known = f"{nearest(view.of, owners)}; there are {', '.join(owners)}"
            source.report(("teachers", name, "of"), f"no network {view.of!r}{known}")
        elif owner is not None:
            _check_fit(source, name, view, owner.quantize)


def _check_fit(source: Source, name: str, view: ViewEntry, scheme: Any) -> None:
    key = ("teachers", name)
    if view.activations is not None and scheme is None:
        source.report((*key, "activations"), f"{view.of} is a float network, whose activations have no bits to change")
    elif view.activations is not None and view.activations <= scheme.activations:
        bits = scheme.activations
        source.report(
            (*key, "activations"), f"must be above the {bits} bits that {view.of} has, got {view.activations}"
        )
    if view.dropout and scheme is None:
        source.report(
            (*key, "dropout"), f"{view.of} is a float network, which has no quantized activations to drop from"
        )
    if view.average is not None and scheme is not None and scheme.progressive:
        message = f"no average over the bits of {view.of}, which go down during the run; leave progressive out"
        source.report((*key, "average"), message)
