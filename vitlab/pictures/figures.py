"""Numbers and maps -> figures and GIFs. What takes a path writes that one file and returns it."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vitlab.pictures.canvas import COLOURS, save, style


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
