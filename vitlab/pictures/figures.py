"""Numbers and maps -> figures and GIFs. What takes a path writes that one file and returns it."""

import os
import sys

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vitlab.checkpoint import replacing
from vitlab.study.tables import p_value

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


def curve(history, what, path, *, test=None, best_epoch=None, soft_labels=False):
    """Training and validation `what` ("loss" or "accuracy") over the epochs; `test` is one marked
    point at the epoch whose weights were tested. `soft_labels` (smoothed or mixed ones, against which
    the other splits' loss cannot be compared) is said in the legend."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 3 else None
    train = "train (running, augmented, soft labels)" if soft_labels else "train (running, augmented)"
    for split, words in (("train", train), ("val", "validation")):
        values = [row[f"{split}_{what}"] for row in history]
        if any(value is not None for value in values):
            axes.plot(epochs, [np.nan if value is None else value for value in values], label=words, marker=marker)
    if test is not None:
        axes.plot([best_epoch], [test], "*", color="black", markersize=12, label=f"test, once: {test:.4f}")
    axes.set(xlabel="epoch", ylabel="cross-entropy loss" if what == "loss" else "accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, path)


def confusion_matrix(counts, classes, path, title=""):
    """A confusion matrix (rows true, columns predicted) as shares of the row; counts are written in
    where there is room."""
    counts = np.asarray(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    few = len(classes) <= 20
    side = max(5.0, min(0.6 * len(classes), 16.0)) + 1
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    size = 9 if few else 5
    axes.set_xticks(
        range(len(classes)),
        classes,
        rotation=90 if len(classes) > 20 else 45,
        fontsize=size,
        ha="center" if len(classes) > 20 else "right",
        rotation_mode=None if not few else "anchor",
    )
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    if few:
        for i, j in np.ndindex(*counts.shape):
            axes.text(
                j,
                i,
                counts[i, j],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_title(title, fontsize=11)
    return save(figure, path)


def prediction(image, values, title, path, *, words):
    """A PIL image, and beside it the same image under a map G x G called `words`; alone where the map
    is None."""
    panels = 1 if values is None else 2
    figure = Figure(figsize=(3.5 * panels, 3.9), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    pixels = np.asarray(image.convert("RGB"))
    for panel in axes:
        panel.imshow(pixels, interpolation="nearest")
        panel.set_axis_off()
    axes[0].set_title("image")
    if values is not None:
        values = np.asarray(values, dtype=np.float64)
        most = values.max() or 1.0
        shades = Image.fromarray((values / most).astype(np.float32)).resize(image.size, Image.Resampling.NEAREST)
        shades = np.asarray(shades) * most
        drawn = axes[1].imshow(shades, cmap="inferno", alpha=0.65, interpolation="nearest", vmin=0)
        axes[1].set_title(words)
        label = "evidence for the class" if words == "Grad-CAM" else "share of attention"
        figure.colorbar(drawn, ax=axes[1], shrink=0.8, label=label)
    figure.suptitle(title)
    return save(figure, path)


# ------------------------------------------------------------------------------ sheets of tiles, GIFs


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


def save_image(image, path):
    """A PIL image as PNG."""
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    return path


def save_npy(values, path):
    """An array as .npy."""
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, np.asarray(values))
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


def training_frames(history, *, title, most=40):
    """The curves of loss and accuracy as they grow, PIL images: one an epoch, at most `most`."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    lines, panels = [], figure.subplots(1, 2)
    for axes, what in zip(panels, ("loss", "accuracy")):
        for split, words, colour in (("train", "train (running)", COLOURS[0]), ("val", "validation", COLOURS[3])):
            values = [np.nan if row[f"{split}_{what}"] is None else row[f"{split}_{what}"] for row in history]
            if not np.isnan(values).all():
                lines.append((*axes.plot(epochs, values, label=words, color=colour, marker="."), values))
        axes.set(xlabel="epoch", ylabel="cross-entropy loss" if what == "loss" else what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right" if what == "loss" else "lower right", fontsize=8)
    heading = figure.suptitle(f"{title}: epoch {epochs[-1]}", fontsize=10)
    canvas.draw()  # with every value: the axes stay as they then are
    figure.set_layout_engine("none")
    for axes in panels:
        axes.autoscale(False)

    frames = []
    for shown in np.unique(np.linspace(1, len(epochs), min(most, len(epochs))).round().astype(int)):
        for line, values in lines:
            line.set_data(epochs[:shown], values[:shown])
        heading.set_text(f"{title}: epoch {epochs[shown - 1]}")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


SCALE = "Each map is scaled by itself: from 0 (dark) to its largest value (bright)"
OWN_SCALE = "Each map is scaled by itself: from its smallest (dark) to its largest value (bright)"
HIDDEN = ("norm1", "attn", "norm2", "mlp", "block")  # of a block, in the order of computation; its output


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


# -------------------------------------------------------------------------------------- other figures


def scatter(axes, points, labels, classes):
    """Points n x 2 coloured by class: a legend where there are few classes, else names at their middles."""
    few, size = len(classes) <= 20, np.clip(8000 / len(points), 6, 30)
    for i, name in enumerate(classes):
        mine = points[labels == i]
        if not len(mine):
            continue
        axes.scatter(*mine.T, s=size, alpha=0.6, linewidths=0, label=name, **style(i))
        if not few:
            axes.text(*np.median(mine, axis=0), name, fontsize=6, ha="center")
    axes.set(xticks=[], yticks=[])
    if few:
        axes.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def embeddings(panels, labels, classes, title, path):
    """Two-dimensional views of the same points, side by side: panels is [(words, n x 2), ...]."""
    figure = Figure(figsize=(5.2 * len(panels) + 1.2, 4.8), layout="constrained")
    for axes, (words, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        scatter(axes, points, labels, classes)
        axes.set_title(words, fontsize=10)
        if axes.get_legend() and points is not panels[-1][1]:
            axes.get_legend().remove()
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def token_values(values, title, path):
    """A token's values behind each block, layers x width, as colours (orange below 0, purple above)."""
    values = np.asarray(values)
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    most = np.abs(values).max()
    drawn = axes.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set(xlabel="dimension", ylabel="layer", yticks=range(len(values)))
    axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axes, label="value")
    return save(figure, path)


def faithfulness(curves, title, path):
    """Insertion and deletion curves, means over the images: curves is a dict (baseline, kind) -> dict
    name -> values."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, len(curves) // 2, squeeze=False).flat
    for axes, ((baseline, kind), named) in zip(panels, curves.items()):
        for i, (name, values) in enumerate(named.items()):
            look = dict(color="black", linestyle="--") if name == "random" else dict(color=COLOURS[i])
            axes.plot(np.linspace(0, 100, len(values)), values, label=name, **look)
        axes.set(xlabel=f"patches {'removed' if kind == 'deletion' else 'shown'}, %", ylabel="probability", ylim=(0, 1))
        axes.set_title(f"{kind}, {baseline}: {'lower' if kind == 'deletion' else 'higher'} is better", fontsize=10)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


# ------------------------------------------------------------------------------ of several models


def comparison(rows, path):
    """Curves of several models: training and (where there is one) validation loss and accuracy, the mean over seeds
    and the band from the lowest to the highest; the mean of the tests is a marked point behind the last epoch. Rows
    are [(title, histories, tests), ...], a history and a test (a result with "accuracy" and "loss") for each seed."""
    validated = any(history[0]["val_loss"] is not None for _, histories, _ in rows for history in histories)
    columns = {"train": "training (running)", **({"val": "validation"} if validated else {})}
    figure = Figure(figsize=(5.5 * len(columns), 7.5), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False)
    longest = max(len(history) for _, histories, _ in rows for history in histories)
    for row, what in enumerate(("loss", "accuracy")):
        for axes, (split, words) in zip(panels[row], columns.items()):
            for i, (title, histories, tests) in enumerate(rows):
                values = np.full((len(histories), max(map(len, histories))), np.nan)
                for line, history in zip(values, histories):  # of which one may have stopped early
                    line[: len(history)] = np.array([epoch[f"{split}_{what}"] for epoch in history], dtype=float)
                colour = style(i)["color"]
                epochs = np.arange(1, values.shape[1] + 1)
                if not np.isnan(values).all():
                    seeds = f", {len(values)} seeds" if len(values) > 1 else ""
                    marker = "o" if len(epochs) < 3 else None
                    axes.plot(epochs, np.nanmean(values, 0), color=colour, label=title + seeds, marker=marker)
                    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
                    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
                if axes is panels[row, -1] and tests:
                    mean = np.mean([test[what] for test in tests])
                    axes.plot([1.04 * longest], [mean], "*", color=colour, markersize=11, markeredgecolor="black")
            axes.set(xlabel="epoch", ylabel="cross-entropy loss" if what == "loss" else "accuracy", title=words)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        low, high = zip(*(axes.get_ylim() for axes in panels[row]))
        for axes in panels[row]:
            axes.set_ylim(min(low), max(high))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=9, frameon=False)
    if any(tests for _, _, tests in rows):
        panels[1, -1].annotate("stars: test, read once", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=9)
    return save(figure, path)


def accuracy_by(series, xlabel, ylabel, path):
    """Accuracy over the patch size or the number of training images: `series` is a dict title -> [(x, values of
    the seeds), ...]; a series with x None is a level line."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    ticks = sorted({x for points in series.values() for x, _ in points if x is not None})
    for i, (title, points) in enumerate(series.items()):
        colour = style(i)["color"]
        if points[0][0] is None:
            axes.axhline(np.mean(points[0][1]), color=colour, linestyle="--", label=title)
            continue
        points = sorted(points)
        x = [x for x, _ in points]
        axes.plot(x, [np.mean(values) for _, values in points], label=title, **style(i))
        axes.fill_between(
            x, [min(values) for _, values in points], [max(values) for _, values in points], color=colour, alpha=0.2
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return save(figure, path)


def differences(rows, words, path):
    """Differences in accuracy (`words` say which) with their intervals and McNemar's test, of findings.summarise's rows
    that have a "vs"."""
    figure = Figure(figsize=(8, 1.7 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, found in enumerate(rows):
        vs = found["vs"]
        middle, (low, high) = 100 * vs["difference"], (100 * end for end in vs["ci95"])
        axes.plot([low, high], [i, i], color=COLOURS[0], linewidth=2)
        axes.plot([middle], [i], "o", color=COLOURS[0])
        text = f"{middle:+.1f}, {p_value(vs['mcnemar_p'])}"
        axes.annotate(text, (middle, i), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9)
    axes.margins(x=0.15)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{found['title']}\n- {found['vs']['title']}" for found in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    over = "images and seeds" if any(found["vs"]["seeds"] > 1 for found in rows) else "images; one seed"
    axes.set_xlabel(f"difference in {words}, points\n95 % interval over {over}; p by McNemar's test")
    axes.grid(alpha=0.3, axis="x")
    return save(figure, path)


def show(path):
    """Open a picture in the system's viewer, where there is a display."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with Image.open(path) as image:
            image.show(title=str(path))
