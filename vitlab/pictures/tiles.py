"""Sheets of small pictures, and frames of GIFs. A tile is a caption and its pixels, height x width x 3 (uint8).

A map G x G is drawn twice: by itself, in the colours of a Scale, and laid over its image, as brightness alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from vitlab.pictures.fonts import image_font

Tile = tuple[str, np.ndarray]

# Lightness rises from one end to the other, so that the order survives a grey print and colour blindness
AROUND_GREY = LinearSegmentedColormap.from_list("attention", ["#00204D", "#2A4A9C", "#8A8A8A", "#E8B800", "#FFF0A0"])


@dataclass(frozen=True)
class Scale:
    """Which colour a value has: dark blue for 1/limit, grey for 1, light yellow for `limit`, and equal steps for equal
    factors; or, with `low`, viridis from low to limit. It does not depend on the map, so that maps compare."""

    unit: str  # of the values
    limit: float
    grey: str = ""  # what grey means
    low: float | None = None

    def place(self, values: ArrayLike) -> np.ndarray:
        """Where values are on the scale, from 0 to 1; those beyond its ends are put there."""
        values = np.asarray(values, dtype=np.float64)
        if self.low is not None:
            return ((values - self.low) / (self.limit - self.low)).clip(0, 1)
        return (np.log(np.maximum(values, 1e-9)) / np.log(self.limit)).clip(-1, 1) / 2 + 0.5

    def shade(self, places: ArrayLike) -> np.ndarray:
        """The colours ... x 3 (uint8) of places on the scale."""
        cmap = AROUND_GREY if self.low is None else matplotlib.colormaps["viridis"]
        return (cmap(places)[..., :3] * 255).round().astype(np.uint8)

    def ticks(self) -> list[str]:
        """The values at 0, 1/4, 1/2, 3/4 and 1 of the scale."""
        if self.low is not None:
            return [f"{value:.2f}" for value in np.linspace(self.low, self.limit, 5)]
        root = self.limit**0.5
        return [f"1/{self.limit:g}", f"1/{root:g}", "1", f"{root:g}", f"{self.limit:g}"]

    def span(self, values: ArrayLike) -> str:
        """The lowest and the highest value, for captions."""
        low, high = np.asarray(values).min(), np.asarray(values).max()
        if low == high == 0:
            return "zero everywhere"
        return f"{low:.2f} to {high:.{2 if high < 10 else 1}f} {self.unit}"


TIMES_UNIFORM = Scale("times uniform", 16, "an equal share")  # attention
TIMES_MEAN = Scale("times the mean", 16, "the mean of the map")  # evidence for a class
TIMES_MEAN_SIZE = Scale("times the mean", 4, "the mean of the patches")  # sizes of tokens
OVERLAY = "Over the image, brightness alone tells the value; colours and outlines are the image's"  # note of a sheet

HIDDEN = ("norm1", "attn", "norm2", "mlp", "block")  # parts of a block, in the order of computation; its output
GAP = 8  # pixels between the tiles of a sheet
LINE_HEIGHT = 16  # of a caption, in pixels
BAR_WIDTH, BAR_HEIGHT = 240, 10  # of the colours of a scale


def colours(values: ArrayLike, side: int, scale: Scale = TIMES_UNIFORM) -> np.ndarray:
    """A map G x G in its true colours: side x side x 3 (uint8)."""
    return enlarge(scale.shade(scale.place(values)), side)


def enlarge(pixels: np.ndarray | Image.Image, side: int) -> np.ndarray:
    """Resize pixels h x w x 3 (uint8), or a PIL image, to side x side x 3 with hard edges: patches stay visible."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST))


def tile_side(own: int, least: int = 160) -> int:
    """The smallest multiple of an image's own side that is not below `least`: its pixels stay equal squares."""
    return -(-least // own) * own


def overlay(image: Image.Image, values: ArrayLike, side: int, scale: Scale = TIMES_UNIFORM) -> np.ndarray:
    """The image under a map G x G: side x side x 3 (uint8). The mean brightness of a patch is its place on the scale,
    whatever the image is like there; hue, and what is lighter or darker within the patch, are the image's."""
    pixels = enlarge(image, side) / 255
    luma = pixels @ (0.299, 0.587, 0.114)
    place = scale.place(values)
    rows = np.arange(side) * len(place) // side
    patch = rows[:, None] * len(place) + rows  # the number of the patch that each pixel is in
    means = np.bincount(patch.ravel(), luma.ravel()) / np.bincount(patch.ravel())
    brightness = 0.08 + 0.84 * place.ravel()[patch] + 0.4 * (luma - means[patch])
    mixed = brightness[..., None] + 0.8 * (pixels - luma[..., None])
    return (mixed.clip(0, 1) * 255).round().astype(np.uint8)


def stack(*pixels: np.ndarray) -> np.ndarray:
    """Pixels of equal width below each other, with a white line between them."""
    line = np.full((4, pixels[0].shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([part for each in pixels for part in (line, each)][1:])


def map_over_image(
    image: Image.Image, values: ArrayLike, side: int, caption: str, scale: Scale = TIMES_UNIFORM
) -> Tile:
    """A tile of a map G x G, and below it the image under the map. The caption ends with its lowest and highest
    value."""
    return f"{caption}\n{scale.span(values)}", stack(colours(values, side, scale), overlay(image, values, side, scale))


def mark(pixels: np.ndarray, row: int, column: int, grid: int) -> np.ndarray:
    """A copy of the pixels with a frame around one patch of grid x grid."""
    image = Image.fromarray(pixels)
    step = image.width / grid
    box = [column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1]
    ImageDraw.Draw(image).rectangle([round(edge) for edge in box], outline="#FF3B6B", width=2)
    return np.asarray(image)


def text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a text, which may have several lines, in pixels."""
    _, _, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return int(right), int(bottom)


def sheet(
    rows: Sequence[Sequence[Tile]], *, title: str, note: str = "", scale: Scale | None = TIMES_UNIFORM
) -> Image.Image:
    """Arrange rows of tiles under a title, and above a note and the colours of the scale (None: of no scale)."""
    words = " ".join([title, note, *(caption for row in rows for caption, _ in row)])
    large, small = image_font(15, words), image_font(12, words)
    column_width = max(max(pixels.shape[1], text_size(caption, small)[0]) for row in rows for caption, pixels in row)
    heights = [max(len(pixels) + LINE_HEIGHT * (1 + caption.count("\n")) for caption, pixels in row) for row in rows]
    legend = legend_of(scale, small) if scale else Image.new("RGB", (0, 0))
    title_width, title_height = text_size(title, large)
    note_width, note_height = text_size(note, small) if note else (0, -GAP)
    width = max(max(map(len, rows)) * (column_width + GAP) - GAP, title_width, note_width, legend.width) + 2 * GAP
    height = title_height + note_height + legend.height + sum(heights) + GAP * (len(rows) + 4)

    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.multiline_text((GAP, GAP), title, "black", large)
    y = title_height + 2 * GAP
    for row, row_height in zip(rows, heights):
        for i, (caption, pixels) in enumerate(row):
            x, below = GAP + i * (column_width + GAP), y + len(pixels)
            draw.rectangle([x - 1, y - 1, x + pixels.shape[1], below], outline="#CCCCCC")
            image.paste(Image.fromarray(pixels), (x, y))
            draw.multiline_text((x, below + 2), caption, "black", small)
        y += row_height + GAP
    image.paste(legend, (GAP, y))
    draw.multiline_text((GAP, y + legend.height + (GAP if scale else 0)), note, "#555555", small)
    return image


def legend_of(scale: Scale, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The colours of a scale with their values, and what they mean."""
    text = scale.unit + (f"; grey: {scale.grey}" if scale.grey else "")
    text_width, text_height = text_size(text, font)
    margin = text_size(scale.ticks()[0], font)[0] // 2
    image = Image.new("RGB", (margin + BAR_WIDTH + 3 * GAP + text_width, BAR_HEIGHT + LINE_HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    shades = scale.shade(np.linspace(0, 1, BAR_WIDTH)[None].repeat(BAR_HEIGHT, 0))
    image.paste(Image.fromarray(shades), (margin, 0))
    for place, tick in zip((0, 0.25, 0.5, 0.75, 1), scale.ticks()):
        draw.text((margin + place * BAR_WIDTH, BAR_HEIGHT + 1), tick, "black", font, anchor="mt")
    draw.text((margin + BAR_WIDTH + 3 * GAP, (image.height - text_height) // 2 - 2), text, "black", font)
    return image


def layer_name(layer: int, depth: int) -> str:
    """How captions call a layer of `depth`, which is counted from 0."""
    return f"layer {layer + 1} of {depth}"


def head_name(head: int | str, num_heads: int) -> str:
    """How captions call a head, which is counted from 0, or the "mean" of all."""
    return f"mean of {num_heads} heads" if head == "mean" else f"head {head + 1} of {num_heads}"


def side_by_side(
    image: Image.Image, values: ArrayLike, side: int, captions: tuple[str, str], scale: Scale = TIMES_UNIFORM
) -> list[Tile]:
    """Three tiles: the image, the map G x G, the image under the map. captions: of the image and the map; the map's
    lowest and highest value are added."""
    return [
        (captions[0], enlarge(image, side)),
        (f"{captions[1]}\n{scale.span(values)}", colours(values, side, scale)),
        ("the map over the image:\nthe brighter, the more", overlay(image, values, side, scale)),
    ]


def attention_frames(
    image: Image.Image, maps: Iterable[tuple[str, ArrayLike]], *, title: str, caption: str, note: str = ""
) -> list[Image.Image]:
    """One frame per map: the image, the map, and the image under the map.

    maps: pairs of a heading and a map G x G, times uniform. caption: below the image.
    """
    side = tile_side(image.width)
    return [
        sheet([side_by_side(image, values, side, (caption, "attention"))], title=f"{heading}\n{title}", note=note)
        for heading, values in maps
    ]


def hidden_name(layer: int, part: str) -> str:
    """The key of one of HIDDEN in what return_hidden gives."""
    return f"blocks.{layer}" if part == "block" else f"blocks.{layer}.{part}"


def hidden_rows(
    image: Image.Image, hidden: Mapping[str, ArrayLike], layers: Sequence[int], depth: int
) -> list[list[Tile]]:
    """A row for each layer, of an image's hidden values (name -> N x D): the image, what entered the layer, and HIDDEN.
    Drawn is the root mean square over D of each patch, at its place."""
    side, rows = tile_side(image.width), []
    for layer in layers:
        before = ("block before", f"blocks.{layer - 1}") if layer else ("embedded patches", "patch_embed")
        parts = [before, *((part, hidden_name(layer, part)) for part in HIDDEN)]
        tiles = [size_tile(hidden[name], part, side) for part, name in parts]
        rows.append([(f"{layer_name(layer, depth)}", enlarge(image, side)), *tiles])
    return rows


def size_tile(values: ArrayLike, caption: str, side: int) -> Tile:
    """A tile of token values N x D: the root mean square over D, in the colours of its ratio to the patches' mean. The
    caption tells the sizes, and that of a CLS token."""
    size = np.sqrt((np.asarray(values) ** 2).mean(-1))  # N
    grid = int(len(size) ** 0.5)
    patches = size[len(size) - grid**2 :]
    caption += f"\n{patches.min():.2f} to {patches.max():.2f}"
    caption += f", CLS {size[0]:.2f}" if len(size) > grid**2 else ""
    mean = patches.mean() or 1.0
    return caption, colours(patches.reshape(grid, grid) / mean, side, TIMES_MEAN_SIZE)
