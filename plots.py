"""Numbers and maps -> figures. Every function writes one file and returns its path."""

import os
import sys

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from checkpoint import replacing


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


def confusion_matrix(counts, classes, path):
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
    return save(figure, path)


def prediction(image, attention, title, path, *, words="CLS attention, last block"):
    """A PIL image, and beside it the same image under its attention map (G x G), called `words`."""
    figure = Figure(figsize=(7, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    pixels = np.asarray(image.convert("RGB"))
    weights = np.asarray(attention, dtype=np.float64)
    shades = Image.fromarray((weights / weights.max()).astype(np.float32)).resize(image.size, Image.Resampling.NEAREST)
    left.imshow(pixels, interpolation="nearest")
    left.set_title("image")
    right.imshow(pixels, interpolation="nearest")
    shades = np.asarray(shades) * weights.max()
    drawn = right.imshow(shades, cmap="inferno", alpha=0.65, interpolation="nearest", vmin=0)
    right.set_title(words)
    for axes in (left, right):
        axes.set_axis_off()
    figure.colorbar(drawn, ax=right, shrink=0.8, label="share of attention")
    figure.suptitle(title)
    return save(figure, path)


def show(path):
    """Open a picture in the system's viewer, where there is a display."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with Image.open(path) as image:
            image.show(title=str(path))
