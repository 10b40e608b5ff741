"""How a setting is declared, converted, bounded and made a flag, and which do not go together.

@dataclass
class RecipeSettings:
    epochs: int = setting(200, "passes over the training images", low=1)

table = settings_of(RecipeSettings)     # name -> Setting
table["epochs"].convert("12")           # 12, whether from a flag, a YAML file or a keyword
"""

import argparse
import dataclasses
import datetime
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitlab.cli import UserError, check_folder_name

CROPPING = ("crop", "crop-flip", "randaugment", "trivialaugment")  # the values of augment that crop
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def setting(
    default: Any,
    help: str,
    *older: str,
    choices: tuple | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    is_path: bool = False,
) -> Any:
    """A dataclass field with everything that its flag needs. `older` are further spellings of the flag; a value must
    be one of `choices`, at least `low`, greater than `above` and at most `high`. In a path, ~ is the home folder."""
    facts = dict(help=help, older=older, choices=choices, low=low, above=above, high=high, is_path=is_path)
    return dataclasses.field(default=default, metadata=facts)


@dataclass(frozen=True)
class Setting:
    """One setting. `kind` is the type of a value, `many` says whether the setting is a tuple of them; the rest is as
    in setting()."""

    name: str
    group: str
    kind: type
    many: bool
    optional: bool
    default: Any
    help: str
    older: tuple
    choices: tuple | None
    low: float | None
    above: float | None
    high: float | None
    is_path: bool

    @property
    def flag(self) -> str:
        """How messages spell it: the older way if there is one."""
        return "--" + (*self.older, self.name)[0]

    @property
    def spellings(self) -> list[str]:
        """Every option string of the flag."""
        return ["--" + name for name in (self.name, *self.older)] + ["--lr", "-lr"] * (self.name == "learning_rate")

    def convert(self, value: Any) -> Any:
        """Convert what a flag, a YAML file or a keyword gives to the setting's type; UserError if it does not fit."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self.convert_one(value)
        return tuple(map(self.convert_one, value if isinstance(value, list | tuple) else [value]))

    def convert_one(self, value: Any) -> Any:
        """Convert one value to `kind` and check its bounds; UserError, naming flag and value, if it does not fit."""
        wrong = UserError(f"{self.flag} {value!r}: give {KINDS[self.kind]}")
        if self.is_path and isinstance(value, str | os.PathLike):
            return os.path.expanduser(os.fspath(value))
        if self.kind is str and not self.is_path and type(value) is int:
            value = str(value)  # a name of digits, in YAML
        if self.kind is str and isinstance(value, datetime.date):
            raise UserError(f"{self.flag} {value}: YAML takes it for a date; put it in quotes")
        if value is False and "off" in (self.choices or ()):
            value = "off"  # which YAML takes for false
        if self.kind in (bool, str) or isinstance(value, bool):
            if type(value) is not self.kind:
                raise wrong
        else:
            try:
                number = float(value)
                value = self.kind(value if isinstance(value, str) else number)  # "1e-3" is a text in YAML
            except (TypeError, ValueError, OverflowError):
                raise wrong from None
            if value != number:
                raise wrong  # 1.5 for a whole number; nan, which equals nothing
        if self.choices and value not in self.choices:
            raise UserError(f"{self.flag} {value!r}: choose {', '.join(map(str, self.choices))}")
        for bound, holds, relation in (
            (self.low, lambda: value >= self.low, "at least"),
            (self.above, lambda: value > self.above, "above"),
            (self.high, lambda: value <= self.high, "at most"),
        ):
            if bound is not None and not holds():
                raise UserError(f"{self.flag} {value}: must be {relation} {bound}")
        return value

    def add_to(self, parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, tell_default: bool = True) -> None:
        """Add its flag to a parser. A flag that is not given is absent from the parsed result."""
        help_text = f"{', '.join(map(str, self.choices))}; {self.help}" if self.choices else self.help
        if tell_default and self.default not in (None, ()) and self.kind is not bool:
            help_text += f" (default: {self.default})"
        options = dict(dest=self.name, default=argparse.SUPPRESS, help=help_text.replace("%", "%%"))
        if self.kind is bool:
            parser.add_argument(*self.spellings, action=argparse.BooleanOptionalAction, **options)
        else:
            options.update(type=self.convert_one, metavar=self.name.rsplit("_", 1)[-1].upper())
            parser.add_argument(*self.spellings, nargs="+" if self.many else None, **options)


def settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass, name -> Setting, in order. A setting's group is the class that declares it: "model"
    if that is ModelSettings."""
    declared = {name: base for base in cls.__mro__ for name in base.__dict__.get("__annotations__", {})}
    table, hints = {}, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, optional = hints[field.name], False
        if isinstance(kind, types.UnionType):  # X | None
            kind, optional = typing.get_args(kind)[0], True
        many = typing.get_origin(kind) is tuple  # tuple[X, ...]
        table[field.name] = Setting(
            name=field.name,
            group=declared[field.name].__name__.removesuffix("Settings").lower(),
            kind=typing.get_args(kind)[0] if many else kind,
            many=many,
            optional=optional,
            default=field.default,
            **field.metadata,
        )
    return table


def read_yaml(path: str | Path) -> dict:
    """The settings in a YAML file, as they are written there; UserError, naming the file, if it is not a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        raw, node = yaml.safe_load(text), yaml.compose(text)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a YAML file of settings") from None
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # of !!int x, of a date in a month 13, of no UTF-8
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"--config {path}: write one 'setting: value' a line")
    keys = [key.value for key, _ in node.value]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--config {path}: {twice} is there twice; keep one")
    return raw


def check_settings(config: Any, classes: Sequence[str]) -> None:
    """Raise UserError if settings of a complete TrainConfig do not go together, or not with its data set's classes."""
    if classes and config.num_classes != len(classes):
        raise UserError(f"--n_classes {config.num_classes}: {config.dataset} has {len(classes)}; leave the flag out")
    if (config.mean or config.std) and not len(config.mean) == len(config.std) == config.in_chans:
        raise UserError(f"--mean and --std: give both, with {config.in_chans} values each")
    if config.crop_scale and (len(config.crop_scale) > 2 or config.crop_scale[0] > config.crop_scale[1]):
        raise UserError(
            f"--crop_scale {' '.join(map(str, config.crop_scale))}: give one number, or a smaller and a larger one"
        )
    if config.random_crops and config.augment not in CROPPING:
        raise UserError(f"--crop_scale: --augment {config.augment} does not crop; choose {', '.join(CROPPING)}")
    if config.warmup_steps is not None and config.warmup_epochs:
        raise UserError("--warmup_steps and --warmup_epochs say the same thing twice; keep one")
    if config.warmup_epochs >= config.epochs:
        raise UserError(
            f"--warmup_epochs {config.warmup_epochs:g} leaves nothing of --epochs {config.epochs}; choose fewer"
        )
    if config.min_lr > config.learning_rate:
        raise UserError(
            f"--min_lr {config.min_lr:g} is above --learning_rate {config.learning_rate:g}; choose a smaller one"
        )
    if (config.mixup or config.cutmix) and config.num_classes < 2:
        raise UserError("--mixup and --cutmix need two classes to mix; leave them out")
    if config.alternate_flip and config.augment not in ("none", "crop", "translate", "affine"):
        raise UserError(
            f"--alternate_flip: --augment {config.augment} flips at random already; choose translate or crop"
        )
    if config.early_stopping and not (config.val_split or config.folds):
        raise UserError("--early_stopping watches the validation loss, and --val_split 0 leaves none; raise it")
    if config.overwrite and config.resume:
        raise UserError("--overwrite starts anew and --resume goes on; keep one")
    if config.init_from and config.resume and config.resume != "auto":
        raise UserError("--init_from starts anew and --resume goes on; keep one")
    if config.fold >= (config.folds or 1):
        remedy = f"of --folds {config.folds} there are 0 to {config.folds - 1}" if config.folds else "it needs --folds"
        raise UserError(f"--fold {config.fold}: {remedy}")
    if config.visualizers and config.model != "vit":
        raise UserError(f"--visualizers show attention, and {config.model} has none; leave the flag out")
    if config.grad_checkpointing and config.model != "vit":
        raise UserError(f"--grad_checkpointing works on blocks, and {config.model} has none; leave it out")
    if config.patch_drop_rate and config.model != "vit":
        raise UserError(f"--patch_drop_rate leaves out patches, and {config.model} has none; leave it out")
    if config.patch_drop_rate and config.compile:
        raise UserError("--patch_drop_rate: the number of patches changes, and --compile is for one; keep one of them")
    if config.fsdp and config.compile:
        raise UserError("--compile does not work with --fsdp here; keep one of them")
    if config.fsdp and config.visualizers:
        raise UserError("--visualizers need the whole model in one process; leave out them or --fsdp")
    if config.visualize_layers and max(config.visualize_layers) >= config.depth:
        raise UserError(
            f"--visualize_layers {max(config.visualize_layers)}: --n_layers {config.depth} has layers 0 to "
            f"{config.depth - 1}"
        )
    check_folder_name(config.folder_name)
