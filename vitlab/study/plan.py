"""Which trainings a study has, and which of them are finished."""

import json
import math
from collections.abc import Container

import torch
import yaml

from vitlab.cli import UserError
from vitlab.config import TrainConfig, changed_settings, flag, in_groups
from vitlab.datasets.official import list_split
from vitlab.models.registry import build_model
from vitlab.study.design import Cell, Row, Study
from vitlab.training.optimizers import check_optimizer

NOT_RECORDED = ("data_path", "num_workers")  # where and how a cell ran, not what it is
RECORDED = [name for name in (*in_groups("data", "model", "recipe"), "seed") if name not in NOT_RECORDED]


def check_sizes(study: Study) -> None:
    """UserError if the model of a row cannot be built, or trained as its settings say, or if there are fewer training
    images than a row asks for. Builds shapes only, no weights."""
    images = {}  # of a data set, how many there are
    for row in study.rows():
        config = study.config(row, seed=study.seeds[0])
        with torch.device("meta"):
            check_optimizer(build_model(config), config)
        if wanted := config.num_train_images:
            place = config.dataset, config.data_path
            if place not in images:
                images[place] = len(list_split(config, "train")[0])
            if wanted > images[place]:
                name = "--train_sizes" if row.size else "--num_train_images"
                raise UserError(f"{name} {wanted}: {config.dataset} has {images[place]} training images; ask for fewer")


def plan(study: Study, rates: dict[str, float]) -> list[Cell]:
    """Every cell of the study, those of seeds first; `rates` maps models to learning rates."""
    cells = []
    for row in study.rows():
        rate = chosen_rate(study, row, rates)
        for seed in study.seeds:
            name = f"{row.slug}-seed{seed}"
            config = study.config(row, seed=seed, folder_name=name, **rate)
            cells.append(Cell(name, row, "seed", config, not study.no_test))
    for row in study.rows() if study.folds else ():
        rate = chosen_rate(study, row, rates)
        for fold in range(study.folds):
            name = f"{row.slug}-fold{fold}of{study.folds}"
            more = dict(folder_name=name, folds=study.folds, fold=fold)
            config = study.config(row, seed=study.seeds[0], **rate, **more)
            cells.append(Cell(name, row, "fold", config, False))
    return cells


def chosen_rate(study: Study, row: Row, rates: dict[str, float]) -> dict[str, float]:
    """The learning rate of a row's model as settings, with a min_lr that is not above it; what the row sets itself
    is left out."""
    if row.model not in rates:
        return {}
    rate = rates[row.model]
    chosen = {"learning_rate": rate, "min_lr": min(rate, study.settings.get("min_lr", TrainConfig.min_lr))}
    return {name: value for name, value in chosen.items() if name not in row.settings}


def trials(study: Study) -> list[Cell]:
    """The cells that choose learning rates: for each model its first row with the most images. Empty if a
    learning rate is given."""
    if "learning_rate" in study.settings or "learning_rate" in study.grid or len(study.learning_rates) < 2:
        return []
    cells = []
    for model in study.models:
        rows = [row for row in study.rows() if row.model == model]
        row = max(rows, key=lambda row: row.size or math.inf)  # the first, if several have as many
        full = study.config(row, seed=study.seeds[0])
        epochs = study.lr_epochs or max(1, full.epochs // 4)
        shorter = {"epochs": epochs, "warmup_epochs": round(full.warmup_epochs * epochs / full.epochs, 6)}
        if full.warmup_steps:
            shorter["warmup_steps"] = max(1, round(full.warmup_steps * epochs / full.epochs))
        shorter["val_split"] = full.val_split or 0.1
        for rate in study.learning_rates:
            name = f"trial-{model}-lr{rate:g}"
            more = {**row.settings, **shorter, "folder_name": name, "learning_rate": rate}
            more["min_lr"] = min(rate, full.min_lr)
            cells.append(Cell(name, row, "trial", study.config(row, seed=study.seeds[0], **more), False))
    return cells


def recorded_settings(config: TrainConfig) -> dict:
    """The settings that identify a cell, as JSON holds them: all but where and how it runs."""
    return json.loads(json.dumps({name: getattr(config, name) for name in RECORDED}))


def finished_result(study: Study, cell: Cell, *, ignoring: Container[str] = ()) -> dict | None:
    """The result of a finished cell, None if it is not finished. Raises UserError if it was begun with other
    settings, those in `ignoring` aside."""
    folder = study.folder / cell.name
    if not (folder / "config.yaml").exists():
        return None
    before = yaml.safe_load((folder / "config.yaml").read_text())
    chosen = [name for name in ("crop_scale", "crop_pct") if not getattr(cell.config, name)]  # by load_data
    names = [name for name in RECORDED if name not in ignoring and name not in chosen]
    for name, (was, now) in changed_settings(before, cell.config, names).items():
        raise UserError(
            f"{study.folder} holds another study: {cell.name} had {flag(name)} {was}, not {now}; give another "
            "--folder_name"
        )
    result = json.loads((folder / "cell.json").read_text()) if (folder / "cell.json").exists() else {}
    return result if result and (result["test"] or not cell.test) else None


def check_folder(study: Study) -> None:
    """UserError if the folder holds cells with other settings, or finished ones that the study does not have."""
    cells = [*plan(study, {}), *trials(study)]
    for cell in cells:
        finished_result(study, cell, ignoring=("learning_rate", "min_lr"))  # they are chosen later
    known = {cell.name for cell in cells}
    for file in sorted(study.folder.glob("*/cell.json")):
        if file.parent.name not in known and not file.parent.name.startswith("trial-"):
            raise UserError(
                f"{study.folder} holds another study, with {file.parent.name}; give the same grid or another "
                "--folder_name"
            )
