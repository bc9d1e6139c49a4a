"""Draws the terms of a diagram as arrows: no two lie on each other, and no label covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from qkd.distill.taps import Tap
from qkd.report.diagram_layout import JOIN, LANE, Layout
from qkd.report.diagram_model import Link
from qkd.report.svg import element, line, path, text

ASIDE = 16.0  # between arrows of one column
LETTER = 5.9  # about the width of a letter of a label
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Board:
    """The space that is occupied: vertical stretches (x, top, bottom), and boxes of labels."""

    width: float
    stretches: list[tuple[float, float, float]] = field(default_factory=list)
    labels: list[Box] = field(default_factory=list)

    def take(self, x: float, one: float, other: float) -> None:
        self.stretches.append((x, min(one, other), max(one, other)))

    def beside(self, x: float, one: float, other: float, *, aside: bool) -> float:
        """How far an arrow has to move aside to lie on no other, and occupies that place. With ``aside``: at least one step."""
        low, high = min(one, other), max(one, other)
        for shift in (*(() if aside else (0.0,)), -ASIDE, ASIDE, -2 * ASIDE, 2 * ASIDE, -3 * ASIDE):
            if not any(abs(at - x - shift) < 8 and low < end and start < high for at, start, end in self.stretches):
                break
        self.take(x + shift, low, high)
        return shift

    def write(self, words: Sequence[str], x: float, ys: Sequence[float], *, left: bool) -> Iterator[Markup]:
        """Lines of text beside an arrow, at the first free one of some heights, on the left or right as asked if free."""
        wide = LETTER * max(map(len, words))
        sides = [x - 7 - wide, x + 7] if left else [x + 7, x - 7 - wide]
        places = [(at, y - 9, at + wide, y + 11 * len(words) - 9) for y in ys for at in sides]
        places = [place for place in places if place[0] > 4 and place[2] < self.width - 4] or places
        box = next((place for place in places if not any(meet(place, taken) for taken in self.labels)), places[0])
        self.labels.append(box)
        at, anchor = (box[2], "end") if box[0] < x else (box[0], "start")
        for i, word in enumerate(words):
            yield text(at, box[1] + 9 + 11 * i, word, anchor=anchor, class_="small halo")


def meet(one: Box, other: Box) -> bool:
    """Whether two boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def links(layout: Layout) -> list[Markup]:
    """All terms of a diagram: those on labels, those with a joint target, then single arrows."""
    board = Board(layout.width)
    for bus in layout.diagram.buses:
        ys = [layout.node(Tap(part, bus.stage))[1] for part in bus.members]
        board.take(layout.columns[bus.stage], min(ys), layout.exchange_y)
    drawn = [*_from_labels(layout, board)]
    joined = [link for link in layout.diagram.links if link.joined]
    for sources, target in dict.fromkeys((link.sources, link.target) for link in joined):
        drawn += _join([link for link in joined if (link.sources, link.target) == (sources, target)], layout, board)
    single = [link for link in layout.diagram.links if link.sources and not link.joined]
    answered: set[tuple[str, str, Tap, tuple[Tap, ...]]] = set()
    for link in sorted(single, key=lambda link: abs(layout.row(link.sources[0].part) - layout.row(link.pupil.part))):
        own = (link.kind, link.weight, link.pupil, link.sources)
        if own not in answered:
            mutual = any(link.mirrored == (each.kind, each.weight, each.pupil, each.sources) for each in single)
            drawn += _arrow(link, layout, board, mutual=mutual)
            answered.add(link.mirrored)
    return drawn


def _from_labels(layout: Layout, board: Board) -> Iterator[Markup]:
    """Terms without a source, from the labels or from the pupil itself: arrows from the right."""
    pupils: dict[tuple[float, float], list[Link]] = {}
    for link in layout.diagram.links:
        if not link.sources:
            pupils.setdefault(layout.node(link.pupil), []).append(link)
    for (x, y), found in pupils.items():
        words = [f"{'labels' if link.kind == 'label' else link.kind} ×{link.weight}" for link in found]
        yield line(x + 28, y, x + 9, y, "link arrow")
        yield from board.write(words, x + 24, [y + 3.5], left=False)


def _arrow(link: Link, layout: Layout, board: Board, *, mutual: bool) -> Iterator[Markup]:
    """An arrow from a source to a pupil, or both ways; its label is at the end of the arrow."""
    (x1, y1), (x2, y2) = layout.node(link.sources[0]), layout.node(link.pupil)
    down = y2 > y1
    start, end = y1 + (8 if down else -8), y2 - (11 if down else -11)
    straight = x1 == x2
    crossing = straight and layout.crosses(link.sources[0], y2, [link.pupil.part])
    shift = board.beside(x2, start, end, aside=crossing) if straight else 0.0
    yield path([(x1 + shift, start), (x2 + shift, end)], "link both" if mutual else "link arrow")
    yield from _label(link, layout, board, x2 + shift, down=down, left=shift < 0)


def _label(link: Link, layout: Layout, board: Board, x: float, *, down: bool, left: bool = False) -> Iterator[Markup]:
    """Kind and weight of a term in the gap beside the lane of its pupil, or a little further away."""
    top = layout.tops[link.pupil.part]
    near, step = (top - 18, -24) if down else (top + LANE + 12, 24)
    yield from board.write([link.kind, f"×{link.weight}"], x, [near + step * i for i in range(4)], left=left)


def _join(pair: Sequence[Link], layout: Layout, board: Board) -> Iterator[Markup]:
    """Sources that form one target, and the pupils that learn from it."""
    sources, name = pair[0].sources, pair[0].target
    pupils = [link.pupil for link in pair]
    taps = list(dict.fromkeys([*sources, *pupils]))
    lowest = max((tap.part for tap in taps), key=layout.row)
    x, y = layout.node(taps[0])[0], layout.tops[lowest] - JOIN / 2
    wide = 7.0 * len(name) + 14
    board.labels.append((x - wide / 2, y - 9, x + wide / 2, y + 9))
    board.take(x, *_ends([layout.node(tap)[1] for tap in taps], y))
    for tap in taps:
        yield _spoke(tap, (x, y), layout, into=tap in sources, back=tap in pupils, but=[each.part for each in taps])
    for link in pair:
        at_x, at_y = layout.node(link.pupil)
        yield from _label(link, layout, board, at_x, down=at_y > y)
    yield element("rect", x=x - wide / 2, y=y - 9, width=wide, height=18, rx=9, class_="target")
    yield text(x, y + 3.8, name, anchor="middle", class_="small strong")


def _ends(ys: Sequence[float], y: float) -> tuple[float, float]:
    return min(*ys, y), max(*ys, y)


def _spoke(tap: Tap, hub: tuple[float, float], layout: Layout, *, into: bool, back: bool, but: Sequence[str]) -> Markup:
    """Between a tap and the target: an arrow into it, back, or both ways; it goes around nodes in between."""
    (x, y), (hub_x, hub_y) = layout.node(tap), hub
    toward = 1 if hub_y > y else -1
    ends = [(x, y + 10 * toward), (hub_x, hub_y - 10 * toward)]
    if layout.crosses(tap, hub_y, but):
        around = [(x + ASIDE, ends[0][1] + 6 * toward), (hub_x + ASIDE, ends[1][1] - 6 * toward)]
        ends = [ends[0], *around, ends[1]]
    if not into:
        ends.reverse()
    return path(ends, "link both" if into and back else "link arrow")
