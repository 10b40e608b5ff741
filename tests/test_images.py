"""Single images: every kind of file as RGB pixels, and what is refused."""

import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from vitlab.cli import UserError
from vitlab.datasets.images import open_image, open_images, square, to_pixels, upright_frame


def quarters(mode="RGB"):
    """40 x 20: red and green on top, blue and white below."""
    image = Image.new("RGB", (40, 20))
    for colour, place in (("red", (0, 0)), ("lime", (20, 0)), ("blue", (0, 10)), ("white", (20, 10))):
        image.paste(colour, (*place, place[0] + 20, place[1] + 10))
    return image.convert(mode)


def corners(image):
    w, h = image.size
    return [image.getpixel(place) for place in ((2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3))]


RED, LIME, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def close(ours, expected, by=3):
    return np.abs(np.array(ours, dtype=int) - np.array(expected)).max() <= by


@pytest.mark.parametrize("mode, suffix", [("RGB", "png"), ("P", "png"), ("RGB", "bmp"), ("CMYK", "tif")])
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    quarters().quantize(8).save(path) if mode == "P" else quarters(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and close(corners(image), [RED, LIME, BLUE, WHITE])


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown rotated a quarter clockwise
    quarters().save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == (20, 40) and close(corners(image), [BLUE, RED, WHITE, LIME])


def test_transparency_is_put_on_white(tmp_path):
    image = quarters("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "a.png")
    assert close(corners(open_image(tmp_path / "a.png")), 4 * [WHITE])
    palette = quarters().quantize(4)
    palette.save(tmp_path / "b.gif", transparency=palette.getpixel((2, 2)))
    assert close(corners(open_image(tmp_path / "b.gif")), [WHITE, LIME, BLUE, WHITE])


def test_sixteen_bits_are_scaled_and_the_first_frame_is_taken(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert [image.getpixel((x, y)) for y in (0, 1) for x in (0, 1)] == [(v, v, v) for v in (0, 100, 200, 255)]
    quarters().save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (40, 20), "black")])
    assert close(corners(open_image(tmp_path / "b.gif")), [RED, LIME, BLUE, WHITE])


def write_png(path, values, colour):
    """Big-endian 16-bit samples as a PNG of that colour type (0 grey, 2 RGB), which Pillow itself cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("brightest", [255, 256, 4095, 65535])
def test_depth_comes_from_the_file_and_never_from_the_values(tmp_path, brightest):
    grey = np.array([[0, brightest]], dtype=np.uint16)
    expected = [(0, 0, 0), 3 * (round(brightest / 257),)]
    for suffix in ("png", "tif"):
        Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    write_png(tmp_path / "grey.png", grey, colour=0)
    write_png(tmp_path / "rgb.png", np.stack(3 * [grey], -1), colour=2)
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + grey.astype(">u2").tobytes())
    for file in sorted(tmp_path.iterdir()):
        image = open_image(file)
        assert close([image.getpixel((x, 0)) for x in (0, 1)], expected, by=1), file
    from_memory = to_pixels(Image.fromarray(grey.repeat(2, axis=0)), 2, 3)
    assert from_memory[0, 0].tolist() == [0, expected[1][0]]


def test_twelve_bits_are_scaled_as_twelve(tmp_path):
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    pixels = bytes([0x80, 0x0F, 0xFF, 0])  # 0x800, 0xFFF
    file = b"II*\0" + struct.pack("<I", 12) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(file)
    assert [open_image(tmp_path / "a.tif").getpixel((x, 0))[0] for x in (0, 1)] == [128, 255]
    with Image.open(tmp_path / "a.tif") as image:
        assert [upright_frame(image).getpixel((x, 0))[0] for x in (0, 1)] == [128, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16])
def test_pixels_of_no_fixed_range_are_refused(tmp_path, kind):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.int32 if kind == np.int16 else kind))
    image.save(tmp_path / "a.tif")
    if kind == np.int16:
        tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 4), (339, 2)]
        entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
        file = b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + entries + bytes(4)
        (tmp_path / "a.tif").write_bytes(file)
    with pytest.raises(UserError, match="a.tif .*no fixed range.*8 or 16 bits"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(UserError, match="no fixed range"):
        to_pixels(image, 2, 3)


def test_whatever_a_decoder_raises_is_an_unreadable_file(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    for error in (RuntimeError("two\nlines"), KeyError("x"), MemoryError(), struct.error("short"), ZeroDivisionError()):
        with monkeypatch.context() as patch:
            patch.setattr(PngImageFile, "load", Mock(side_effect=error))
            with pytest.raises(UserError, match=r"^.*a.png cannot be read as an image \(.+\); .*$"):
                open_image(file)


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow has no AVIF")
def test_a_damaged_avif_is_left_out(tmp_path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole.avif")
    content = bytearray((tmp_path / "whole.avif").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    for name, damaged in (("a", content), ("b", content[: len(content) // 2])):
        (tmp_path / f"{name}.avif").write_bytes(damaged)
    errors = []
    assert [file.name for file, _ in open_images(tmp_path, errors)][-1] == "whole.avif"
    assert errors and all("cannot be read" in line for line in errors)


def test_images_lie_at_any_depth_and_what_is_none_is_said(tmp_path, capsys):
    for name in ("b.png", "sub/a.png", "sub/deep/c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "sub" / "photo.heic").touch()
    files = [file.relative_to(tmp_path).as_posix() for file, _ in open_images(tmp_path, [])]
    assert files == ["b.png", "sub/a.png", "sub/deep/c.png"]
    assert capsys.readouterr().out == f"{tmp_path}: left out 1 .heic\n"
    for name in files:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="no image in that folder, only 1 .heic"):
        next(open_images(tmp_path, []))


def test_short_side_is_fitted_antialiased_and_the_middle_kept():
    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, 100:200] = 255  # white in the middle third, which alone should remain
    stripes[::2, 100:200] = 0  # in lines of one pixel, which antialiasing makes grey
    small = np.asarray(square(Image.fromarray(stripes), 10))
    assert small.shape == (10, 10, 3)
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() < 16


def test_bad_images_are_refused(tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    cut, text, empty = tmp_path / "cut.png", tmp_path / "text.png", tmp_path / "empty.png"
    cut.write_bytes(whole.read_bytes()[:1500])
    text.write_text("not an image")
    empty.touch()
    for path, word in ((cut, "truncated"), (text, "cannot identify"), (empty, "empty"), (tmp_path / "no", "exist")):
        with pytest.raises(UserError) as caught:
            open_image(path)
        assert str(path) in str(caught.value) and word in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="1,000 pixels"):
        open_image(whole)
