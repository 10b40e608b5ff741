"""Colours, and writing and showing pictures."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vitlab.files import replacing
from vitlab.pictures.fonts import families

# Of Okabe and Ito, distinguishable to all (grey and brown added); markers tell apart what colours repeat
COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #F0E442 #000000 #999999 #7A3E00".split()
MARKERS = "o^sDvPX*<>"
matplotlib.rcParams["text.parse_math"] = False  # the names of classes and runs may have a $


def style(i: int) -> dict[str, str]:
    """Colour and marker of the i-th series of a plot, as keywords for matplotlib."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}


def save_figure(figure: Figure, path: str | Path) -> str | Path:
    """Write a matplotlib figure as PNG at 120 dots per inch; returns the path."""
    choose_fonts(figure)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return path


def choose_fonts(figure: Figure) -> None:
    """Give the texts of a figure fonts that have their letters."""
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # which makes them
    texts = figure.findobj(Text)
    names = families(" ".join(text.get_text() for text in texts))
    for text in texts:
        text.set_fontfamily(names)


def save_image(image: Image.Image, path: str | Path) -> str | Path:
    """Write a PIL image as PNG; returns the path."""
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    return path


def save_gif(frames: Sequence[Image.Image], path: str | Path, *, frame_ms: int, hold: int = 3) -> str | Path:
    """Write PIL images as a GIF that repeats forever; returns the path.

    frame_ms: milliseconds per frame. hold: the first and the last frame are shown `hold` times as long.
    Each frame is reduced to 256 colours without dithering, so that flat areas stay flat and the file small; the means
    of k-means keep large areas in their true colours.
    Frames of different sizes are padded with white on the right and below.
    """
    width, height = (max(sizes) for sizes in zip(*(frame.size for frame in frames)))
    arrays = []
    for frame in frames:
        padded = Image.new("RGB", (width, height), "white")
        padded.paste(frame)
        arrays.append(np.asarray(padded.quantize(256, kmeans=1, dither=Image.Dither.NONE).convert("RGB")))
    durations = [frame_ms] * len(frames)
    durations[0] = durations[-1] = frame_ms * hold
    with replacing(path) as part:
        iio.imwrite(
            part,
            arrays,
            plugin="pillow",
            extension=".gif",
            duration=durations if len(frames) > 1 else durations[0],
            loop=0,
            optimize=True,
        )
    return path


def show(path: str | Path) -> None:
    """Open a picture in the system's viewer if there is a display."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with Image.open(path) as image:
            image.show(title=str(path))
