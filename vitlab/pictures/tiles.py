"""Sheets of small pictures, and frames of GIFs. A tile is a caption and its pixels, side x side x 3 (uint8)."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

Tile = tuple[str, np.ndarray]

# Notes below a sheet: how its maps are coloured
SCALE = "Each map is scaled by itself: from 0 (dark) to its largest value (bright)"
OWN_SCALE = "Each map is scaled by itself: from its smallest (dark) to its largest value (bright)"

HIDDEN = ("norm1", "attn", "norm2", "mlp", "block")  # parts of a block, in the order of computation; its output
GAP = 8  # pixels between the tiles of a sheet
LINE_HEIGHT = 14  # of a caption, in pixels


def shade(
    values: ArrayLike, *, low: float | None = None, high: float | None = None, cmap: str = "viridis"
) -> np.ndarray:
    """Colours G x G x 3 (uint8) of a map G x G, from `low` (default: its smallest value) to `high` (its largest)."""
    values = np.asarray(values, dtype=np.float64)
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (matplotlib.colormaps[cmap](shares)[..., :3] * 255).round().astype(np.uint8)


def enlarge(pixels: np.ndarray | Image.Image, side: int) -> np.ndarray:
    """Resize pixels h x w x 3 (uint8), or a PIL image, to side x side x 3 with hard edges: patches stay visible."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST))


def overlay(image: Image.Image, values: ArrayLike, side: int) -> np.ndarray:
    """The image in grey under a map G x G (from 0, dark, to its largest value, bright): side x side x 3."""
    grey = enlarge(image.convert("L"), side)
    colours = enlarge(shade(values, low=0, cmap="inferno"), side)
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def mark(pixels: np.ndarray, row: int, column: int, grid: int) -> np.ndarray:
    """A copy of the pixels with a frame around one patch of grid x grid."""
    image = Image.fromarray(pixels)
    step = image.width / grid
    box = [column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1]
    ImageDraw.Draw(image).rectangle([round(edge) for edge in box], outline="#00D0FF", width=2)
    return np.asarray(image)


def text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a text, which may have several lines, in pixels."""
    _, _, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return int(right), int(bottom)


def sheet(tiles: Sequence[Tile | None], *, columns: int, title: str, note: str = "") -> Image.Image:
    """Arrange tiles of one size in rows of `columns`, under a title and above a note. None leaves a gap."""
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    shown = [tile for tile in tiles if tile]
    side = shown[0][1].shape[0]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)

    cell_width = max(side, *(text_size(caption, small)[0] for caption, _ in shown)) + GAP
    cell_height = side + LINE_HEIGHT * (1 + max(caption.count("\n") for caption, _ in shown)) + GAP
    title_width, title_height = text_size(title, large)
    note_width, note_height = text_size(note, small) if note else (0, 0)
    width = max(columns * cell_width, title_width, note_width) + 2 * GAP
    top, bottom = title_height + 2 * GAP, note_height + GAP if note else 0

    image = Image.new("RGB", (width, top + rows * cell_height + bottom), "white")
    draw = ImageDraw.Draw(image)
    draw.multiline_text((GAP, GAP), title, "black", large)
    for i, tile in enumerate(tiles):
        if tile is None:
            continue
        caption, pixels = tile
        x, y = GAP + i % columns * cell_width, top + i // columns * cell_height
        draw.rectangle([x - 1, y - 1, x + side, y + side], outline="#CCCCCC")
        image.paste(Image.fromarray(pixels), (x, y))
        draw.multiline_text((x, y + side + 2), caption, "black", small)
    draw.multiline_text((GAP, image.height - bottom), note, "#555555", small)
    return image


def attention_frames(
    image: Image.Image,
    maps: Iterable[tuple[str, ArrayLike]],
    *,
    title: str,
    captions: tuple[str, str],
    note: str,
) -> list[Image.Image]:
    """One frame per map: the image next to the image overlaid with the map.

    maps: pairs of a heading and a map G x G. captions: below the image, and below the overlay.
    """
    frames = []
    for heading, values in maps:
        tiles = [(captions[0], enlarge(image, 224)), (captions[1], overlay(image, values, 224))]
        frames.append(sheet(tiles, columns=2, title=f"{heading}\n{title}", note=f"{note}; bright: {values.max():.2f}"))
    return frames


def hidden_name(layer: int, part: str) -> str:
    """The key of one of HIDDEN in what return_hidden gives."""
    return f"blocks.{layer}" if part == "block" else f"blocks.{layer}.{part}"


def hidden_tiles(hidden: Mapping[str, ArrayLike], layer: int, side: int) -> list[Tile]:
    """Tiles of one image's hidden values (name -> N x D) in a layer, one for each of HIDDEN: the root mean
    square over D of each patch, at its place; that of a CLS token is in the caption."""
    return [size_tile(hidden[hidden_name(layer, part)], f"{part} of layer {layer}", side) for part in HIDDEN]


def embedded_tiles(image: Image.Image, hidden: Mapping[str, ArrayLike], side: int) -> list[Tile | None]:
    """The row above those of hidden_tiles: the image and its embedded patches."""
    tiles = [("image", enlarge(image, side)), size_tile(hidden["patch_embed"], "patch_embed", side)]
    return tiles + [None] * (len(HIDDEN) - len(tiles))


def size_tile(values: ArrayLike, caption: str, side: int) -> Tile:
    """A tile of token values N x D: the root mean square over D."""
    size = np.sqrt((np.asarray(values) ** 2).mean(-1))  # N
    grid = int(len(size) ** 0.5)
    patches = size[len(size) - grid**2 :]
    caption += f"\n{patches.min():.2f} to {patches.max():.2f}"
    caption += f", CLS {size[0]:.2f}" if len(size) > grid**2 else ""
    return caption, enlarge(shade(patches.reshape(grid, grid)), side)
