"""Draws who teaches whom as SVG: one lane per participant from top to bottom, stages from left to right."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from qkd.distill.taps import LOGITS, Tap
from qkd.report.diagram_edges import links
from qkd.report.diagram_layout import LANE, NAMES, TRACK, Layout, lay_out
from qkd.report.diagram_model import Bus, Diagram, Lane, shortened
from qkd.report.svg import element, line, path, picture, text

SIDE = 13.0  # between the arrow into the exchange and the one back


def draw(diagram: Diagram) -> Markup:
    """The diagram as SVG, narrow enough for a phone."""
    layout = lay_out(diagram)
    parts = [text(x, 12, name, anchor="middle", class_="tick") for name, x in layout.columns.items()]
    parts += [_box(lane, layout) for lane in diagram.lanes]
    parts += [drawn for bus in diagram.buses for drawn in _bus(bus, layout)]
    parts += [drawn for lane in diagram.lanes for drawn in _feeds(lane, layout)]
    parts += links(layout)
    parts += [drawn for lane in diagram.lanes for drawn in _nodes(lane, layout)]
    legible = f"min-width:{0.88 * layout.width:.0f}px"  # on a narrower screen the diagram scrolls instead of shrinking
    return picture(layout.width, layout.height, diagram.label, *parts, style=legible)


def _box(lane: Lane, layout: Layout) -> Markup:
    top = layout.tops[lane.part]
    frozen = " frozen" if lane.state.startswith("frozen") else ""
    product = " product" if lane.product else ""
    place = {"x": 4, "y": top, "width": layout.width - 8, "height": LANE, "rx": 7}
    box = element("rect", **place, class_=f"lane {lane.kind}{frozen}{product}")
    words = [
        (shortened(lane.part), "strong halo" if lane.kind == "head" else "strong"),
        (lane.about, "small"),
        (lane.state, "small quiet"),
    ]
    lines = [text(12, top + 17 + 14 * i, word, class_=class_) for i, (word, class_) in enumerate(words)]
    place_of_badge = {"x": layout.width - 11, "y": top + LANE - 7, "text_anchor": "end", "class_": "small badge"}
    badge = [element("text", "exported", **place_of_badge)] if lane.product else []
    return element("g", box, *lines, *badge)


def _nodes(lane: Lane, layout: Layout) -> Iterator[Markup]:
    """The track of a lane and its stages."""
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
    """Lines from the taps that a head reads to the head."""
    for tap in lane.reads:
        x, y = layout.node(tap)
        out, own = layout.node(Tap(lane.part))
        yield path([(x, y), (x, own), (out, own)], "track")


def _bus(bus: Bus, layout: Layout) -> Iterator[Markup]:
    """Arrows of features down into the exchange, and of what it writes back beside them."""
    x = layout.columns[bus.stage]
    end = layout.exchange_y
    ys = [layout.tops[part] + TRACK for part in bus.members]
    yield line(x, min(ys), x, end - 9, "bus to")
    for part, y in zip(bus.members, ys, strict=True):
        if bus.back:
            yield line(x + SIDE, end, x + SIDE, y + 3, "back to")
        if part in bus.weights:
            yield text(x + SIDE + 4, y - 6, f"{100 * bus.weights[part]:.1f} %", class_="small halo")
    if bus.back:
        yield line(x + 8, end, x + SIDE, end, "back")


def arrowheads() -> Markup:
    """The arrowheads that the style sheet refers to; needed once per page."""
    shapes = (element("path", d="M0 0L8 4L0 8z", class_=name) for name in ("link-head", "bus-head"))
    size = {"viewBox": "0 0 8 8", "refX": 7, "refY": 4, "markerWidth": 8, "markerHeight": 8}
    more = {"orient": "auto-start-reverse", "markerUnits": "userSpaceOnUse"}
    ids = ("link-head", "bus-head")
    heads = (element("marker", shape, id=name, **size, **more) for shape, name in zip(shapes, ids, strict=True))
    return element("svg", element("defs", *heads), width=0, height=0, aria_hidden="true", class_="defs")
