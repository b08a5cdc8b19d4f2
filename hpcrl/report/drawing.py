"""One look for all figures: matplotlib drawn to inline SVG, text as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2733", "#6b7785", "#e4e8ed"
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#2f6fb2", "#d9822b", "#3d9970", "#8757b5", "#c8453b", "#2a9aa5"
STAGE_COLORS = (BLUE, TEAL, ORANGE, GREEN, PURPLE, RED)
"""Stages in the pipeline's order; repeated after the sixth."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#b8c1cb",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify_threshold": 0.5,
    # Numbers as on a page, whatever the locale of the machine.
    "axes.formatter.use_locale": False,
    "axes.unicode_minus": False,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height in inches of 100 px, in the report's style while the block runs."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), dpi=100, layout="constrained")


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element that can stand inside a page.

    Args:
        name: unique in the page: ids inside the SVG are made from it.
        description: read aloud instead of the picture.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    # The metadata names vocabularies by their addresses; the page has no use for them.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(description)}" ', 1)


def mark_points(values: Sized) -> dict[str, Any]:
    """Keyword arguments of a line: few points are shown as points, for a line through one point is invisible."""
    return {"marker": "o", "markersize": 3.5} if len(values) <= 24 else {}


def plain_numbers(axes: Axes) -> None:
    """Steps on the horizontal axis as 250k or 3M."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def time_scale(seconds: float) -> tuple[float, str]:
    """Unit of a time axis that long: its seconds and its name.

    Example:
        >>> time_scale(1.5), time_scale(45.0), time_scale(4 * 3600.0)
        ((0.001, 'ms'), (1.0, 'seconds'), (3600.0, 'hours'))
    """
    for size, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds > 3 * size:
            return size, name
    return (1.0, "seconds") if seconds > 2.0 else (1e-3, "ms")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
