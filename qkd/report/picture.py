"""Picture: a scene drawn from top to bottom, narrow enough for a phone: one lane per participant, stages from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qkd.report.scene import Bus, Lane, Link, Scene
from qkd.report.svg import element, line, path, picture, text
from qkd.taps import LOGITS, Tap

HEAD, LANE, TRACK = 20.0, 54.0, 27.0  # heading of the columns; height of a lane; its track below its top
GAP, ROOM, JOIN = 12.0, 38.0, 84.0  # between lanes: plain, with the label of an arrow, with a target
NAMES, FIRST, PITCH, LABELS = 112.0, 148.0, 64.0, 94.0  # where tracks begin; first column, distance of columns, what is behind
SIDE = 13.0


@dataclass(frozen=True)
class Layout:
    """Where things stand."""

    scene: Scene
    columns: dict[str, float]
    tops: dict[str, float]
    width: float
    height: float

    def node(self, tap: Tap) -> tuple[float, float]:
        """The centre of a tap. A head whose output is features stands behind the layer it reads."""
        lane = next(lane for lane in self.scene.lanes if lane.part == tap.part)
        y = self.tops[tap.part] + TRACK
        if lane.kind == "head" and not self._classifies(lane):
            return max(self.columns[read.stage] for read in lane.reads) + 22, y
        return self.columns[tap.stage], y

    def _classifies(self, lane: Lane) -> bool:
        """Whether a head's output is compared with logits or labels, not with features."""
        beside = [tap for link in self.scene.links for tap in (link.pupil, *link.sources) if lane.part in _parts(link)]
        return all(tap.stage == LOGITS for tap in beside)

    def row(self, part: str) -> int:
        return [lane.part for lane in self.scene.lanes].index(part)

    def crosses(self, tap: Tap, end: float, but: Sequence[str]) -> bool:
        """Whether a straight line from a tap down or up to ``end`` runs through the node of somebody else."""
        start = self.tops[tap.part] + TRACK
        low, high = min(start, end), max(start, end)
        others = [lane for lane in self.scene.lanes if lane.part not in but and lane.part != tap.part]
        return any(low < self.tops[lane.part] + TRACK < high and tap.stage in lane.stages for lane in others)


def _parts(link: Link) -> set[str]:
    return {link.pupil.part, *(tap.part for tap in link.sources)}


def draw(scene: Scene) -> Markup:
    """The scene as SVG."""
    layout = lay_out(scene)
    parts = [text(x, 12, name, anchor="middle", class_="tick") for name, x in layout.columns.items()]
    parts += [_box(lane, layout) for lane in scene.lanes]
    parts += [drawn for bus in scene.buses for drawn in _bus(bus, layout)]
    parts += [drawn for lane in scene.lanes for drawn in _feeds(lane, layout)]
    parts += _links(layout)
    parts += [drawn for lane in scene.lanes for drawn in _nodes(lane, layout)]
    return picture(layout.width, layout.height, scene.label, *parts, class_="chart plan")


def lay_out(scene: Scene) -> Layout:
    """Places for everything; the gaps between lanes are as high as what is written in them."""
    shown = max(3, len(scene.columns))
    width = FIRST + PITCH * (shown - 1) + LABELS
    pitch = PITCH * (shown - 1) / max(1, len(scene.columns) - 1)
    columns = {name: width - LABELS - pitch * i for i, name in enumerate(reversed(scene.columns))}
    gaps = _gaps(scene)
    tops, y = {}, HEAD
    for i, lane in enumerate(scene.lanes):
        y += gaps[i]
        tops[lane.part] = y
        y += LANE
    return Layout(scene, columns, tops, width, y + gaps[-1] + 2)


def _gaps(scene: Scene) -> list[float]:
    """The height of the gap above each lane, and of the one below the last."""
    rows = {lane.part: i for i, lane in enumerate(scene.lanes)}
    gaps = [0.0, *([GAP] * (len(rows) - 1)), 0.0]
    for link in scene.links:
        if not link.sources:
            continue
        at = max(rows[part] for part in _parts(link)) if link.joined else None
        if at is not None:
            gaps[at] = max(gaps[at], JOIN)
        above = rows[link.pupil.part] > (min(rows[tap.part] for tap in link.sources)) if at is None else rows[link.pupil.part] >= at
        beside = rows[link.pupil.part] + (0 if above else 1)
        gaps[beside] = max(gaps[beside], ROOM)
    return gaps


def _box(lane: Lane, layout: Layout) -> Markup:
    top = layout.tops[lane.part]
    frozen = " frozen" if lane.state.startswith("frozen") else ""
    product = " product" if lane.product else ""
    place = {"x": 4, "y": top, "width": layout.width - 8, "height": LANE, "rx": 7}
    box = element("rect", **place, class_=f"lane {lane.kind}{frozen}{product}")
    words = [(lane.part, "strong"), (lane.about, "small"), (lane.state, "small quiet")]
    lines = [text(12, top + 17 + 14 * i, word, class_=class_) for i, (word, class_) in enumerate(words)]
    badge = [text(layout.width - 11, top + LANE - 7, "exported", anchor="end", class_="small badge")] if lane.product else []
    return element("g", box, *lines, *badge)


def _nodes(lane: Lane, layout: Layout) -> Iterator[Markup]:
    """The track of a lane and what happens on it."""
    y = layout.tops[lane.part] + TRACK
    if lane.kind == "network":
        yield line(NAMES, y, layout.columns[LOGITS], y, "track")
    for stage in lane.stages:
        x, _ = layout.node(Tap(lane.part, stage))
        yield element("circle", cx=x, cy=y, r=8 if lane.kind == "exchange" else 5, class_=f"node {lane.kind}")
        if lane.kind == "exchange":
            yield line(x - 4.5, y, x + 4.5, y, "plus")
            yield line(x, y - 4.5, x, y + 4.5, "plus")


def _feeds(lane: Lane, layout: Layout) -> Iterator[Markup]:
    """From the taps a head reads to the head."""
    for tap in lane.reads:
        x, y = layout.node(tap)
        out, own = layout.node(Tap(lane.part))
        yield path([(x, y), (x, own), (out, own)], "track")


def _bus(bus: Bus, layout: Layout) -> Iterator[Markup]:
    """Features go down into the exchange; what comes back goes up beside them."""
    x = layout.columns[bus.stage]
    end = next(layout.tops[lane.part] for lane in layout.scene.lanes if lane.kind == "exchange") + TRACK
    ys = [layout.tops[part] + TRACK for part in bus.members]
    yield line(x, min(ys), x, end - 9, "bus to")
    for part, y in zip(bus.members, ys, strict=True):
        if bus.back:
            yield line(x + SIDE, end, x + SIDE, y + 3, "back to")
        if part in bus.weights:
            yield text(x + SIDE + 4, y - 6, f"{100 * bus.weights[part]:.1f} %", class_="small halo")
    if bus.back:
        yield line(x + 8, end, x + SIDE, end, "back")


def _links(layout: Layout) -> Iterator[Markup]:
    """Arrows of terms; those in one column and gap stand side by side."""
    taken: dict[tuple[float, bool, str], int] = {}
    drawn: set[tuple[tuple[Tap, ...], str]] = set()
    beside: dict[Tap, int] = {}
    for link in layout.scene.links:
        if not link.sources:
            yield from _alone(link, layout, beside.setdefault(link.pupil, 0))
            beside[link.pupil] += 1
        elif link.joined:
            key = (link.sources, link.target)
            if key not in drawn:
                yield from _join([each for each in layout.scene.links if (each.sources, each.target) == key], layout)
            drawn.add(key)
        else:
            down = layout.row(link.sources[0].part) < layout.row(link.pupil.part)
            place = (layout.node(link.pupil)[0], down, link.pupil.part)
            yield from _arrow(link, layout, taken.get(place, 0))
            taken[place] = taken.get(place, 0) + 1


def _alone(link: Link, layout: Layout, number: int) -> Iterator[Markup]:
    """A term without a source: what comes from the labels, from the right."""
    x, y = layout.node(link.pupil)
    what = "labels" if link.kind == "label" else link.kind
    if number == 0:
        yield line(x + 28, y, x + 9, y, "link arrow")
    yield text(x + 31, y + 3.5 + 11 * number, f"{what} ×{link.weight}", class_="small halo")


def _arrow(link: Link, layout: Layout, number: int) -> Iterator[Markup]:
    """From one source to one pupil; the label stands beside the pupil's lane."""
    (x1, y1), (x2, y2) = layout.node(link.sources[0]), layout.node(link.pupil)
    shift = 0.0 if number == 0 else SIDE * 1.6 * (-1) ** number * ((number + 1) // 2)
    if number == 0 and x1 == x2 and layout.crosses(link.sources[0], y2, [link.pupil.part]):
        shift = SIDE + 8
    down = y2 > y1
    margin = 11.0 if down else -11.0
    yield path([(x1 + shift, y1 + margin * 0.7), (x2 + shift, y2 - margin)], "link arrow")
    edge = layout.tops[link.pupil.part] - 22 if down else layout.tops[link.pupil.part] + LANE + 12
    yield from _label(link, x2 + shift, edge, left=shift < 0)


def _label(link: Link, x: float, y: float, *, left: bool = False) -> Iterator[Markup]:
    at, anchor = (x - 7, "end") if left else (x + 7, "start")
    yield text(at, y, link.kind, anchor=anchor, class_="small halo")
    yield text(at, y + 11, f"×{link.weight}", anchor=anchor, class_="small halo")


def _join(links: Sequence[Link], layout: Layout) -> Iterator[Markup]:
    """Sources that make one target together, and everybody who learns from it."""
    sources, name = links[0].sources, links[0].target
    pupils = [link.pupil for link in links]
    taps = list(dict.fromkeys([*sources, *pupils]))
    lowest = max((tap.part for tap in taps), key=layout.row)
    x = layout.node(taps[0])[0]
    y = layout.tops[lowest] - JOIN / 2
    for tap in taps:
        at_x, at_y = layout.node(tap)
        parts = [each.part for each in taps]
        aside = SIDE if layout.crosses(tap, y, parts) else 0.0
        toward = 1 if y > at_y else -1
        ends = [(at_x, at_y + 10 * toward), (x, y - 10 * toward)]
        points = [ends[0], (at_x + aside, ends[0][1] + 4 * toward), (x + aside, ends[1][1] - 4 * toward), ends[1]]
        heads = (" into" if tap in sources else "") + (" arrow" if tap in pupils and tap not in sources else "")
        both = " both" if tap in sources and tap in pupils else ""
        yield path(points if aside else ends, f"link{both or heads}")
    for link in links:
        down = layout.node(link.pupil)[1] > y
        edge = layout.tops[link.pupil.part] - 20 if down else layout.tops[link.pupil.part] + LANE + 13
        yield from _label(link, layout.node(link.pupil)[0], edge)
    wide = 7.0 * len(name) + 14
    yield element("rect", x=x - wide / 2, y=y - 9, width=wide, height=18, rx=9, class_="target")
    yield text(x, y + 3.8, name, anchor="middle", class_="small strong")


def arrowheads() -> Markup:
    """The heads that lines refer to by their class, once for a whole page."""
    shapes = (element("path", d="M0 0L8 4L0 8z", class_=name) for name in ("link-head", "bus-head"))
    size = {"viewBox": "0 0 8 8", "refX": 7, "refY": 4, "markerWidth": 8, "markerHeight": 8}
    more = {"orient": "auto-start-reverse", "markerUnits": "userSpaceOnUse"}
    ids = ("link-head", "bus-head")
    heads = (element("marker", shape, id=name, **size, **more) for shape, name in zip(shapes, ids, strict=True))
    return element("svg", element("defs", *heads), width=0, height=0, aria_hidden="true", class_="defs")
