"""What tests of figures share: drawing, and reading what was drawn."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def draw(figure: Figure) -> Figure:
    figure.canvas.draw()
    return figure
