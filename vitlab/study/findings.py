"""What a study's trainings say: rows with intervals and differences, and the files that keep them.

cells, failed = run(study)             # vitlab.study.running
rows = summarise(study, cells)
print(tables.comparison_table(rows))
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from vitlab.checkpoint import write_checkpoint
from vitlab.config import SETTINGS, flag
from vitlab.datasets.official import find_index
from vitlab.datasets.splits import has_own_validation
from vitlab.evaluation import metrics
from vitlab.evaluation.report import command_line, git_commit
from vitlab.files import write_json
from vitlab.study.design import Row, Study
from vitlab.study.rows import Difference, ResultRow, Spread

RECIPE_SETTINGS = ("random_erasing", "mixup", "cutmix", "label_smoothing", "ema_decay")  # named if they are on


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What several trainings of a row say of the images that judge the study: S trainings, n images, C classes."""

    seeds: list[int]
    labels: np.ndarray  # S x n
    classes: np.ndarray  # S x n, the predicted class
    probabilities: np.ndarray  # S x n x C

    @property
    def right(self) -> np.ndarray:
        """S x n: whether a training got an image right."""
        return self.classes == self.labels


def load_predictions(study: Study, cells: list[dict]) -> Predictions | None:
    """The predictions for the test images, or with no_test for each seed's own validation images, of those
    cells that left some; None if no cell did."""
    name = "val.npz" if study.no_test else "test.npz"
    paths = {cell["seed"]: study.folder / cell["name"] / name for cell in cells}
    files = {seed: np.load(path) for seed, path in paths.items() if path.exists()}
    if not files:
        return None
    labels, classes, probabilities = (
        np.stack([file[array] for file in files.values()]) for array in ("labels", "predictions", "probabilities")
    )
    return Predictions(list(files), labels.astype(np.int64), classes.astype(np.int64), probabilities.astype(np.float64))


def summarise(study: Study, cells: list[dict]) -> list[ResultRow]:
    """The rows of the table: each row of the study that has finished cells, then the ensembles of their
    seeds, then the cross-validations. The first also have their difference to the baseline."""
    rows, ensembles, folds, right = {}, [], [], {}
    images_differ = study.no_test and not validates_on_own_images(study)
    for row in study.rows():
        runs = [cell for cell in cells if cell["row"] == row.title and cell["kind"] == "seed"]
        if not runs:
            continue
        rows[row.title] = result_row(row.title, row, "seeds", runs, expected=len(study.seeds))
        predictions = load_predictions(study, runs)
        if predictions is None:
            continue
        right[row.title] = dict(zip(predictions.seeds, predictions.right))
        if len(predictions.seeds) > 1:
            rows[row.title].ci95 = metrics.bootstrap_seeds(predictions.right, images_differ=images_differ)
            if not study.no_test:
                ensembles.append(ensemble_row(row, runs, predictions))
    for row in study.rows():
        runs = [cell for cell in cells if cell["row"] == row.title and cell["kind"] == "fold"]
        if runs:
            folds.append(result_row(f"{row.title}, {len(runs)} of {study.folds} folds", row, "folds", runs))
    table = [*rows.values(), *ensembles, *folds]
    for number, result in enumerate(table, start=1):
        result.number = number
    for row in study.rows():
        baseline = study.baseline_of(row)
        if baseline is not None and {row.title, baseline.title} <= set(right):
            rows[row.title].vs = difference(
                right[row.title], right[baseline.title], rows[baseline.title], images_differ=images_differ
            )
    return table


def validates_on_own_images(study: Study) -> bool:
    """Whether all seeds are judged on the same validation images, those of the set: then their predictions are no
    independent samples of images."""
    config = study.config(study.rows()[0], seed=study.seeds[0])
    return has_own_validation(config, find_index(config.dataset, config.data_path))


def result_row(title: str, row: Row, kind: str, runs: list[dict], *, expected: int = 0) -> ResultRow:
    """One table row from its runs' results; the title notes missing seeds. `accuracy` is that of the test
    images, or else that of the best epoch on validation."""
    tests = [run["test"] for run in runs if run["test"]]
    judged = tests or [run["val"] for run in runs if run["val"]]
    first = runs[0]
    return ResultRow(
        title=title if len(runs) >= expected else f"{title}, {len(runs)} of {expected} seeds",
        row=title,
        kind=kind,
        model=row.model,
        train_size=row.size,
        patch_size=row.settings.get("patch_size"),
        cells=[run["name"] for run in runs],
        epochs=first["settings"]["epochs"],
        learning_rate=first["settings"]["learning_rate"],
        parameters=first["parameters"],
        flops=first["flops"],
        images_per_second=float(np.mean([run["images_per_second"] for run in runs])),
        seconds=float(np.mean([run["seconds"] for run in runs])),
        hardware=first["hardware"],
        best_val=Spread.of(run["val"] and run["val"]["accuracy"] for run in runs),
        final_train=Spread.of(run["history"][-1]["train_accuracy"] for run in runs),
        test=measures(tests) if tests else None,
        split="test" if tests else "val" if judged else None,
        accuracy=Spread.of(result["accuracy"] for result in judged),
        ci95=judged[0]["ci95"] if len(judged) == 1 else None,
    )


def measures(tests: list[dict]) -> dict[str, Spread]:
    """The measures of several results on the test images."""
    return {name: Spread.of(test[name] for test in tests) for name in ("accuracy", "loss", "f1_weighted")}


def ensemble_row(row: Row, runs: list[dict], predictions: Predictions) -> ResultRow:
    """The row of a seeds' ensemble: the mean of their probabilities judges, and their costs add up."""
    mean, labels = predictions.probabilities.mean(axis=0), predictions.labels[0]
    loss = -np.log(mean[np.arange(len(labels)), labels].clip(1e-7)).mean()
    test = metrics.summary(labels, mean, loss)
    members = len(predictions.seeds)
    single = result_row(f"{row.title}, ensemble of {members} seeds", row, "ensemble", runs)
    return dataclasses.replace(
        single,
        parameters=members * single.parameters,
        flops=members * single.flops,
        seconds=members * single.seconds,
        images_per_second=None,
        best_val=None,
        final_train=None,
        test=measures([test]),
        accuracy=Spread.of([test["accuracy"]]),
        ci95=test["ci95"],
    )


def difference(
    right: dict[int, np.ndarray], other: dict[int, np.ndarray], baseline: ResultRow, *, images_differ: bool
) -> Difference | None:
    """The difference in accuracy to a baseline, with its interval and McNemar's test. `right` and `other` map
    seeds to whether each image was got right, by the row and by its baseline; None if they share no seed."""
    seeds = sorted(set(right) & set(other))
    if not seeds:
        return None
    first, second = (np.stack([judged[seed] for seed in seeds]) for judged in (right, other))
    gaps = first.astype(np.int8) - second.astype(np.int8)
    return Difference(
        row=baseline.number,
        title=baseline.title,
        seeds=len(seeds),
        difference=float(gaps.mean()),
        ci95=metrics.bootstrap_seeds(gaps, images_differ=images_differ),
        mcnemar_p=max(metrics.mcnemar(a, b) for a, b in zip(first, second)),
    )


def write_results(
    study: Study, cells: list[dict], rows: list[ResultRow], failed: list[tuple[str, str]]
) -> tuple[Path, Path]:
    """final_results.json, and final_results.pth, which holds the predictions too; their paths."""
    contents = {
        "name": study.name,
        "protocol": protocol(study, cells),
        "command": command_line(),
        "git_commit": commit_of(study, cells),
        "seeds": list(study.seeds),
        "rows": [dataclasses.asdict(row) for row in rows],
        "cells": cells,
        "failed": [{"cell": name, "error": error} for name, error in failed],
    }
    loaded = {cell["name"]: load_predictions(study, [cell]) for cell in cells}
    predictions = {name: torch.from_numpy(one.classes[0]) for name, one in loaded.items() if one is not None}
    tensors = study.folder / "final_results.pth"
    path = write_json(study.folder / "final_results.json", contents)
    write_checkpoint(tensors, {**contents, "predictions": predictions})
    return path, tensors


def commit_of(study: Study, cells: list[dict]) -> str | None:
    """By which commits of the code the cells were trained. Older cells do not say it: then that of the results that are
    there, or today's."""
    path = study.folder / "final_results.json"
    before = json.loads(path.read_text(encoding="utf-8"))["git_commit"] if path.exists() else git_commit()
    return ", ".join(dict.fromkeys(filter(None, (cell.get("git_commit", before) for cell in cells)))) or None


def protocol(study: Study, cells: list[dict]) -> str:
    """What all rows share, in a sentence."""
    defaults = {name: setting.default for name, setting in SETTINGS.items()}  # older cells lack newer settings
    settings = [{**defaults, **cell["settings"]} for cell in cells]
    shared = {name: value for name, value in settings[0].items() if all(other[name] == value for other in settings)}
    texts = {
        "dataset": "{}",
        "img_size": "{} pixels",
        "epochs": "{} epochs",
        "batch_size": "batch {}",
        "optimizer": "{}",
        "schedule": "{} schedule",
        "warmup_epochs": "epochs of warmup: {:g}",
        "warmup_steps": "warmup {} steps",
        "augment": "augmentation {}",
        **{name: flag(name)[2:].replace("_", " ") + " {:g}" for name in RECIPE_SETTINGS},
        "val_split": "{:.0%} of the training images held out",
    }
    if study.min_steps:
        texts["epochs"] = f"{{}} epochs, more where that makes fewer than {study.min_steps:,} steps"
        shared["epochs"] = min(cell["epochs"] for cell in settings)
    parts = [text.format(shared[name]) for name, text in texts.items() if shared.get(name)]
    parts += ["no validation split"] * (shared.get("val_split") == 0)
    parts += [f"seed{'s' * (len(study.seeds) > 1)} {', '.join(map(str, study.seeds))}"]
    parts += [f"{cells[0]['hardware']}, {study.jobs} at a time" if study.jobs > 1 else cells[0]["hardware"]]
    return "; ".join(parts)
