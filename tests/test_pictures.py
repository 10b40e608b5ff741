"""vitlab/pictures: what is drawn, and what a file holds."""

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from vitlab.pictures import canvas, figures, fonts
from vitlab.pictures.tiles import (
    HIDDEN,
    TIMES_UNIFORM,
    Scale,
    attention_frames,
    colours,
    head_name,
    hidden_name,
    hidden_rows,
    layer_name,
    mark,
    overlay,
    sheet,
    tile_side,
)

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
MAPS = [(f"layer {i}", RNG.random((8, 8))) for i in range(4)]
FRAMES = attention_frames(NOISE.resize((32, 32)), MAPS, title="attention", caption="cat")


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
        [NOISE, FRAMES[0].crop((0, 0, 50, 80)), NOISE],  # of different sizes, with more than 256 colours
    ],
    ids=["frames", "one", "repeated", "sizes"],
)
def test_a_gif_is_that_of_pillows_own_writer(frames, tmp_path):
    width, height = (max(sizes) for sizes in zip(*(frame.size for frame in frames)))
    padded = [Image.new("RGB", (width, height), "white") for _ in frames]
    for page, frame in zip(padded, frames):
        page.paste(frame)
    pages = [page.quantize(256, kmeans=1, dither=Image.Dither.NONE) for page in padded]
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
        assert np.abs(pixels - np.asarray(frame, dtype=float)).mean() < 3  # but for the 256 colours


def test_a_map_keeps_its_colours_in_a_gif(tmp_path):
    path = canvas.save_gif(FRAMES, tmp_path / "a.gif", frame_ms=200)
    for (pixels, _), (_, values) in zip(decoded(path), MAPS):
        true, x = colours(values, 160).astype(int), 160 + 2 * 8
        corner = next(y for y in range(80) if abs(pixels[y : y + 160, x : x + 160] - true).max() <= 8)
        assert corner > 20  # below the title


def test_colours_are_on_one_scale():
    neutral, once, twice = (colours(np.full((2, 2), value), 2)[0, 0].astype(int) for value in (1, 1.05, 2))
    assert neutral.max() - neutral.min() < 5 and abs(once - neutral).max() < 8  # nearly uniform is grey, no wash
    assert abs(twice - neutral).max() > 30
    places = TIMES_UNIFORM.place([0, 1 / 16, 1 / 4, 1, 4, 16, 100])
    assert places == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert TIMES_UNIFORM.span([[0.024, 12.96]]) == "0.02 to 13.0 times uniform"
    assert TIMES_UNIFORM.span(np.zeros((2, 2))) == "zero everywhere"
    assert Scale("cosine", 0.9, low=-0.1).place([-0.1, 0.4, 1]) == pytest.approx([0, 0.5, 1])
    lightness = TIMES_UNIFORM.shade(np.linspace(0, 1, 50)) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("under", ["black", "white", "red", "halves", "photo"])
def test_the_brightness_of_an_overlay_tells_the_map_alone(under):
    """In the order of the map, whatever the image is like below: black, or white, or both."""
    image = Image.new("RGB", (32, 32), under if under in ("black", "white", "red") else "black")
    if under == "halves":
        image.paste("white", (0, 0, 16, 32))
    if under == "photo":
        smooth = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = smooth.resize((32, 32), Image.Resampling.BICUBIC)
    values = 2 ** RNG.permutation(np.linspace(-3.5, 3.5, 16)).reshape(4, 4)
    luma = overlay(image, values, 64) @ (0.299, 0.587, 0.114)
    brightness = luma.reshape(4, 16, 4, 16).mean((1, 3))
    assert np.array_equal(brightness.ravel().argsort(), values.ravel().argsort())
    if under == "halves":
        assert luma.std() > 0  # and what is in the image can still be seen within a patch
        edge = overlay(image, np.ones((3, 3)), 96) @ (0.299, 0.587, 0.114)
        assert edge[40, 40] > edge[40, 60] + 20


def test_captions_count_from_one():
    assert f"{layer_name(1, 12)}, {head_name(2, 4)}" == "layer 2 of 12, head 3 of 4"
    assert head_name("mean", 4) == "mean of 4 heads"


def test_what_is_inside_the_blocks_is_not_stretched():
    """Sizes that differ by a hundredth are drawn alike."""
    names = ["patch_embed", *(hidden_name(0, part) for part in HIDDEN)]
    hidden = {name: 1 + 0.01 * RNG.random((16, 8)) for name in names}
    ((_, *tiles),) = hidden_rows(NOISE.resize((32, 32)), hidden, [0], 1)
    assert [caption.split("\n")[0] for caption, _ in tiles] == ["embedded patches", *HIDDEN]
    assert all(np.ptp(pixels.astype(int), axis=(0, 1)).max() < 8 for _, pixels in tiles)


def test_tiles_show_whole_pixels():
    assert [tile_side(own) for own in (8, 28, 32, 48, 224)] == [160, 168, 160, 192, 224]


def test_mark_frames_one_patch():
    marked = (mark(np.zeros((40, 40, 3), dtype=np.uint8), 1, 2, 4) != 0).any(-1)
    rows, columns = np.nonzero(marked)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 20, 29)
    assert marked[10:12, 20:30].all() and not marked[13:17, 23:27].any()


def test_a_sheet_has_its_tiles_in_rows():
    red, blue = (np.full((20, 20, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    rows = [[("a", red)], [("b", blue), ("c", red)]]
    pixels = np.asarray(sheet(rows, title="title", scale=None))
    reds, blues = ((pixels == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert reds.sum() == 2 * 400 and blues.sum() == 400
    assert np.nonzero(blues)[0].min() > np.nonzero(reds)[0].min()  # the second row
    more = sheet(rows, title="title", note="note", scale=None)
    assert pixels.shape[0] < more.height < sheet(rows, title="title", note="note").height  # and the scale's colours


def test_curves_skip_what_was_not_measured(tmp_path, monkeypatch):
    drawn, save = [], figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path))
    history = [{"epoch": i, "train_loss": 1 / i, "val_loss": None} for i in (1, 2, 3)]
    path = figures.plot_curve(history, "loss", tmp_path / "loss.png", test=0.5, best_epoch=2)
    assert Image.open(path).size == (840, 540)  # 7 x 4.5 inches at 120 dots
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert len(legend) == 2 and legend[0].startswith("train") and legend[1].startswith("test, once: 0.5")


def test_names_of_any_script_are_written(monkeypatch, capsys):
    """A letter that a font lacks is a box, so that words of equally many letters would look the same."""
    red = np.full((20, 20, 3), 255, dtype=np.uint8)
    assert not np.array_equal(*(sheet([[(name, red)]], title="") for name in ("кот", "дом")))
    assert not np.array_equal(*(sheet([[(name, red)]], title="") for name in ("Löwe", "Läwe")))
    assert fonts.image_font(12, "cat").getname() == ImageFont.load_default(12).getname()

    plain = frozenset(range(32, 127))
    mono = next(font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans Mono")
    monkeypatch.setattr(fonts, "letters_of", lambda path: plain | ({ord("猫")} if path == mono.fname else set()))
    fonts.font_with.cache_clear()
    figure = Figure()
    figure.subplots().set_xticks([0, 1], ["a", "猫"])
    canvas.choose_fonts(figure)
    assert figure.axes[0].get_xticklabels()[1].get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"]
    assert fonts.image_font(12, "猫").getname()[0] == "DejaVu Sans Mono" and not capsys.readouterr().err
    assert fonts.families("a猫 \u0e41") == ["DejaVu Sans", "DejaVu Sans Mono"]
    assert capsys.readouterr().err.count("no installed font can write \u0e41") == 1
    fonts.font_with.cache_clear()


def test_the_growing_curves_say_what_the_training_loss_is():
    history = [
        {"epoch": i, "train_loss": 1 / i, "train_accuracy": 0.5, "val_loss": 1, "val_accuracy": 1} for i in (1, 2)
    ]
    plain, soft = (figures.training_frames(history, title="a", soft_labels=soft)[-1] for soft in (False, True))
    assert np.asarray(plain).shape == np.asarray(soft).shape and (np.asarray(plain) != np.asarray(soft)).any()
    assert "soft labels" in figures.running_label(True) and "soft labels" not in figures.running_label(False)


def test_long_titles_are_wrapped(tmp_path):
    title = "a-very-long-file-name-" * 8 + ".jpg: airplane"
    figure = Figure(figsize=(7, 4))
    lines = figures.wrap(title, figure, 10).splitlines()
    assert "".join(lines).replace(" ", "") == title.replace(" ", "") and len(lines) > 1
    drawn = figure.suptitle("\n".join(lines), fontsize=10).get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 <= drawn.x0 and drawn.x1 <= figure.bbox.width
    assert figures.wrap("a run\nairplane", figure, 10) == "a run\nairplane"


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    """Matplotlib takes what is between two of them for mathematics."""
    names, points, labels = ["$", "$\\frac$", "a$b$c"], RNG.random((9, 2)), np.arange(9) % 3
    history = [
        {"epoch": i, "train_loss": 1 / i, "train_accuracy": 0.5, "val_loss": 1, "val_accuracy": 1} for i in (1, 2)
    ]
    figures.plot_curve(history, "loss", tmp_path / "loss.png", test=0.5, best_epoch=2)
    figures.plot_confusion_matrix(np.eye(3, dtype=int), names, tmp_path / "confusion.png", "a $\\frac$ run")
    figures.plot_embeddings([("PCA", points)], labels, names, "a $\\frac$ run", tmp_path / "points.png")
    figures.plot_token_values(RNG.random((2, 9)), "a $\\frac$ run", tmp_path / "token.png")
    curves = {("mean", "deletion"): {"$\\frac$": [1, 0]}, ("mean", "insertion"): {"$\\frac$": [0, 1]}}
    figures.plot_faithfulness(curves, "a $\\frac$ run", tmp_path / "faithfulness.png")
    assert len(figures.training_frames(history, title="a $\\frac$ run")) == 2
    figures.plot_prediction(NOISE, np.ones((2, 2)), "$\\frac$ 80 %", tmp_path / "prediction.png", label="$\\frac$")


def test_the_two_scripts_share_a_style(tmp_path):
    """test.py's picture is a frame of visualize.py's GIF, but for the words."""
    image, values = NOISE.resize((32, 32)), MAPS[0][1]
    drawn = Image.open(figures.plot_prediction(image, values, "title", tmp_path / "a.png", label="attention"))
    pixels, tile = np.asarray(drawn.convert("RGB")), colours(values, 224)
    assert any(np.array_equal(pixels[y : y + 224, 240 : 240 + 224], tile) for y in range(80))


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
