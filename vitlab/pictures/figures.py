"""Numbers and maps -> figures. Each plot_* function writes one PNG to `path` and returns the path."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from vitlab.pictures.canvas import COLOURS, choose_fonts, save_figure, save_image, style
from vitlab.pictures.tiles import TIMES_MEAN, TIMES_UNIFORM, enlarge, sheet, side_by_side, tile_side

MANY_CLASSES = 20  # with more, names are written smaller and there is no legend


def metric_values(history: Sequence[Mapping], split: str, metric: str) -> np.ndarray:
    """One value per epoch, NaN if there is none: the column "train_loss", say, of the rows of metrics.csv."""
    return np.array([row[f"{split}_{metric}"] for row in history], dtype=float)  # None becomes NaN


def label_axes(axes: Axes, metric: str) -> None:
    """Epochs against "loss" or "accuracy"."""
    axes.set(xlabel="epoch", ylabel="cross-entropy loss" if metric == "loss" else "accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def plot_curve(
    history: Sequence[Mapping],
    metric: str,
    path: str | Path,
    *,
    test: float | None = None,
    test_readings: int = 1,
    best_epoch: int | None = None,
    soft_labels: bool = False,
) -> str | Path:
    """Training and validation "loss" or "accuracy" over the epochs.

    test: one marked point, at `best_epoch`, whose weights were tested; the legend says how often the test images were
    read, of which this is the last reading. soft_labels: as for running_label.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 3 else None
    for split, label in (("train", running_label(soft_labels)), ("val", "validation")):
        values = metric_values(history, split, metric)
        if not np.isnan(values).all():
            axes.plot(epochs, values, label=label, marker=marker)
    if test is not None:
        readings = "once" if test_readings == 1 else f"read {test_readings} times"
        axes.plot([best_epoch], [test], "*", color="black", markersize=12, label=f"test, {readings}: {test:.4f}")
    label_axes(axes, metric)
    axes.legend()
    return save_figure(figure, path)


def running_label(soft_labels: bool) -> str:
    """What a legend calls the training curve. soft_labels: its loss is against smoothed or mixed labels, and cannot be
    compared with the other splits'."""
    return f"train (running, augmented{', soft labels' if soft_labels else ''})"


def wrap(title: str, figure: Figure, fontsize: int) -> str:
    """A title in lines that fit the width of a figure; its own lines stay apart."""
    width = int(figure.get_figwidth() * 120 / fontsize)
    return "\n".join(part for line in title.split("\n") for part in textwrap.wrap(line, width))


def training_frames(
    history: Sequence[Mapping], *, title: str, soft_labels: bool = False, most: int = 40
) -> list[Image.Image]:
    """Frames of a GIF: the curves of loss and accuracy as they grow, one per epoch, at most `most`. soft_labels: as for
    running_label."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    lines, panels = [], figure.subplots(1, 2)
    for axes, metric in zip(panels, ("loss", "accuracy")):
        for split, label, colour in (
            ("train", running_label(soft_labels), COLOURS[0]),
            ("val", "validation", COLOURS[3]),
        ):
            values = metric_values(history, split, metric)
            if not np.isnan(values).all():
                lines.append((*axes.plot(epochs, values, label=label, color=colour, marker="."), values))
        label_axes(axes, metric)
        axes.legend(loc="upper right" if metric == "loss" else "lower right", fontsize=8)
    heading = figure.suptitle(wrap(f"{title}: epoch {epochs[-1]}", figure, 10), fontsize=10)
    choose_fonts(figure)
    canvas.draw()  # with every value, so that the axes fit all of them; from here on they stay as they are
    figure.set_layout_engine("none")
    for axes in panels:
        axes.autoscale(False)

    frames = []
    for shown in np.unique(np.linspace(1, len(epochs), min(most, len(epochs))).round().astype(int)):
        for line, values in lines:
            line.set_data(epochs[:shown], values[:shown])
        heading.set_text(wrap(f"{title}: epoch {epochs[shown - 1]}", figure, 10))
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


def plot_confusion_matrix(counts: ArrayLike, classes: Sequence[str], path: str | Path, title: str = "") -> str | Path:
    """A confusion matrix C x C (rows true, columns predicted), coloured by the share of the row. Counts are
    written into the cells if there are few classes."""
    counts = np.asarray(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    many = len(classes) > MANY_CLASSES
    side = max(5.0, min(0.6 * len(classes), 16.0)) + 1
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    ticks, fontsize = range(len(classes)), 5 if many else 9
    slant = {"rotation": 90, "ha": "center"} if many else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, classes, fontsize=fontsize, **slant)
    axes.set_yticks(ticks, classes, fontsize=fontsize)
    if not many:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_title(wrap(title, figure, 11), fontsize=11)
    return save_figure(figure, path)


def plot_prediction(
    image: Image.Image, values: ArrayLike | None, title: str, path: str | Path, *, label: str
) -> str | Path:
    """A PIL image, and next to it a map G x G of it, which is called `label`, alone and over the image; None draws no
    map. Attention is given as times uniform, Grad-CAM as times its mean."""
    side, scale = tile_side(image.width, 224), TIMES_MEAN if label == "Grad-CAM" else TIMES_UNIFORM
    if values is None:
        return save_image(sheet([[("image", enlarge(image, side))]], title=title, scale=None), path)
    tiles = side_by_side(image, values, side, ("image", label), scale)
    return save_image(sheet([tiles], title=title, scale=scale), path)


def scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Points n x 2 coloured by class. A legend names few classes; the names of many stand at their medians."""
    many = len(classes) > MANY_CLASSES
    size = np.clip(8000 / len(points), 6, 30)
    for i, name in enumerate(classes):
        of_class = points[labels == i]
        if not len(of_class):
            continue
        axes.scatter(*of_class.T, s=size, alpha=0.6, linewidths=0, label=name, **style(i))
        if many:
            axes.text(*np.median(of_class, axis=0), name, fontsize=6, ha="center")
    axes.set(xticks=[], yticks=[])
    if not many:
        axes.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def plot_embeddings(
    panels: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, classes: Sequence[str], title: str, path: str | Path
) -> str | Path:
    """Two-dimensional views of the same points, side by side: pairs of a heading and points n x 2."""
    figure = Figure(figsize=(5.2 * len(panels) + 1.2, 4.8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, points) in zip(all_axes, panels):
        scatter(axes, points, labels, classes)
        axes.set_title(heading, fontsize=10)
        if axes.get_legend() and axes is not all_axes[-1]:
            axes.get_legend().remove()
    figure.suptitle(wrap(title, figure, 11), fontsize=11)
    return save_figure(figure, path)


def plot_token_values(values: ArrayLike, title: str, path: str | Path) -> str | Path:
    """A token's values L x D after each layer, as colours (orange below 0, purple above)."""
    values = np.asarray(values)
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    most = np.abs(values).max()
    image = axes.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set(xlabel="dimension", ylabel="layer")
    axes.set_yticks(range(len(values)), range(1, len(values) + 1))
    figure.suptitle(wrap(title, figure, 10), fontsize=10)
    figure.colorbar(image, ax=axes, label="value")
    return save_figure(figure, path)


def plot_faithfulness(
    curves: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], title: str, path: str | Path
) -> str | Path:
    """Deletion and insertion curves, means over the images: (baseline, kind) -> name of the map -> values."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, len(curves) // 2, squeeze=False).flat
    for axes, ((baseline, kind), by_map) in zip(panels, curves.items()):
        for i, (name, values) in enumerate(by_map.items()):
            line = {"color": "black", "linestyle": "--"} if name == "random" else {"color": COLOURS[i]}
            axes.plot(np.linspace(0, 100, len(values)), values, label=name, **line)
        axes.set(xlabel=f"patches {'removed' if kind == 'deletion' else 'shown'}, %", ylabel="probability", ylim=(0, 1))
        axes.set_title(f"{kind}, {baseline}: {'lower' if kind == 'deletion' else 'higher'} is better", fontsize=10)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, path)
