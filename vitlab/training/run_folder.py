"""The folders of a run: names, files, metrics.csv, and which run to resume."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

from vitlab.catalog import describe
from vitlab.checkpoint import check_classes, read_checkpoint, stored_settings
from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, changed_settings, flag
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
    *(f"{kind}.gif" for kind in SETTINGS["visualizers"].choices),
)

# Settings that must not change when a run is resumed, besides the model's and whether weights are averaged
FIXED = (
    "dataset",
    "batch_size",
    "seed",
    "val_split",
    "folds",
    "fold",
    "num_train_images",
    "optimizer",
    "grad_accum_steps",
    "mean",
    "std",
    "freeze",
    "layer_decay",
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

REMEDY = "give the same, or start anew without --resume"


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


def last_checkpoints(config: TrainConfig) -> list[Path]:
    """last.pt of the runs NAME, NAME-2, ... (the names that claim_folders gives), the newest name first."""
    paths, name, number = [], config.folder_name, 2
    while any((Path(path) / name).is_dir() for path in (config.model_path, config.output_path)):
        paths.insert(0, Path(config.model_path) / name / "last.pt")
        name = f"{config.folder_name}-{number}"
        number += 1
    return [path for path in paths if path.is_file()]


def find_resume(config: TrainConfig, classes: Sequence[str], *, lazily: bool = False) -> tuple[Path, dict] | None:
    """The checkpoint that config.resume names, its path and its contents; None if the run starts anew. "auto" is the
    newest run of that name that fits.

    classes: of the data; they must be the same, by name. lazily: read only what is compared (read_checkpoint).
    Raises UserError if the checkpoint does not fit: another architecture, other data, no training state.
    """
    if config.resume is None:
        return None
    if config.resume != "auto":
        path, checkpoint = read_training_state(config.resume, lazily=lazily)
        if change := first_change(checkpoint["config"], config):
            raise UserError(f"--resume {path}: it was trained with {change}; {REMEDY}")
        check_classes(f"--data_path {config.data_path}", classes, f"--resume {path}", checkpoint["classes"])
        return path, checkpoint
    for path in last_checkpoints(config):
        path, checkpoint = read_training_state(path, lazily=lazily)
        same_path = Path(checkpoint["config"]["data_path"]).resolve() == Path(config.data_path).resolve()
        other_data = tuple(checkpoint["classes"]) != tuple(classes) and not same_path
        if other_data or first_change(checkpoint["config"], config):
            continue
        check_classes(f"--data_path {config.data_path}", classes, f"--resume auto: {path}", checkpoint["classes"])
        return path, checkpoint
    return None


def read_training_state(path: str | Path, *, lazily: bool) -> tuple[Path, dict]:
    """A checkpoint (a folder: its last.pt), its path and its contents; UserError if a training cannot go on from it."""
    path = Path(path) / "last.pt" if Path(path).is_dir() else Path(path)
    path = path if path.parent.name else path.absolute()  # a file in the current folder: its run's name is needed
    checkpoint = read_checkpoint(path, lazily=lazily)
    if not isinstance(checkpoint, dict) or "optimizers" not in checkpoint.get("training", {}):
        raise UserError(f"--resume {path} holds weights without the state of a training; --init_from starts from them")
    return path, checkpoint


def check_images(path: Path, checkpoint: dict, fingerprints: dict[str, str]) -> None:
    """UserError if a run was trained or validated on other images than those of these Splits.fingerprints: the splits
    would be cut otherwise, and images that it was trained on could be validated or tested on."""
    before = checkpoint["training"].get("images", {})  # older files lack it
    for split in ("train", "val"):
        was, now = (images.get(split, "none") for images in (before, fingerprints))
        if before and fingerprints and was != now:
            raise UserError(f"--resume {path}: its {split} images were others ({was}; now {now}); {REMEDY}")


def first_change(before: dict, config: TrainConfig) -> str | None:
    """The first setting that forbids a run with the settings `before` to go on with this config, in words."""
    for name, (was, now) in changed_settings(before, config, ("model", *config.model_args(), *FIXED)).items():
        return f"{flag(name)} {was}, not {now}"
    was, now = before.get("ema_decay", 0), config.ema_decay
    if bool(was) != bool(now):
        return f"{flag('ema_decay')} {was:g}, not {now:g}"
    return None


def settings_of_resumed(inherited: dict, given: dict) -> dict:
    """The settings with which the run that --resume names was trained, but for those that say where it is; {} if a run
    starts anew, which a line explains. `given` are the settings of the command line, which must not contradict them,
    `inherited` those of --init_from.

    Raises UserError as find_resume does."""
    if given["resume"] == "auto":
        config = TrainConfig.create(inherited, given)
        resumed = find_resume(config, describe(config.dataset, config.data_path).classes, lazily=True)
        if not resumed:
            for path in last_checkpoints(config):
                before = read_checkpoint(path, lazily=True)["config"]
                print(f"{path} is another run: {first_change(before, config) or 'its classes are others'}")
            return {}
    elif "init_from" in given:
        return {}
    else:
        resumed = read_training_state(given["resume"], lazily=True)
        name = resumed[0].parent.name
        if given.get("folder_name", name) != name:
            raise UserError(f"--folder_name {given['folder_name']}: --resume goes on in that of {name}; leave it out")
    path, checkpoint = resumed
    before = stored_settings(checkpoint)
    if change := first_change(before, TrainConfig(**{**before, **given})):
        raise UserError(f"--resume {path}: it was trained with {change}; leave the flag out, or start anew")
    left_out = {"resume", "init_from", "overwrite", "model_path", "folder_name", "fsdp"}
    if {"warmup_epochs", "warmup_steps"} & set(given):
        left_out |= {"warmup_epochs", "warmup_steps"}
    return {name: value for name, value in before.items() if name not in left_out}


def continue_in(config: TrainConfig, path: Path, checkpoint: dict) -> None:
    """Set what the config says of where the run is, and of where it came from, to that of the checkpoint's run."""
    config.model_path, config.folder_name = str(path.parent.parent), path.parent.name
    config.init_from = checkpoint["config"].get("init_from")


def write_metrics(path: Path, history: list[dict]) -> Path:
    """metrics.csv: one row per epoch; what was not measured is empty."""
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in history)
    return path
