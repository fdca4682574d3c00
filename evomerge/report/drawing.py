"""How all pictures look: colours, sizes, titles, axes; PNG bytes that are equal for equal pictures."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart with any kind of colour vision, and in grey by lightness.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#999999", "#333333"
DPI = 160


def title(figure: Figure, text: str) -> None:
    """Put a title at the left of the whole picture: what was found, in a few words."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)


def legend(axes: Axes, **options: Any) -> None:
    """Put the legend on one line between title and axes, where no curve can run into it."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, borderaxespad=0.3, **options)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that size in inches."""
    # One of its own, with the Agg canvas: pyplot would keep global state and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Leave two spines, a faint grid and quiet ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=GREY, labelcolor=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG."""
    buffer = BytesIO()
    # No date and no version inside: equal runs give equal bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
