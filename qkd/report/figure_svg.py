"""A matplotlib figure as SVG for a page: it follows the colours and the font of the page and refers to nothing.

matplotlib is asked for text as text and for the same identifiers every time. What it writes for other programs is then
removed: metadata, its own style sheet, identifiers, references between elements.
"""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
FONT_SIZE = 9.0  # points of a figure
TOKENS = (*(f"c{number}" for number in range(8)), "card", "ink", "muted", "rule")


def _colours() -> dict[str, str]:
    """Name -> ``#rrggbb`` of the colours that the style sheet of pages has in the light scheme."""
    light = (Path(__file__).parent / "style.css").read_text().partition("@media")[0]
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    return {name: found[name] for name in TOKENS}


COLOURS_OF_THE_PAGE = _colours()


def svg_of(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element. ``label`` describes it to readers who cannot see it.

    A colour of ``COLOURS_OF_THE_PAGE`` becomes the variable of the style sheet; black becomes the colour of text.
    """
    from matplotlib import rc_context

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "qkd"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", SVG.strip("{}"))
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314 - written by matplotlib just now
    _inline_references(root)
    for element in root.iter():
        _keep_what_pages_need(element)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label, "class": "chart"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - escaped by ElementTree


def _inline_references(root: ElementTree.Element) -> None:
    """Replace every ``<use>`` by the shape it refers to, and remove definitions, metadata and style sheets."""
    shapes = {element.get("id"): element for element in root.iter(f"{SVG}path")}
    for parent in list(root.iter()):
        for position, child in enumerate(list(parent)):
            if child.tag == f"{SVG}use":
                shape = copy.deepcopy(shapes[child.get(LINK, "").removeprefix("#")])
                shape.set("transform", f"translate({child.get('x', '0')} {child.get('y', '0')})")
                shape.set("style", ";".join(filter(None, (shape.get("style"), child.get("style")))))
                parent[position] = shape
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag.removeprefix(SVG) in ("defs", "metadata", "style")]:
            parent.remove(child)


def _keep_what_pages_need(element: ElementTree.Element) -> None:
    """Remove identifiers and clipping; colours and fonts become those of the page."""
    for name in ("id", "clip-path"):
        element.attrib.pop(name, None)
    style = element.get("style", "")
    if element.tag == f"{SVG}text":
        style = re.sub(r"\bfont(-family)?:[^;]*;?", "", style) + f"; font-size: {FONT_SIZE}px"
        style += "" if "fill" in style else "; fill: var(--ink)"
    for name, colour in COLOURS_OF_THE_PAGE.items():
        style = style.replace(colour, f"var(--{name})")
    if style:
        element.set("style", style.replace("#000000", "var(--ink)"))
