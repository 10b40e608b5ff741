"""Figures of a comparison."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from vitlab.attention.attribution import grad_cam
from vitlab.attention.maps import describe_pool, look, to_grid
from vitlab.catalog import TITLES, describe
from vitlab.checkpoint import load_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.images import to_image
from vitlab.datasets.splits import load_data
from vitlab.evaluation import metrics
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures
from vitlab.pictures.canvas import COLOURS, save_figure, style
from vitlab.pictures.tiles import SCALE, enlarge, overlay, sheet
from vitlab.study import tables
from vitlab.study.findings import judged
from vitlab.study.tables import p_value


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
    return save_figure(figure, path)


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
    return save_figure(figure, path)


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
    return save_figure(figure, path)


def best_row(lines, model):
    """The line of a model's best row on validation (without one, on the training images): of those with the
    most images."""
    mine = tables.of_most_images([found for found in lines if found["model"] == model and found["kind"] == "seeds"])
    return max(mine, key=lambda found: (found["best_val"] or found["final_train"])["mean"], default=None)


def draw_all(study, cells, lines):
    """Draw every figure of the study; their paths."""
    by_name = {cell["name"]: cell for cell in cells}
    folder, written = study.folder, []
    plain = [found for found in lines if found["kind"] == "seeds"]
    shown = tables.of_most_images(plain)

    def histories(found):
        mine = [by_name[name] for name in found["cells"]]
        return found["title"], [cell["history"] for cell in mine], [cell["test"] for cell in mine if cell["test"]]

    if shown:
        written.append(comparison([histories(found) for found in shown], folder / "model_comparison.png"))
    bare = [found for found in shown if by_name[found["cells"][0]]["settings"]["augment"] == "none"]
    full = [found for found in shown if by_name[found["cells"][0]]["settings"]["augment"] != "none"]
    if bare and full:
        pair = [histories(full[0]), histories(bare[0])]
        written.append(comparison(pair, folder / "augmentation_curves.png"))

    best = {model: best_row(lines, model) for model in study.models}
    best = {model: found for model, found in best.items() if found}
    classes = describe(
        study.settings.get("dataset", "cifar10"), study.settings.get("data_path", TrainConfig.data_path)
    ).classes
    for model, found in best.items():
        labels, predictions, _ = judged(study, [by_name[name] for name in found["cells"]])
        if len(predictions):
            counts = sum(metrics.confusion(*each, len(classes)) for each in zip(labels, predictions))
            name = {"vit": "vision_transformer", "simple_cnn": "cnn"}.get(model, model)
            seeds = f"{len(predictions)} seed{'s' * (len(predictions) > 1)}"
            title = f"{found['title']}: {'validation' if study.no_test else 'test'} images, {seeds}"
            written.append(
                figures.plot_confusion_matrix(counts, classes, folder / f"confusion_matrix_{name}.png", title)
            )

    plain = [found for found in plain if found["accuracy"]]
    words = "validation accuracy" if study.no_test else "test accuracy"
    for by, label in (("patch_size", "patch size, pixels"), ("train_size", "training images, validation among them")):
        values = sorted({found[by] for found in plain if found[by]})
        if len(values) < 2:
            continue
        series = {}
        for found in plain:
            if by == "patch_size" and found not in shown:
                continue
            suffix = {"patch_size": f", patch {found[by]}", "train_size": f", {found[by] or 0:,} images"}[by]
            name = found["row"].replace(suffix, "", 1)
            series.setdefault(name, []).append((found[by], found["accuracy"]["values"]))
        written.append(accuracy_by(series, label, words, folder / f"accuracy_by_{by}.png"))

    against = [found for found in plain if found["vs"]]
    if against:
        written.append(differences(against, words, folder / "model_comparison_bootstrap.png"))
    return written + attention_figures(study, by_name, best)


def attention_figures(study, by_name, best):
    """attention_visualization.png and gradcam_visualization.png of the best rows, of the same images."""
    found = {
        model: load_checkpoint(by_name[line["cells"][0]]["checkpoint"])
        for model, line in best.items()
        if Path(by_name[line["cells"][0]]["checkpoint"]).exists()
    }
    looking = {model: one for model, one in found.items() if model == "vit" or cam_layer(model, one.model) is not None}
    if not looking:
        return []
    split = "val" if study.no_test else "test"
    attention, evidence, written, pictures = [], [], [], None
    for model, one in looking.items():
        data_path = study.settings.get("data_path", one.config.data_path)
        config = dataclasses.replace(one.config, data_path=data_path, device="cpu")
        batches = getattr(load_data(config, splits=(split,), mean=one.mean, std=one.std), split)
        if batches is None:
            return []
        images, labels = batches.sample(6)  # the same ones, in the size that the model takes
        pictures = pictures or [to_image(image, one.mean, one.std) for image in images]
        with torch.no_grad():
            guesses = one.model(images).argmax(-1)
        maps = grad_cam(one.model, images, guesses, layer=cam_layer(model, one.model))
        evidence.append((TITLES[model], [one.classes[i] for i in guesses], maps))
        if model == "vit":
            seen = look(one.model, images).from_pooled.mean(2)  # B x L x N
            depth = seen.shape[1]
            for layer in sorted({0, depth // 2, depth - 1}):
                attention.append((f"layer {layer} of 0 to {depth - 1}", to_grid(seen[:, layer])))

    def draw(columns, title, name):
        tiles = []
        for i, picture in enumerate(pictures):
            tiles.append((one.classes[labels[i]], enlarge(picture, 128)))
            for words, values in columns(i):
                tiles.append((words, overlay(picture, values, 128)))
        width = len(tiles) // len(pictures)
        image = sheet(tiles, columns=width, title=title, note=SCALE)
        written.append(canvas.save_image(image, study.folder / name))

    if attention:
        pool = describe_pool(looking["vit"].model)
        draw(
            lambda i: [(f"{words}\nup to {maps[i].max():.2f}", maps[i]) for words, maps in attention],
            f"{best['vit']['title']}: attention from {pool}, mean of the heads",
            "attention_visualization.png",
        )
    draw(
        lambda i: [(f"{title}\ntaken for {guesses[i]}", maps[i]) for title, guesses, maps in evidence],
        f"{study.name}: Grad-CAM for the predicted class",
        "gradcam_visualization.png",
    )
    return written
