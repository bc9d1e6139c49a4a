"""Heads: extra outputs fed by taps, and the heads that several methods use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qkd.distill.adapters import shape_text
from qkd.distill.module_map import ModuleMap
from qkd.distill.stages import Staged
from qkd.distill.taps import Outputs, Tap
from qkd.errors import PlanError

PROJECTED = "projected"  # the stage under which a projector's output is recorded


class Head(nn.Module):
    """A part without a backbone: reads taps, joins them along the channels, runs ``body``, records ``Tap(name)``.

    It may read heads that stand before it in the plan. With ``via=Tap(owner, stage)`` the body is a projector: its
    output is recorded as ``Tap(name, "projected")`` and goes on through the owner's stage (a borrowed classifier), which
    belongs to its owner and not to the head. With ``separate_inputs`` the body gets the tensors one by one and joins them
    itself. With ``grid`` the result is rounded by the activation quantizer that ends that stage, with ``interval`` given in
    shares of its interval, 0..1. ``borrowed`` is the borrowed
    stage on the product's grid, where its owner is float; it shares the owner's weights. ``about`` describes the head in
    reports.
    """

    def __init__(
        self,
        name: str,
        reads: Sequence[Tap],
        body: nn.Module,
        *,
        via: Tap | None = None,
        about: str = "",
        separate_inputs: bool = False,
        grid: Tap | None = None,
        interval: Tap | None = None,
    ) -> None:
        super().__init__()
        self.name, self.reads, self.body, self.via, self.about = name, tuple(reads), body, via, about
        self.separate_inputs, self.grid, self.interval = separate_inputs, grid, interval
        self.borrowed: nn.Module | None = None

    @property
    def parts(self) -> set[str]:
        """The networks and heads that must run for this head."""
        return {tap.part for tap in self.reads} | ({self.via.part} if self.via else set())

    @property
    def trainable(self) -> bool:
        """Whether its body has parameters that can be trained."""
        return any(parameter.requires_grad for parameter in self.body.parameters())

    def forward(self, outputs: Outputs, networks: ModuleMap[Staged]) -> Outputs:
        read = [outputs[tap] for tap in self.reads]
        x = self.body(*read) if self.separate_inputs or len(read) == 1 else self.body(torch.cat(read, 1))
        if self.grid is not None:
            x = networks[self.grid.part].rounded(self.grid.stage, x)
        if self.interval is not None:
            x = networks[self.interval.part].in_interval(self.interval.stage, x)
        if self.via is None:
            return {Tap(self.name): x}
        return {Tap(self.name, PROJECTED): x, Tap(self.name): self._classify(x, networks)}

    def _classify(self, x: Tensor, networks: ModuleMap[Staged]) -> Tensor:
        assert self.via is not None
        if self.borrowed is not None:
            logits: Tensor = self.borrowed(x)
            return logits
        return networks[self.via.part].advance(self.via.stage, (x,))[0]


def classifier(channels: int, classes: int) -> nn.Module:
    """Global average pooling and a linear layer: (B, C, H, W) -> (B, classes)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mean_of_logits(name: str, parts: Sequence[str], classes: int) -> Head:
    """The mean of the logits of several parts: (B, classes) each -> (B, classes).

    A linear layer with the fixed weights 1/n over the joined logits, so that it is exported as one integer layer.
    """
    body = nn.Linear(len(parts) * classes, classes, bias=False)
    with torch.no_grad():
        body.weight.copy_(torch.eye(classes).repeat(1, len(parts)) / len(parts))
    body.requires_grad_(False)
    return Head(name, [Tap(part) for part in parts], body, about="mean of logits")


def adapt_shapes(
    tap: Tap, source: Tap, shapes: Mapping[Tap, Sequence[int]], *, channels: bool = True
) -> tuple[Tap, Tap, tuple[Head, ...]]:
    """Where to read ``tap`` and ``source`` instead, so that they have one shape, and the heads that makes necessary.

    A learned 1x1 convolution takes the channels of ``tap`` to those of ``source`` (not with ``channels`` off: attention
    needs none); of two sizes the larger map is average-pooled to the smaller. Equal shapes need nothing. Raises PlanError
    where they differ and are not both feature maps.
    """
    (own, theirs), names = (shapes[tap], shapes[source]), (f"{tap.part}.{tap.stage}", f"{source.part}.{source.stage}")
    if tuple(own) == tuple(theirs):
        return tap, source, ()
    if len(own) != 3 or len(theirs) != 3:
        raise PlanError(
            f"match: {names[0]} is {shape_text(own)} and {names[1]} {shape_text(theirs)}: only feature maps (channels, "
            f"height, width) can be adapted to each other; match other layers",
            key="match.shapes-cannot-be-adapted",
        )
    size = min(own[1], theirs[1]), min(own[2], theirs[2])
    convolve = channels and own[0] != theirs[0]
    first = _adapter(tap, source.part, own, size, theirs[0] if convolve else None)
    second = _adapter(source, tap.part, theirs, size, None)
    heads = tuple(head for head in (first, second) if head is not None)
    return Tap(first.name) if first else tap, Tap(second.name) if second else source, heads


def pool_to_smallest(taps: Sequence[Tap], shapes: Mapping[Tap, Sequence[int]]) -> tuple[list[Tap], tuple[Head, ...]]:
    """Where to read feature maps instead, so that all have the size of the smallest, and the heads that makes necessary.

    Raises PlanError where one is no feature map.
    """
    sizes = {tap: tuple(shapes[tap][1:]) for tap in taps}
    if any(len(size) != 2 for size in sizes.values()):
        listed = ", ".join(f"{tap} {shape_text(shapes[tap])}" for tap in taps)
        raise PlanError(
            f"match: only feature maps (channels, height, width) can be joined, found {listed}",
            key="match.not-feature-maps",
        )
    least = min(size[0] for size in sizes.values()), min(size[1] for size in sizes.values())
    heads = {tap: _adapter(tap, f"{least[0]}x{least[1]}", shapes[tap], least, None) for tap in taps}
    found = [head for head in heads.values() if head is not None]
    return [Tap(head.name) if (head := heads[tap]) else tap for tap in taps], tuple(found)


def _adapter(tap: Tap, other: str, shape: Sequence[int], size: tuple[int, int], channels: int | None) -> Head | None:
    layers: list[nn.Module] = []
    if tuple(shape[1:]) != size:
        layers.append(nn.AdaptiveAvgPool2d(size))
    if channels is not None:
        layers.append(nn.Conv2d(shape[0], channels, 1))
    if not layers:
        return None
    words = [f"pooled to {size[0]}x{size[1]}"] * (tuple(shape[1:]) != size)
    words += [f"1x1 convolution {shape[0]} -> {channels}"] * (channels is not None)
    name = f"adapt_{tap.part}_{tap.stage}_to_{other}".replace(".", "_")
    return Head(name, [tap], nn.Sequential(*layers), about=f"adapter, {', '.join(words)}")


def on_grid(source: Tap, grid: Tap, *, in_shares: bool = False) -> Head:
    """``source`` rounded by the activation quantizer that ends the stage ``grid``: both then take the same few values.

    What is left of their distance is what the pupil can change, since half a scale of rounding is no longer in it. A
    stage that ends in no quantizer (a float network) changes nothing. Source: the idea of QFD (Zhu et al. 2023, with the
    teacher's own grid) and SQuaT (2026), by their abstracts and SQuaT's code, which gives both ``in_shares`` of the interval.
    """
    name = f"{source.part}_{source.stage}_on_grid".replace(".", "_")
    return Head(name, [source], nn.Identity(), about="rounded", grid=grid, interval=grid if in_shares else None)


def in_interval(tap: Tap) -> Head:
    """A tensor of a network in shares of the interval of its own quantizer."""
    name = f"{tap.part}_{tap.stage}_in_interval".replace(".", "_")
    return Head(name, [tap], nn.Identity(), about="in shares of its interval", interval=tap)


def trainable(heads: Sequence[Head]) -> list[str]:
    """The names of the heads that have parameters to train."""
    return [head.name for head in heads if head.trainable]
