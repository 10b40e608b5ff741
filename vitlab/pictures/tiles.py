"""Sheets of small pictures, and frames of GIFs."""

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = "Each map is scaled by itself: from 0 (dark) to its largest value (bright)"


OWN_SCALE = "Each map is scaled by itself: from its smallest (dark) to its largest value (bright)"


HIDDEN = ("norm1", "attn", "norm2", "mlp", "block")  # of a block, in the order of computation; its output


def shade(values, *, low=None, high=None, cmap="viridis"):
    """A map G x G as colours G x G x 3 (uint8), from `low` (its smallest value) to `high` (its largest)."""
    values = np.asarray(values, dtype=np.float64)
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (matplotlib.colormaps[cmap](shares)[..., :3] * 255).round().astype(np.uint8)


def enlarge(pixels, side):
    """Pixels h x w x 3 (uint8), or a PIL image, at side x side with hard edges: patches stay visible."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST))


def overlay(image, values, side):
    """A PIL image in grey under a map G x G (from 0, dark, to its largest value, bright), side x side x 3."""
    grey = enlarge(image.convert("L"), side)
    colours = enlarge(shade(values, low=0, cmap="inferno"), side)
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def mark(pixels, row, column, grid):
    """The same pixels with a frame around one patch of grid x grid."""
    image = Image.fromarray(pixels)
    step = image.width / grid
    box = [column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1]
    ImageDraw.Draw(image).rectangle([round(edge) for edge in box], outline="#00D0FF", width=2)
    return np.asarray(image)


def sheet(tiles, *, columns, title, note=""):
    """Tiles in rows of `columns` under a title and over a note, as a PIL image. A tile is (caption,
    pixels S x S x 3), all of one size; None leaves a gap."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    side = next(tile[1].shape[0] for tile in tiles if tile)
    columns = min(columns, len(tiles))

    def text_size(text, face):
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, face)
        return right, bottom

    widest = max(text_size(tile[0], small)[0] for tile in tiles if tile)
    gap = 8
    cell = max(side, int(widest)) + gap
    width = int(max(columns * cell, text_size(title, font)[0], text_size(note, small)[0] if note else 0)) + 2 * gap
    top = int(text_size(title, font)[1]) + 2 * gap
    lines = 1 + max(tile[0].count("\n") for tile in tiles if tile)
    row_height = side + 14 * lines + gap
    rows = -(-len(tiles) // columns)
    bottom = int(text_size(note, small)[1]) + gap if note else 0
    image = Image.new("RGB", (width, top + rows * row_height + bottom), "white")
    draw = ImageDraw.Draw(image)
    draw.multiline_text((gap, gap), title, "black", font)
    for i, tile in enumerate(tiles):
        if tile is None:
            continue
        x, y = gap + i % columns * cell, top + i // columns * row_height
        draw.rectangle([x - 1, y - 1, x + side, y + side], outline="#CCCCCC")
        image.paste(Image.fromarray(tile[1]), (x, y))
        draw.multiline_text((x, y + side + 2), tile[0], "black", small)
    draw.multiline_text((gap, image.height - bottom), note, "#555555", small)
    return image


def attention_frames(image, maps, *, title, captions, note):
    """A frame for each of `maps`, [(words, G x G), ...]: a PIL image beside itself under the map. PIL
    images; `captions` are those of the two tiles."""
    frames = []
    for words, values in maps:
        tiles = [(captions[0], enlarge(image, 224)), (captions[1], overlay(image, values, 224))]
        frames.append(sheet(tiles, columns=2, title=f"{words}\n{title}", note=f"{note}; bright: {values.max():.2f}"))
    return frames


def hidden_name(layer, part):
    """The key of return_hidden."""
    return f"blocks.{layer}" + (f".{part}" if part != "block" else "")


def hidden_tiles(hidden, layer, side):
    """Tiles for one image's hidden values (name -> N x D) at a layer: root mean square over the width,
    on the grid; a CLS token's is in the caption."""
    return [size_tile(hidden[hidden_name(layer, part)], f"{part} of layer {layer}", side) for part in HIDDEN]


def embedded_tiles(image, hidden, side):
    """The row above those of hidden_tiles: the image and its embedded patches."""
    first = [("image", enlarge(image, side)), size_tile(hidden["patch_embed"], "patch_embed", side)]
    return first + [None] * (len(HIDDEN) - len(first))


def size_tile(values, words, side):
    """A tile for values N x D."""
    size = np.sqrt((np.asarray(values) ** 2).mean(-1))  # N
    grid = int(len(size) ** 0.5)
    patches = size[len(size) - grid**2 :]
    words += f"\n{patches.min():.2f} to {patches.max():.2f}"
    words += f", CLS {size[0]:.2f}" if len(size) > grid**2 else ""
    return words, enlarge(shade(patches.reshape(grid, grid)), side)
