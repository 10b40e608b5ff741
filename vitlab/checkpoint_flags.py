"""Flags that say what a checkpoint is, for the scripts that use one: foreign files do not say all of it themselves."""

import argparse
from collections.abc import Iterable

from vitlab.cli import UserError
from vitlab.config import SETTINGS, in_groups, read_settings

FACTS = ("classes", "mean", "std")  # of load_checkpoint, besides the data set and the model's arguments


def read_names(file: str) -> tuple[str, ...]:
    """The names of the classes in a text file, one a line, in the order of the model's outputs."""
    try:
        with open(file, encoding="utf-8") as lines:
            names = tuple(line.strip() for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error}); give a text file, one name a line") from None
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {file}: {'a name stands there twice' if names else 'it is empty'}; one name a line")
    return names


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add --dataset, the model's settings, and --classes, --mean and --std to a parser."""
    group = parser.add_argument_group(
        "what the checkpoint is", "For weights from other code. A checkpoint of train.py says it itself."
    )
    for name in ("dataset", *in_groups("model")):
        SETTINGS[name].add_to(group, tell_default=False)
    group.add_argument("--classes", type=read_names, metavar="FILE", help="its classes, one name a line")
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        help_text = f"{what} of each channel, for images in 0..1"
        group.add_argument(f"--{name}", type=SETTINGS[name].convert_one, nargs="+", help=help_text)


def split_flags(flags: dict, run_names: Iterable[str]) -> tuple[dict, dict]:
    """Sort the flags of a script that uses a checkpoint: (run_settings, expected); others are left out.

    run_settings: the settings `run_names`, which say where and how to run, with their defaults filled in.
    expected: what the user says that the checkpoint is, as keywords of load_checkpoint.
    """
    run_names, names = tuple(run_names), ("dataset", *in_groups("model"))
    given = read_settings({name: value for name, value in flags.items() if name in (*run_names, *names)})
    expected = {name: given[name] for name in names if name in given}
    expected |= {name: flags[name] for name in FACTS if flags.get(name) is not None}
    run_settings = {name: given.get(name, SETTINGS[name].default) for name in run_names}
    return run_settings, expected | {"data_path": run_settings["data_path"]}
