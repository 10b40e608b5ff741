"""Which trainings a study has, and which of them are finished."""

import json
import math

import yaml

from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, flag, in_groups
from vitlab.study.design import Cell


def plan(study, rates):
    """Every cell of the study, those of seeds first; `rates` is a dict model -> learning rate."""
    cells = []
    for row in study.rows():
        rate = chosen_rate(study, row, rates)
        for seed in study.seeds:
            name = f"{row.slug}-seed{seed}"
            config = study.config(row, seed=seed, folder_name=name, **{**rate, **row.settings})
            cells.append(Cell(name, row, "seed", config, not study.no_test))
    for row in study.rows() if study.folds else ():
        rate = chosen_rate(study, row, rates)
        for fold in range(study.folds):
            name = f"{row.slug}-fold{fold}of{study.folds}"
            more = dict(folder_name=name, folds=study.folds, fold=fold)
            config = study.config(row, seed=study.seeds[0], **{**rate, **row.settings, **more})
            cells.append(Cell(name, row, "fold", config, False))
    return cells


def chosen_rate(study, row, rates):
    """The learning rate of a row's model as settings, with a min_lr that is not above it."""
    if row.model not in rates:
        return {}
    rate = rates[row.model]
    return {"learning_rate": rate, "min_lr": min(rate, study.settings.get("min_lr", TrainConfig.min_lr))}


def trials(study):
    """The cells that choose learning rates: for each model its first row with the most images."""
    if "learning_rate" in study.settings or "learning_rate" in study.grid or len(study.learning_rates) < 2:
        return []
    cells = []
    for model in study.models:
        rows = [row for row in study.rows() if row.model == model]
        row = max(rows, key=lambda row: row.size or math.inf)  # of several the first
        whole = study.config(row, seed=study.seeds[0])
        epochs = study.lr_epochs or max(1, whole.epochs // 4)
        shorter = {"epochs": epochs, "warmup_epochs": round(whole.warmup_epochs * epochs / whole.epochs, 6)}
        if whole.warmup_steps:
            shorter["warmup_steps"] = max(1, round(whole.warmup_steps * epochs / whole.epochs))
        shorter["val_split"] = whole.val_split or 0.1
        for rate in study.learning_rates:
            name = f"trial-{model}-lr{rate:g}"
            more = {**row.settings, **shorter, "folder_name": name, "learning_rate": rate}
            more["min_lr"] = min(rate, whole.min_lr)
            cells.append(Cell(name, row, "trial", study.config(row, seed=study.seeds[0], **more), False))
    return cells


def what_was_set(config):
    """The settings by which a cell is known: all but where and how it runs."""
    names = [name for name in in_groups("data", "model", "recipe") if name not in ("data_path", "num_workers")]
    return json.loads(json.dumps({name: getattr(config, name) for name in (*names, "seed")}))


def finished(study, cell, *, but=()):
    """The result of a finished cell; None of another. UserError where it was begun with other settings (`but`
    those)."""
    folder = study.folder / cell.name
    if not (folder / "config.yaml").exists():
        return None
    before = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in what_was_set(cell.config).items():
        was = before.get(name, SETTINGS[name].default)
        if was != value and name not in but:
            raise UserError(
                f"{study.folder} holds another study: {cell.name} had {flag(name)} {was}, not {value}; give another "
                "--folder_name"
            )
    result = json.loads((folder / "cell.json").read_text()) if (folder / "cell.json").exists() else {}
    return result if result and (result["test"] or not cell.test) else None


def refuse_others(study):
    """UserError where the folder holds cells of other settings, or finished ones that the study does not have."""
    cells = [*plan(study, {}), *trials(study)]
    for cell in cells:
        finished(study, cell, but=("learning_rate", "min_lr"))  # which are chosen later
    known = {cell.name for cell in cells}
    for file in sorted(study.folder.glob("*/cell.json")):
        if file.parent.name not in known and not file.parent.name.startswith("trial-"):
            raise UserError(
                f"{study.folder} holds another study, with {file.parent.name}; give the same grid or another "
                "--folder_name"
            )
