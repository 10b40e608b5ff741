"""Fonts for the names of classes and runs, which may be in any script that a font of the machine can write."""

import functools
import logging
import sys
import warnings

from matplotlib import font_manager
from PIL import ImageFont

USUAL = "DejaVu Sans"  # matplotlib's own font: Latin, Greek, Cyrillic, Arabic and more, but no Chinese
BOXES = "Last Resort"  # a font of matplotlib that has a box for every letter
warnings.filterwarnings("ignore", message="Glyph .* missing from")  # font_with says it, once
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font has no normal weight: the next is fine


@functools.cache
def letters_of(path: str) -> frozenset[int]:
    """The code points that a font file has; none if it cannot be read."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def font_with(letters: frozenset[int]) -> font_manager.FontEntry | None:
    """The installed upright font that has most of these code points, matplotlib's own before others; or None if none
    has any. What is missing is said in a line."""
    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and BOXES not in font.name]
    fonts.sort(key=lambda font: (font.name != USUAL, font.weight != 400, font.name))
    best = max(fonts, key=lambda font: len(letters & letters_of(font.fname)))  # of equals the first
    if missing := letters - letters_of(best.fname):
        some = "".join(map(chr, sorted(missing)[:10]))
        remedy = "boxes stand for it; install a font for it, as Noto Sans CJK for Chinese"
        print(f"no installed font can write {some}: {remedy}", file=sys.stderr)
    return best if missing != letters else None


def families(text: str) -> list[str]:
    """The families with which matplotlib can write a text: for each letter it takes the first that has it."""
    usual = font_manager.findfont(USUAL)
    letters = frozenset(ord(letter) for letter in text if letter.isprintable()) - letters_of(usual)
    font = font_with(letters) if letters else None
    return [USUAL, font.name] if font else [USUAL]


def image_font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """The font in which PIL writes a text, `size` pixels high: PIL's own, or an installed one if there is more than
    ASCII in it."""
    letters = frozenset(ord(letter) for letter in text if letter.isprintable() and letter > "~")
    font = font_with(letters | frozenset(map(ord, "a0"))) if letters else None
    return ImageFont.truetype(font.fname, size) if font else ImageFont.load_default(size)
