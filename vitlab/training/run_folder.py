"""The folders of a run: names, files, metrics.csv, and which run to resume."""

import csv
import shutil
from pathlib import Path

from vitlab.checkpoint import read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig, changed_settings, flag
from vitlab.files import replacing, writable_folder

COLUMNS = (  # of metrics.csv, and the keys of a row of the history
    "epoch",
    "learning_rate",  # of the last step
    "train_loss",  # averages over the epoch, while the weights changed
    "train_accuracy",
    "val_loss",  # None without a validation split
    "val_accuracy",
    "seconds",  # of training alone
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

# Settings that must not change when a run is resumed, besides the model's
MUST_MATCH_ON_RESUME = (
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

# Settings that may change then without a line that says so
SILENT_ON_RESUME = (
    "folder_name",
    "model_path",
    "output_path",
    "data_path",
    "device",
    "num_workers",
    "resume",
    "overwrite",
)


def claim_folders(config: TrainConfig) -> str:
    """Make empty folders for a new run, and return its name.

    A folder of that name is not touched: the new run is called NAME-2, NAME-3, ... With config.overwrite the files of
    the run in it are removed instead. Raises UserError if a folder cannot be written.
    """
    name, number = config.folder_name, 2
    writable_folder(Path(config.model_path), "--model_path")
    writable_folder(Path(config.output_path), "--output_path")
    while not config.overwrite and not make_new_folders(config, name):
        name = f"{config.folder_name}-{number}"
        number += 1
    if name != config.folder_name:
        print(f"{config.folder_name} is there already: this run is called {name} (--overwrite writes over it)")
    make_folders(config, name)
    for file in files_of_run(config, name):
        file.unlink()
    for pictures in ("tensorboard", "visualizers"):
        shutil.rmtree(Path(config.output_path) / name / pictures, ignore_errors=True)
    return name


def make_new_folders(config: TrainConfig, name: str) -> bool:
    """Make the two folders of the run called `name`; False, and nothing is changed, if one of them is there already.
    Making a folder is atomic: of several runs that start together each gets a name of its own."""
    made = []
    for folder in dict.fromkeys(Path(path) / name for path in (config.model_path, config.output_path)):
        try:
            folder.mkdir()
        except FileExistsError:
            for other in made:
                other.rmdir()
            return False
        made.append(folder)
    return True


def files_of_run(config: TrainConfig, name: str) -> set[Path]:
    """The files that a run called `name` has left in its two folders."""
    folders = Path(config.model_path) / name, Path(config.output_path) / name
    files = {folder / file for folder in folders for file in RUN_FILES if (folder / file).is_file()}
    return files | {file for folder in folders for file in folder.glob("ViT_model_*.pt")}


def make_folders(config: TrainConfig, name: str) -> None:
    """The two folders of the run called `name`. Raises UserError if they cannot be written."""
    writable_folder(Path(config.model_path) / name, "--model_path")
    writable_folder(Path(config.output_path) / name, "--output_path")


def newest(config: TrainConfig) -> Path | None:
    """The last of NAME/last.pt, NAME-2/last.pt, ... (the names that claim_folders gives), or None."""
    last, name, number = None, config.folder_name, 2
    while any((Path(path) / name).is_dir() for path in (config.model_path, config.output_path)):
        path = Path(config.model_path) / name / "last.pt"
        last = path if path.is_file() else last
        name = f"{config.folder_name}-{number}"
        number += 1
    return last


def find_resume(config: TrainConfig, *, lazily: bool = False) -> tuple[Path, dict] | None:
    """The checkpoint that config.resume names, its path and its contents; None if the run starts anew.

    lazily: read only what the comparison with the config needs (read_checkpoint).
    Raises UserError if the checkpoint does not fit: another architecture, other data, no training state.
    """
    if config.resume is None:
        return None
    path = newest(config) if config.resume == "auto" else Path(config.resume)
    if path is None:
        return None
    path = path / "last.pt" if path.is_dir() else path
    path = path if path.parent.name else path.absolute()  # a file in the current folder: its run's name is needed
    checkpoint = read_checkpoint(path, lazily=lazily)
    if not isinstance(checkpoint, dict) or "optimizers" not in checkpoint.get("training", {}):
        raise UserError(f"--resume {path} holds weights without the state of a training; --init_from starts from them")
    fixed = ("model", *config.model_args(), *MUST_MATCH_ON_RESUME)
    for name, (before, now) in changed_settings(checkpoint["config"], config, fixed).items():
        raise UserError(
            f"--resume {path}: it was trained with {flag(name)} {before}, not {now}; "
            "give the same, or start anew without --resume"
        )
    ema_decay = checkpoint["config"]["ema_decay"]
    if bool(ema_decay) != bool(config.ema_decay):
        raise UserError(f"--resume {path}: it was trained with --ema_decay {ema_decay:g}; give the same")
    return path, checkpoint


def continue_in(config: TrainConfig, checkpoint: Path) -> None:
    """Set the config's model_path and folder_name to those of the run that the checkpoint belongs to."""
    config.model_path, config.folder_name = str(checkpoint.parent.parent), checkpoint.parent.name


def write_metrics(path: Path, history: list[dict]) -> Path:
    """metrics.csv: one row per epoch; what was not measured is empty."""
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in history)
    return path
