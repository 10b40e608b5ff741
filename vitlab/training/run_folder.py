"""The folders of a run: names, files, metrics.csv, and which run to resume."""

import csv
import shutil
from pathlib import Path

from vitlab.checkpoint import read_checkpoint
from vitlab.cli import UserError
from vitlab.config import SETTINGS, flag
from vitlab.files import replacing, writable_folder

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_second",
)


RUN_FILES = (
    "best.pt",
    "last.pt",
    "metrics.csv",
    "report.json",
    "config.yaml",
    "graph_loss.png",
    "graph_accuracy.png",
    "training.gif",
)


# What a resumed run must share with the one it goes on from, beside the model's arguments
KEPT = (
    "dataset",
    "batch_size",
    "seed",
    "val_split",
    "folds",
    "fold",
    "num_train_images",
    "optimizer",
    "grad_accum_steps",
)


def claim_folders(config):
    """Make the run's folders and see that they can be written; a run of that name is not touched:
    the new one is called NAME-2, NAME-3, ... (or, with overwrite, its files are removed)."""

    def files_of(name):
        folders = Path(config.model_path) / name, Path(config.output_path) / name
        found = {folder / file for folder in folders for file in RUN_FILES if (folder / file).is_file()}
        return found | {file for folder in folders for file in folder.glob("ViT_model_*.pt")}

    wanted, number = config.folder_name, 2
    while not config.overwrite and files_of(config.folder_name):
        config.folder_name = f"{wanted}-{number}"
        number += 1
    if config.folder_name != wanted:
        print(f"{wanted} holds a run already: this one is called {config.folder_name} (--overwrite writes over it)")
    make_folders(config)
    for file in files_of(config.folder_name):
        file.unlink()
    for pictures in ("tensorboard", "visualizers"):
        shutil.rmtree(config.output_folder / pictures, ignore_errors=True)


def make_folders(config):
    writable_folder(config.checkpoint_folder, "--model_path")
    writable_folder(config.output_folder, "--output_path")


def newest(config):
    """The last of NAME/last.pt, NAME-2/last.pt, ... (the names of claim_folders), or None."""
    found, name, number = None, config.folder_name, 2
    while any((Path(path) / name).is_dir() for path in (config.model_path, config.output_path)):
        path = Path(config.model_path) / name / "last.pt"
        found = path if path.is_file() else found
        name = f"{config.folder_name}-{number}"
        number += 1
    return found


def find_resume(config):
    """The checkpoint that config.resume names, read and compared with the config; None where the run
    starts anew. Sets the config's folders to those of the run that goes on.

    Raises UserError where it does not fit: another architecture, other data, no training state.
    """
    if config.resume is None:
        return None
    path = newest(config) if config.resume == "auto" else Path(config.resume)
    if path is None:
        return None
    path = path / "last.pt" if path.is_dir() else path
    path = path if path.parent.name else path.absolute()  # from within the run's folder
    contents = read_checkpoint(path)
    if not isinstance(contents, dict) or "optimizers" not in contents.get("training", {}):
        raise UserError(f"--resume {path} holds weights without the state of a training; --init_from starts from them")
    was = contents["config"]
    for name in ("model", *config.model_args(), *KEPT):
        before = was.get(name, SETTINGS[name].default)
        if before != getattr(config, name):
            raise UserError(
                f"--resume {path}: it was trained with {flag(name)} {before}, not {getattr(config, name)}; "
                "give the same, or start anew without --resume"
            )
    if bool(was["ema_decay"]) != bool(config.ema_decay):
        raise UserError(f"--resume {path}: it was trained with --ema_decay {was['ema_decay']:g}; give the same")
    config.model_path, config.folder_name = str(path.parent.parent), path.parent.name
    return contents


def write_metrics(path, history):
    """metrics.csv: a row an epoch; what was not measured is empty."""
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in history)
    return path
