"""Colours, and writing and showing pictures."""

import os
import sys

from PIL import Image

from vitlab.files import replacing

# Of Okabe and Ito, distinguishable to all (grey and brown added); markers tell apart what colours repeat
COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #F0E442 #000000 #999999 #7A3E00".split()


MARKERS = "o^sDvPX*<>"


def style(i):
    """Colour and marker of the i-th of several series."""
    return dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i // len(COLOURS) % len(MARKERS)])


def save(figure, path):
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return path


def save_image(image, path):
    """A PIL image as PNG."""
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    return path


def save_gif(frames, path, *, frame_ms, hold=1):
    """PIL images as an endless GIF; the first and the last stay `hold` times as long."""
    width, height = (max(sizes) for sizes in zip(*(frame.size for frame in frames)))
    canvas = []
    for frame in frames:
        whole = Image.new("RGB", (width, height), "white")
        whole.paste(frame)
        canvas.append(whole.quantize(128, dither=Image.Dither.NONE))
    durations = [frame_ms] * len(frames)
    durations[0] = durations[-1] = frame_ms * hold
    with replacing(path) as part:
        canvas[0].save(
            part, format="GIF", save_all=True, append_images=canvas[1:], duration=durations, loop=0, optimize=True
        )
    return path


def show(path):
    """Open a picture in the system's viewer, where there is a display."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with Image.open(path) as image:
            image.show(title=str(path))
