"""Computes the positions of the lanes, columns and taps of a diagram, in units of its SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from qkd.distill.taps import LOGITS, Tap
from qkd.report.diagram_model import Diagram, Lane, Link

HEAD, LANE, TRACK = 20.0, 54.0, 27.0  # heading of the columns; height of a lane; its track below its top
GAP, ROOM, JOIN = 12.0, 38.0, 84.0  # gaps between lanes: empty, with the label of an arrow, with a joint target
LINES = 24.0  # height of a further label
NAMES, FIRST, PITCH, LABELS = (
    112.0,
    146.0,
    64.0,
    104.0,
)  # where tracks begin; first column; distance of columns; space for labels on the right


@dataclass(frozen=True)
class Layout:
    """The positions of a diagram: x of each column, top of each lane, and the size of the image."""

    diagram: Diagram
    columns: dict[str, float]
    tops: dict[str, float]
    width: float
    height: float

    def node(self, tap: Tap) -> tuple[float, float]:
        """The centre of a tap; a tap of no column is in that of the logits.

        A head whose output is features is to the right of the layer it reads.
        """
        lane = next(lane for lane in self.diagram.lanes if lane.part == tap.part)
        y = self.tops[tap.part] + TRACK
        if lane.kind == "head" and not self._classifies(lane):
            return max(self.node(read)[0] for read in lane.reads) + 22, y
        return self.columns.get(tap.stage, self.columns[LOGITS]), y

    def _classifies(self, lane: Lane) -> bool:
        """Whether a head's output is compared with logits or labels, not with features."""
        links = [link for link in self.diagram.links if lane.part in parts_of(link)]
        beside = [tap for link in links for tap in (link.pupil, *link.sources) if tap.part != lane.part]
        features = any(tap.stage in self.columns and tap.stage != LOGITS for tap in beside)
        return lane.product or not (features or self._meets_features(lane, beside))

    def _meets_features(self, lane: Lane, beside: Collection[Tap]) -> bool:
        """Whether a head is compared with heads that read features only, and none of them learns from labels."""
        heads = {each.part: each for each in self.diagram.lanes if each.kind == "head"}
        others = [heads[tap.part] for tap in beside if tap.part in heads]
        labelled = {link.pupil.part for link in self.diagram.links if not link.sources}
        return bool(others) and not any(each.part in labelled for each in (lane, *others))

    @property
    def exchange_y(self) -> float:
        """The y of the exchange."""
        return next(self.tops[lane.part] for lane in self.diagram.lanes if lane.kind == "exchange") + TRACK

    def row(self, part: str) -> int:
        return [lane.part for lane in self.diagram.lanes].index(part)

    def crosses(self, tap: Tap, end: float, but: Collection[str]) -> bool:
        """Whether a vertical line from a tap to ``end`` crosses the node of another part; ``but``: parts to ignore."""
        x, start = self.node(tap)
        low, high = min(start, end), max(start, end)
        others = [lane for lane in self.diagram.lanes if lane.part not in (*but, tap.part)]
        nodes = [self.node(Tap(lane.part, stage)) for lane in others for stage in lane.stages]
        return any(abs(at_x - x) < 1 and low < at_y < high for at_x, at_y in nodes)


def parts_of(link: Link) -> set[str]:
    """The parts of a link."""
    return {link.pupil.part, *(tap.part for tap in link.sources)}


def lay_out(diagram: Diagram) -> Layout:
    """The layout of a diagram; gaps between lanes are as high as the labels in them."""
    shown = max(3, len(diagram.columns))
    width = FIRST + PITCH * (shown - 1) + LABELS
    pitch = PITCH * (shown - 1) / max(1, len(diagram.columns) - 1)
    columns = {name: width - LABELS - pitch * i for i, name in enumerate(reversed(diagram.columns))}
    gaps = _gaps(diagram)
    tops, y = {}, HEAD
    for i, lane in enumerate(diagram.lanes):
        y += gaps[i]
        tops[lane.part] = y
        y += LANE
    return Layout(diagram, columns, tops, width, y + gaps[-1] + 2)


def _gaps(diagram: Diagram) -> list[float]:
    """The height of the gap above each lane, and of the one below the last."""
    rows = {lane.part: i for i, lane in enumerate(diagram.lanes)}
    gaps = [0.0, *([GAP] * (len(rows) - 1)), 0.0]
    labels: Counter[tuple[int, str]] = Counter()
    for link in diagram.links:
        if not link.sources:
            continue
        pupil = rows[link.pupil.part]
        target = max(rows[part] for part in parts_of(link)) - 0.5 if link.joined else rows[link.sources[0].part]
        if link.joined:
            gaps[round(target + 0.5)] = JOIN
        beside = pupil if pupil > target else pupil + 1
        labels[beside, link.pupil.stage] += 1
        room = ROOM + LINES * ((labels[beside, link.pupil.stage] - 1) // 2)
        gaps[beside] = max(gaps[beside], room)
    return gaps
