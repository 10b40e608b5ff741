"""vitlab/pictures: what is drawn, and what a file holds."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import attention_frames, mark, overlay, shade, sheet

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
MAPS = [(f"layer {i}", RNG.random((8, 8))) for i in range(4)]
FRAMES = attention_frames(NOISE.resize((32, 32)), MAPS, title="attention", captions=("cat", "dog"), note="model")


def decoded(path):
    """The RGB pixels and the milliseconds of each frame."""
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.info["loop"] == 0  # forever
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB")), gif.info["duration"]


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES,
        FRAMES[:1],
        [FRAMES[0], FRAMES[0], FRAMES[1], FRAMES[0]],  # equal neighbours become one, of their summed duration
        [NOISE, FRAMES[0].crop((0, 0, 50, 80)), NOISE],  # of different sizes, with more than 128 colours
    ],
    ids=["frames", "one", "repeated", "sizes"],
)
def test_a_gif_is_that_of_pillows_own_writer(frames, tmp_path):
    width, height = (max(sizes) for sizes in zip(*(frame.size for frame in frames)))
    padded = [Image.new("RGB", (width, height), "white") for _ in frames]
    for page, frame in zip(padded, frames):
        page.paste(frame)
    pages = [page.quantize(128, dither=Image.Dither.NONE) for page in padded]
    durations = [100] * len(frames)
    durations[0] = durations[-1] = 300
    pillows = tmp_path / "pillow.gif"
    pages[0].save(pillows, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)

    ours = canvas.save_gif(frames, tmp_path / "ours.gif", frame_ms=100, hold=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["ours.gif", "pillow.gif"]
    for (pixels, duration), (expected, expected_duration) in zip(decoded(ours), decoded(pillows), strict=True):
        assert np.array_equal(pixels, expected) and duration == expected_duration
    assert ours.stat().st_size <= 1.02 * pillows.stat().st_size


def test_imageio_reads_the_gif_back(tmp_path):
    path = canvas.save_gif(FRAMES, tmp_path / "a.gif", frame_ms=200)
    frames = iio.imread(path, plugin="pillow", mode="RGB")
    assert frames.shape == (4, *np.asarray(FRAMES[0]).shape)
    for pixels, frame in zip(frames, FRAMES):
        assert np.abs(pixels - np.asarray(frame, dtype=float)).mean() < 6  # but for the 128 colours


def test_shade_and_overlay_keep_to_their_scale():
    values = np.array([[0.0, 0.5], [0.5, 1.0]])
    assert np.array_equal(shade(values), shade(10 * values))
    assert not np.array_equal(shade(values), shade(values, high=2))
    assert np.array_equal(shade(np.ones((2, 2))), shade(np.zeros((2, 2))))
    pixels = overlay(NOISE, values, 32)
    assert pixels.shape == (32, 32, 3) and pixels[16:, 16:].mean() > pixels[:16, :16].mean()


def test_mark_frames_one_patch():
    marked = (mark(np.zeros((40, 40, 3), dtype=np.uint8), 1, 2, 4) != 0).any(-1)
    rows, columns = np.nonzero(marked)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 20, 29)
    assert marked[10:12, 20:30].all() and not marked[13:17, 23:27].any()


def test_a_sheet_has_its_tiles_in_rows():
    red, blue = (np.full((20, 20, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    pixels = np.asarray(sheet([("a", red), None, ("b", blue), ("c", red)], columns=2, title="title"))
    reds, blues = ((pixels == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert reds.sum() == 2 * 400 and blues.sum() == 400
    assert np.nonzero(blues)[0].min() > np.nonzero(reds)[0].min()  # the second row
    noted = sheet([("a", red)], columns=2, title="title", note="note")
    assert noted.height > sheet([("a", red)], columns=2, title="title").height


def test_curves_skip_what_was_not_measured(tmp_path):
    history = [{"epoch": i, "train_loss": 1 / i, "val_loss": None} for i in (1, 2, 3)]
    path = figures.plot_curve(history, "loss", tmp_path / "loss.png", test=0.5, best_epoch=2)
    assert Image.open(path).size == (840, 540)  # 7 x 4.5 inches at 120 dots


@pytest.mark.parametrize("classes", [3, 30])
def test_classes_few_and_many(tmp_path, classes):
    names = [f"class {i}" for i in range(classes)]
    counts = RNG.integers(0, 9, (classes, classes))
    labels = np.arange(4 * classes) % classes
    points = RNG.random((len(labels), 2))
    for path in (
        figures.plot_confusion_matrix(counts, names, tmp_path / "confusion.png", "title"),
        figures.plot_embeddings([("PCA", points), ("t-SNE", points)], labels, names, "title", tmp_path / "points.png"),
    ):
        Image.open(path).verify()
