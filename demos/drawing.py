"""A page on which matrices, texts and arrows are drawn. Sizes and places are inches, from the upper left corner."""

import itertools
from pathlib import Path

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from vitlab.pictures import canvas

WIDTH = 10.0  # of every diagram
INK, FAINT = "#222222", "#8a8a8a"
# Okabe and Ito's colours, which the colour-blind tell apart
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"


class Drawing:
    """A white page, WIDTH wide, with a title."""

    def __init__(self, title: str, height: float):
        self.figure = Figure(figsize=(WIDTH, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.set_axis_off()
        self.text(0.3, 0.35, title, size=16, weight="bold", ha="left")

    def text(self, x, y, text, *, size=11, color=INK, ha="center", va="center", **more) -> None:
        self.axes.text(x, y, text, fontsize=size, color=color, ha=ha, va=va, linespacing=1.35, parse_math=True, **more)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], *, color=FAINT) -> None:
        self.axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, lw=1.6, color=color))

    def frame(self, x, y, width, height, *, color=INK, lw=2.0) -> None:
        self.axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=color, lw=lw, joinstyle="miter", zorder=4))

    def matrix(
        self, x, y, values: torch.Tensor, cell, *, kind="signed", limits=None, lines=True, frame=None
    ) -> tuple[float, float]:
        """Draw a matrix rows x columns (a vector is one row) with its upper left corner at x, y; each value is
        a square, `cell` wide. Returns width and height.

        kind, the colour scale: "signed" (symmetric around 0, up to the largest magnitude), "share" (from 0 to
        the largest value) or "grey" (from the smallest to the largest). limits: (low, high) instead.
        """
        values = torch.atleast_2d(values.detach()).numpy()
        rows, columns = values.shape
        most = abs(values).max()
        low, high = limits or {"signed": (-most, most), "share": (0, most), "grey": (values.min(), values.max())}[kind]
        self.axes.pcolormesh(
            [x + cell * j for j in range(columns + 1)],
            [y + cell * i for i in range(rows + 1)],
            values,
            cmap={"signed": "RdBu_r", "share": "viridis", "grey": "gray"}[kind],
            norm=Normalize(low, high),
            edgecolors="white" if lines else "face",
            linewidth=0.4,
        )
        width, height = cell * columns, cell * rows
        self.frame(x, y, width, height, color=frame or FAINT, lw=2.0 if frame else 0.8)
        return width, height

    def caption(self, x, y, text, **more) -> None:
        """Write above a matrix whose upper edge is at y."""
        self.text(x, y - 0.12, text, va="baseline", **more)

    def size(self, x, y, values: torch.Tensor) -> None:
        """Write the size of a matrix below its lower edge at y."""
        self.text(x, y + 0.2, "{} × {}".format(*values.shape), size=10, color=FAINT)

    def percent(self, x, y, values: torch.Tensor, cell, *, most) -> None:
        """Write the shares in a matrix into its cells, as per cent: white on dark, below 0.6 of `most`."""
        for (row, column), value in zip(itertools.product(*map(range, values.shape)), values.flatten()):
            color = "white" if value < 0.6 * most else INK
            self.text(x + (column + 0.5) * cell, y + (row + 0.5) * cell, f"{100 * value:.0f}", size=10, color=color)

    def bars(self, x, y, values: list[float], width, unit, *, mean, std) -> None:
        """A bar for each value, on a line that starts at x, y; a value of 1 is `unit` high. Dashed: the mean;
        grey: one standard deviation on each side."""
        step = width / len(values)
        self.axes.add_patch(Rectangle((x, y - (mean + std) * unit), width, 2 * std * unit, fc="#e2e2e2", zorder=0))
        for tick in (-2, -1, 0, 1, 2):
            self.text(x - 0.1, y - tick * unit, f"{tick}".replace("-", "−"), size=9.5, color="#666666", ha="right")
            self.axes.plot([x, x + width], 2 * [y - tick * unit], color=FAINT, lw=0.6, zorder=0.5)
        for i, value in enumerate(values):
            color = VERMILLION if value > 0 else BLUE
            self.axes.add_patch(Rectangle((x + i * step, y), step, -value * unit, fc=color, ec="white", lw=1, zorder=1))
        self.axes.plot([x, x + width], 2 * [y - mean * unit], color=INK, lw=1.8, ls="--")

    def footer(self, *lines: str, colours: bool = True) -> None:
        """Write lines at the lower edge; `colours` adds one on the meaning of the colours."""
        if colours:
            lines = (*lines, "Red is above zero, blue below, white is zero; each matrix has a colour scale of its own.")
        y = self.figure.get_figheight() - 0.2
        self.text(0.3, y, "\n".join(lines), size=10.5, color="#444444", ha="left", va="bottom")

    def save(self, path: Path) -> Path:
        return canvas.save_figure(self.figure, path)
