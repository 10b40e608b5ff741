"""What a study's trainings say: rows with intervals and differences, figures, files.

cells, failed = running.run(asked)
lines = summarise(asked, cells)
print(tables.comparison(lines))
figures(asked, cells, lines)
"""

import numpy as np
import torch

from vitlab.checkpoint import write_checkpoint
from vitlab.config import flag
from vitlab.evaluation import metrics
from vitlab.evaluation.report import command_line, git_commit
from vitlab.files import write_json

PIECES = ("random_erasing", "mixup", "cutmix", "label_smoothing", "ema_decay")  # of a recipe, where they are on


def predictions_file(study, cell):
    """A cell's predictions of the images that judge the study: the test images, or, with no_test, its seed's own
    validation images."""
    return study.folder / cell["name"] / ("val.npz" if study.no_test else "test.npz")


def judged(study, cells):
    """(labels S x n, predictions S x n, probabilities S x n x C) of those cells that have predictions."""
    files = [np.load(path) for cell in cells if (path := predictions_file(study, cell)).exists()]
    if not files:
        return [], [], []
    labels, predictions, shares = (
        np.stack([file[name] for file in files]) for name in ("labels", "predictions", "probabilities")
    )
    return labels.astype(np.int64), predictions.astype(np.int64), shares.astype(np.float64)


def spread(values):
    """{"mean", "sd" (of the sample; None of a single value), "values"}; None where there are none."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def summarise(study, cells):
    """The rows of the table, dicts: of each row of the study with finished cells, after them the ensembles of
    their seeds and the cross-validations. "vs" is the difference in accuracy (test, or with no_test validation) to the
    reference, of the seeds that both have: {"row", "title", "seeds" (how many), "difference", "ci95", "mcnemar_p"
    (the largest)}."""
    lines, ensembles, right = [], [], {}  # title -> seed -> n: whether each image was got right
    interval = metrics.bootstrap_nested if study.no_test else metrics.bootstrap_crossed
    for row in study.rows():
        mine = [cell for cell in cells if cell["row"] == row.title and cell["kind"] == "seed"]
        if not mine:
            continue
        labels, predictions, shares = judged(study, mine)
        if len(predictions):
            seeds = [cell["seed"] for cell in mine if predictions_file(study, cell).exists()]
            right[row.title] = dict(zip(seeds, predictions == labels))
        lines.append(line(row.title, row, "seeds", mine, asked=len(study.seeds)))
        if len(predictions) > 1:
            lines[-1]["ci95"] = interval(predictions == labels)
        if len(predictions) > 1 and not study.no_test:
            mean, labels = shares.mean(axis=0), labels[0]
            loss = -np.log(mean[np.arange(len(labels)), labels].clip(1e-7)).mean()
            test = metrics.summary(labels, mean.argmax(-1), loss)
            ensemble = line(f"{row.title}, ensemble of {len(shares)} seeds", row, "ensemble", mine)
            for name in ("parameters", "flops", "seconds"):
                ensemble[name] *= len(shares)
            ensemble["test"] = {name: spread([test[name]]) for name in ("accuracy", "loss", "f1_weighted")}
            ensemble.update(ci95=test["ci95"], best_val=None, final_train=None, images_per_second=None)
            ensemble["accuracy"] = ensemble["test"]["accuracy"]
            ensembles.append(ensemble)
    lines += ensembles
    for row in study.rows():
        mine = [cell for cell in cells if cell["row"] == row.title and cell["kind"] == "fold"]
        if mine:
            lines.append(line(f"{row.title}, {len(mine)} of {study.folds} folds", row, "folds", mine))
    for number, found in enumerate(lines, start=1):
        found["number"] = number

    rows = {found["row"]: found for found in lines if found["kind"] == "seeds"}
    for row in study.rows():
        other = study.reference_of(row)
        if other is None or not {row.title, other.title} <= set(right):
            continue
        seeds = sorted(set(right[row.title]) & set(right[other.title]))
        if seeds:
            first, second = (np.stack([right[title][seed] for seed in seeds]) for title in (row.title, other.title))
            gaps = first.astype(np.int8) - second.astype(np.int8)
            rows[row.title]["vs"] = {
                "row": rows[other.title]["number"],
                "title": rows[other.title]["title"],
                "seeds": len(seeds),
                "difference": float(gaps.mean()),
                "ci95": interval(gaps),
                "mcnemar_p": max(metrics.mcnemar(a, b) for a, b in zip(first, second)),
            }
    return lines


def line(title, row, kind, mine, asked=0):
    """One row of the table, of the results of its cells; where they are fewer than asked for, its title says so.
    "accuracy" is that of "split": of the test images, or else of the best epoch on validation."""
    tests = [cell["test"] for cell in mine if cell["test"]]
    results = tests or [cell["val"] for cell in mine if cell["val"]]
    return {
        "title": title if len(mine) >= asked else f"{title}, {len(mine)} of {asked} seeds",
        "row": title,
        "kind": kind,
        "model": row.model,
        "train_size": row.size,
        "patch_size": row.settings.get("patch_size"),
        "cells": [cell["name"] for cell in mine],
        "epochs": mine[0]["settings"]["epochs"],
        "learning_rate": mine[0]["settings"]["learning_rate"],
        "parameters": mine[0]["parameters"],
        "flops": mine[0]["flops"],
        "images_per_second": float(np.mean([cell["images_per_second"] for cell in mine])),
        "seconds": float(np.mean([cell["seconds"] for cell in mine])),
        "hardware": mine[0]["hardware"],
        "best_val": spread([cell["val"] and cell["val"]["accuracy"] for cell in mine]),
        "final_train": spread([cell["history"][-1]["train_accuracy"] for cell in mine]),
        "test": {name: spread([test[name] for test in tests]) for name in ("accuracy", "loss", "f1_weighted")}
        if tests
        else None,
        "split": "test" if tests else "val" if results else None,
        "accuracy": spread([result["accuracy"] for result in results]),
        "ci95": results[0]["ci95"] if len(results) == 1 else None,
        "vs": None,
    }


def write_results(study, cells, lines, failed):
    """final_results.json and final_results.pth (the predictions too); their paths."""
    contents = {
        "name": study.name,
        "protocol": protocol(study, cells),
        "command": command_line(),
        "git_commit": git_commit(),
        "seeds": list(study.seeds),
        "rows": lines,
        "cells": cells,
        "failed": [{"cell": name, "error": error} for name, error in failed],
    }
    path = write_json(study.folder / "final_results.json", contents)
    predictions = {cell["name"]: torch.from_numpy(each) for cell in cells for each in judged(study, [cell])[1]}
    tensors = study.folder / "final_results.pth"
    write_checkpoint(tensors, {**contents, "predictions": predictions})
    return [path, tensors]


def protocol(study, cells):
    """What all rows share, in a sentence."""
    settings = [cell["settings"] for cell in cells]
    shared = {name: value for name, value in settings[0].items() if all(other[name] == value for other in settings)}
    words = {
        "dataset": "{}",
        "img_size": "{} pixels",
        "epochs": "{} epochs",
        "batch_size": "batch {}",
        "optimizer": "{}, cosine schedule",
        "warmup_epochs": "epochs of warmup: {:g}",
        "warmup_steps": "warmup {} steps",
        "augment": "augmentation {}",
        **{name: flag(name)[2:].replace("_", " ") + " {:g}" for name in PIECES},
        "val_split": "{:.0%} of the training images held out",
    }
    if study.min_steps:
        words["epochs"] = f"{{}} epochs, more where that makes fewer than {study.min_steps:,} steps"
        shared["epochs"] = min(found["epochs"] for found in settings)
    parts = [text.format(shared[name]) for name, text in words.items() if shared.get(name)]
    parts += ["no validation split"] * (shared.get("val_split") == 0)
    parts += [f"seed{'s' * (len(study.seeds) > 1)} {', '.join(map(str, study.seeds))}"]
    parts += [f"{cells[0]['hardware']}, {study.jobs} at a time" if study.jobs > 1 else cells[0]["hardware"]]
    return "; ".join(parts)
