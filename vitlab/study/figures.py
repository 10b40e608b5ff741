"""Figures of a comparison: curves, confusion matrices, accuracies and differences, attention and Grad-CAM."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from model import VisionTransformer
from vitlab.attention.attribution import grad_cam
from vitlab.attention.maps import describe_pool, look, times_mean, times_uniform
from vitlab.catalog import TITLES, describe
from vitlab.checkpoint import Checkpoint, load_checkpoint
from vitlab.config import SETTINGS
from vitlab.datasets.images import to_image
from vitlab.datasets.splits import load_data
from vitlab.evaluation import metrics
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures
from vitlab.pictures.canvas import COLOURS, save_figure, style
from vitlab.pictures.tiles import (
    OVERLAY,
    TIMES_MEAN,
    TIMES_UNIFORM,
    Scale,
    enlarge,
    layer_name,
    map_over_image,
    sheet,
    tile_side,
)
from vitlab.study.design import Study
from vitlab.study.findings import load_predictions
from vitlab.study.rows import ResultRow, with_most_images
from vitlab.study.tables import p_value


def draw_all(study: Study, cells: list[dict], rows: list[ResultRow]) -> list[Path]:
    """Draw every figure of the study; their paths."""
    by_name = {cell["name"]: cell for cell in cells}
    plain = [row for row in rows if row.kind == "seeds"]
    best = {model: row for model in study.models if (row := best_row(plain, model))}
    return [
        *draw_curves(study, by_name, plain),
        *draw_confusion_matrices(study, by_name, best),
        *draw_accuracies(study, plain),
        *draw_attention(study, by_name, best),
    ]


def best_row(rows: list[ResultRow], model: str) -> ResultRow | None:
    """A model's best row on validation (without one, on the training images), among those with the most
    images."""
    own = with_most_images([row for row in rows if row.model == model])
    return max(own, key=lambda row: (row.best_val or row.final_train).mean, default=None)


def draw_curves(study: Study, by_name: dict[str, dict], rows: list[ResultRow]) -> list[Path]:
    """model_comparison.png, and augmentation_curves.png if there are rows with and without augmentation."""

    def curves(row: ResultRow) -> Curves:
        runs = [by_name[name] for name in row.cells]
        return Curves(row.title, [run["history"] for run in runs], [run["test"] for run in runs if run["test"]])

    rows = with_most_images(rows)
    if not rows:
        return []
    written = [plot_curves([curves(row) for row in rows], study.folder / "model_comparison.png")]
    plain = [row for row in rows if by_name[row.cells[0]]["settings"]["augment"] == "none"]
    augmented = [row for row in rows if row not in plain]
    if plain and augmented:
        pair = [curves(augmented[0]), curves(plain[0])]
        written.append(plot_curves(pair, study.folder / "augmentation_curves.png"))
    return written


def draw_confusion_matrices(study: Study, by_name: dict[str, dict], best: dict[str, ResultRow]) -> list[Path]:
    """confusion_matrix_MODEL.png of each model's best row, the sum over its seeds."""
    dataset, data_path = (study.settings.get(name, SETTINGS[name].default) for name in ("dataset", "data_path"))
    classes, written = describe(dataset, data_path).classes, []
    for model, row in best.items():
        predictions = load_predictions(study, [by_name[name] for name in row.cells])
        if predictions is None:
            continue
        pairs = zip(predictions.labels, predictions.classes)
        counts = sum(metrics.confusion(labels, predicted, len(classes)) for labels, predicted in pairs)
        name = {"vit": "vision_transformer", "simple_cnn": "cnn"}.get(model, model)
        seeds = f"{len(predictions.seeds)} seed{'s' * (len(predictions.seeds) > 1)}"
        title = f"{row.title}: {'validation' if study.no_test else 'test'} images, {seeds}"
        path = study.folder / f"confusion_matrix_{name}.png"
        written.append(figures.plot_confusion_matrix(counts, classes, path, title))
    return written


def draw_accuracies(study: Study, rows: list[ResultRow]) -> list[Path]:
    """accuracy_by_patch_size.png and accuracy_by_train_size.png if these vary, and the differences to the
    baselines, model_comparison_bootstrap.png."""
    measure = "validation accuracy" if study.no_test else "test accuracy"
    rows, written = [row for row in rows if row.accuracy], []

    by_patch, by_size = {}, {}
    for row in with_most_images(rows):
        name = row.row.replace(f", patch {row.patch_size}", "", 1)
        by_patch.setdefault(name, []).append((row.patch_size, row.accuracy.values))
    for row in rows:
        name = row.row.replace(f", {row.train_size or 0:,} images", "", 1)
        by_size.setdefault(name, []).append((row.train_size, row.accuracy.values))
    if len({row.patch_size for row in rows if row.patch_size}) > 1:
        path = study.folder / "accuracy_by_patch_size.png"
        written.append(plot_accuracy_by(by_patch, "patch size, pixels", measure, path))
    if len({row.train_size for row in rows if row.train_size}) > 1:
        path = study.folder / "accuracy_by_train_size.png"
        written.append(plot_accuracy_by(by_size, "training images, validation among them", measure, path))

    compared = [row for row in rows if row.vs]
    if compared:
        written.append(plot_differences(compared, measure, study.folder / "model_comparison_bootstrap.png"))
    return written


def draw_attention(study: Study, by_name: dict[str, dict], best: dict[str, ResultRow]) -> list[Path]:
    """attention_visualization.png and gradcam_visualization.png of the best rows, of the same images."""
    columns, evidence, pictures, names, pool = [], [], [], [], ""
    for model, row in best.items():
        path = Path(by_name[row.cells[0]]["checkpoint"])
        if not path.exists():
            continue
        checkpoint = load_checkpoint(path)
        layer = cam_layer(model, checkpoint.model)
        if model != "vit" and layer is None:
            continue
        images, labels = sample_images(study, checkpoint)
        if images is None:
            return []
        if not pictures:
            pictures = [to_image(image, checkpoint.mean, checkpoint.std) for image in images]
        names = [checkpoint.classes[label] for label in labels]
        with torch.no_grad():
            guesses = checkpoint.model(images).argmax(-1)
        maps = times_mean(grad_cam(checkpoint.model, images, guesses, layer=layer))
        captions = [f"{TITLES[model]}\ntaken for {checkpoint.classes[guess]}" for guess in guesses]
        evidence.append((captions, maps))
        if model == "vit":
            columns = attention_columns(checkpoint.model, images)
            pool = describe_pool(checkpoint.model)
    written = []
    if columns:
        title = f"{best['vit'].title}: attention from {pool}, mean of the heads"
        image = overlays(pictures, names, columns, title, TIMES_UNIFORM)
        written.append(canvas.save_image(image, study.folder / "attention_visualization.png"))
    if evidence:
        title = f"{study.name}: Grad-CAM for the predicted class"
        image = overlays(pictures, names, evidence, title, TIMES_MEAN)
        written.append(canvas.save_image(image, study.folder / "gradcam_visualization.png"))
    return written


def sample_images(study: Study, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """(six images B x in_chans x img_size x img_size, labels B) of the split that judges the study, always the
    same ones, as the checkpoint's model takes them; (None, None) if that split is empty."""
    split = "val" if study.no_test else "test"
    data_path = study.settings.get("data_path", checkpoint.config.data_path)
    config = dataclasses.replace(checkpoint.config, data_path=data_path, device="cpu")
    batches = getattr(load_data(config, splits=(split,), mean=checkpoint.mean, std=checkpoint.std), split)
    return batches.sample(6) if batches is not None else (None, None)


def attention_columns(model: VisionTransformer, images: torch.Tensor) -> list[tuple[list[str], torch.Tensor]]:
    """(a caption for each image, maps B x G x G, times uniform) of the first, the middle and the last block: what the
    pooled token attends to, the mean of the heads."""
    attention = look(model, images).from_pooled.mean(2)  # B x L x N
    depth = attention.shape[1]
    layers = sorted({0, depth // 2, depth - 1})
    return [([layer_name(layer, depth)] * len(images), times_uniform(attention[:, layer])) for layer in layers]


def overlays(
    pictures: list[Image],
    names: list[str],
    columns: list[tuple[list[str], torch.Tensor]],
    title: str,
    scale: Scale,
) -> Image:
    """A sheet with one row for each picture: the picture under its class's name, then each column's map, alone and over
    the picture."""
    rows = []
    for i, picture in enumerate(pictures):
        side = tile_side(picture.width)
        maps = [map_over_image(picture, maps[i], side, captions[i], scale) for captions, maps in columns]
        rows.append([(names[i], enlarge(picture, side)), *maps])
    return sheet(rows, title=title, note=OVERLAY, scale=scale)


BAND = "lines: mean of the seeds; bands: from the lowest to the highest"


class Curves(NamedTuple):
    """The curves of one row: a history and, if the test images were read, a result for each seed."""

    title: str
    histories: list[list[dict]]
    tests: list[dict]


def plot_curves(rows: list[Curves], path: Path) -> Path:
    """Training and (if there is one) validation loss and accuracy: the mean over seeds and the band from the
    lowest to the highest. The mean of the tests is a marked point behind the last epoch."""
    validated = any(history[0]["val_loss"] is not None for row in rows for history in row.histories)
    columns = {"train": "training (running)", **({"val": "validation"} if validated else {})}
    figure = Figure(figsize=(5.5 * len(columns), 7.5), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False)
    longest = max(len(history) for row in rows for history in row.histories)
    for panel_row, what in zip(panels, ("loss", "accuracy")):
        for axes, (split, title) in zip(panel_row, columns.items()):
            for i, row in enumerate(rows):
                plot_band(axes, row, f"{split}_{what}", style(i)["color"])
                if axes is panel_row[-1] and row.tests:
                    mean = np.mean([test[what] for test in row.tests])
                    colour = style(i)["color"]
                    axes.plot([1.04 * longest], [mean], "*", color=colour, markersize=11, markeredgecolor="black")
            figures.label_axes(axes, what)
            axes.set_title(title)
        low, high = zip(*(axes.get_ylim() for axes in panel_row))
        for axes in panel_row:
            axes.set_ylim(min(low), max(high))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=9, frameon=False)
    if any(len(row.histories) > 1 for row in rows):
        figure.suptitle(BAND, fontsize=9)
    if any(row.tests for row in rows):
        panels[1, -1].annotate("stars: test, read once", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=9)
    return save_figure(figure, path)


def plot_band(axes: Axes, row: Curves, column: str, colour: str) -> None:
    """One column of the histories over the epochs: mean and range of the seeds, some of which may have stopped
    early."""
    values = np.full((len(row.histories), max(map(len, row.histories))), np.nan)
    for curve, history in zip(values, row.histories):
        curve[: len(history)] = np.array([epoch[column] for epoch in history], dtype=float)
    if np.isnan(values).all():
        return
    epochs = np.arange(1, values.shape[1] + 1)
    label = row.title + (f", {len(values)} seeds" if len(values) > 1 else "")
    marker = "o" if len(epochs) < 3 else None
    axes.plot(epochs, np.nanmean(values, 0), color=colour, label=label, marker=marker)
    axes.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.2, linewidth=0)


def plot_accuracy_by(series: dict[str, list[tuple]], xlabel: str, ylabel: str, path: Path) -> Path:
    """Accuracy over the patch size or the number of training images: `series` maps titles to [(x, values of the
    seeds), ...]; a series with x None is a level line."""
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
    if any(len(values) > 1 for points in series.values() for _, values in points):
        axes.set_title(BAND, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return save_figure(figure, path)


def plot_differences(rows: list[ResultRow], measure: str, path: Path) -> Path:
    """Differences in accuracy (`measure` says which) of rows that have a baseline, with their intervals and
    McNemar's test."""
    figure = Figure(figsize=(8, 1.7 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, vs in enumerate(row.vs for row in rows):
        middle, (low, high) = 100 * vs.difference, (100 * end for end in vs.ci95)
        axes.plot([low, high], [i, i], color=COLOURS[0], linewidth=2)
        axes.plot([middle], [i], "o", color=COLOURS[0])
        text = f"{middle:+.1f}, {p_value(vs.mcnemar_p)}"
        place = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9)
        axes.annotate(text, (middle, i), **place, bbox=dict(facecolor="white", edgecolor="none", pad=1))
    axes.margins(x=0.15)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row.title}\n- {row.vs.title}" for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    over = "images and seeds" if any(row.vs.seeds > 1 for row in rows) else "images; one seed"
    axes.set_xlabel(f"difference in {measure}, points\n95 % interval over {over}; p by McNemar's test")
    axes.grid(alpha=0.3, axis="x")
    return save_figure(figure, path)
