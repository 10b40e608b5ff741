"""Several models under one protocol: which trainings a study has, and running them.

    study = Study.create(name="mine", models=["vit", "simple_cnn"], dataset="digits", epochs=10)
    cells, failed = run(study)

A row is a model with its settings; a cell is a row with a seed, one training. All cells share data
order, augmentation, shape of the schedule and epochs (but for min_steps); each model has a learning rate of its own,
chosen on validation. A finished cell lies in OUTPUT_PATH/NAME/CELL and is never run again.
"""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vitlab.catalog import ARGUMENTS, TITLES
from vitlab.cli import UserError
from vitlab.config import SETTINGS, SPELLINGS, TrainConfig, flag, in_groups, read_settings
from vitlab.models.registry import MODELS, build_model

NOT_SHARED = ("model", "seed", "folds", "fold", "folder_name", "resume", "overwrite", "init_from", "no_test")


LISTS = {"models": str, "patch_sizes": "patch_size", "train_sizes": "num_train_images", "seeds": "seed"}


LEARNING_RATES = (3e-4, 1e-3, 3e-3)


@dataclass
class Study:
    """What compare.py is asked for; `settings` are TrainConfig's, shared by all rows."""

    name: str = "comparison"
    models: tuple = ("vit", "simple_cnn")
    patch_sizes: tuple = ()  # of vit
    train_sizes: tuple = ()  # training images, validation among them
    grid: dict = field(default_factory=dict)  # setting -> values: every combination is a row
    variants: dict = field(default_factory=dict)  # words -> settings: a row each, beside the plain one
    seeds: tuple = (0, 1, 2)
    folds: int = 0  # cross-validation, of so many parts; 0: none
    reference: str | None = None  # the model that the others are compared with
    learning_rates: tuple = LEARNING_RATES  # of which each model gets the best on validation
    lr_epochs: int | None = None  # of these trials (default: a quarter of the epochs)
    min_steps: int | None = None  # rows with few images get more epochs, to make so many
    jobs: int = 1  # cells side by side
    no_test: bool = False
    settings: dict = field(default_factory=dict)

    @classmethod
    def create(cls, *layers, **more):
        """A checked study from dicts, weakest first, and keywords: its own fields, and settings of TrainConfig by
        either spelling. Raises UserError, naming the value, at what does not fit."""
        own, settings = {}, {}
        fields = [f.name for f in dataclasses.fields(cls) if f.name != "settings"]
        for layer in (*layers, more):
            layer = {key: value for key, value in layer.items() if value is not None}
            own.update({name: layer.pop(name) for name in fields if name in layer})
            if "folder_name" in layer:
                own["name"] = layer.pop("folder_name")
            settings.update(read_settings(layer))
        for name in NOT_SHARED:
            if name in settings:
                raise UserError(f"{flag(name)}: a comparison decides that itself; leave it out")
        for name, kind in LISTS.items():
            if name in own:
                own[name] = several(name, own[name], kind)
        for name in ("folds", "lr_epochs", "min_steps", "jobs"):
            if name in own:
                own[name] = number(name, own[name], low=2 if name == "folds" else 1)
        if "learning_rates" in own:
            own["learning_rates"] = several("learning_rates", own["learning_rates"], "learning_rate")
        if "name" in own:
            own["name"] = str(own["name"])
        if not isinstance(own.get("no_test", False), bool):
            raise UserError(f"no_test {own['no_test']}: write true or false")
        own["grid"] = read_grid(own.get("grid", {}))
        variants = own.get("variants", {})
        if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
            raise UserError("variants: write WORDS: {SETTING: VALUE}, a line each")
        own["variants"] = {str(words): read_settings(changes) for words, changes in variants.items()}
        study = cls(**own, settings=settings)
        study._check()
        return study

    def _check(self):
        for model in self.models:
            if model not in MODELS:
                raise UserError(f"--models {model}: choose {', '.join(MODELS)}")
        if self.reference is not None:
            if self.reference not in self.models:
                raise UserError(f"--reference {self.reference}: choose one of --models {' '.join(self.models)}")
            if len(self.seeds) < 2:
                raise UserError(f"--seeds {self.seeds[0]}: --reference asks for intervals over seeds; give two or more")
        if Path(self.name).name != self.name or self.name in (".", ".."):
            raise UserError(f"--folder_name {self.name!r}: give a plain name; --output_path says where")
        for name in self.grid:
            if not any(has(model, name) for model in self.models):
                raise UserError(f"--grid {flag(name)[2:]}: not a setting of {', '.join(self.models)}; leave it out")
        for words, changes in self.variants.items():
            if not any(has(model, name) for model in self.models for name in changes):
                raise UserError(f"variants {words!r}: changes nothing of {', '.join(self.models)}; leave it out")
        if self.patch_sizes and "vit" not in self.models:
            raise UserError(f"--patch_sizes {self.patch_sizes[0]}: are those of vit; add it to --models")
        for name, listed in (("patch_size", self.patch_sizes), ("num_train_images", self.train_sizes)):
            if listed and any(name in changes for changes in (self.grid, *self.variants.values())):
                raise UserError(f"--grid {name}: it is asked for twice, as a list of its own too; keep one")
        if self.min_steps and not any(self.config(row, seed=0).num_train_images for row in self.rows()):
            raise UserError(f"--min_steps {self.min_steps}: is for --train_sizes; give them, or leave it out")
        slugs = [row.slug for row in self.rows()]
        for row in self.rows():
            if slugs.count(row.slug) > 1:
                raise UserError(f"{row.title!r} is there twice, or differs in signs alone; name or choose another")
            size = self.config(row, seed=self.seeds[0]).img_size  # and whatever TrainConfig refuses
            if row.model == "vit" and any(size % patch for patch in self.patch_sizes):
                wrong = next(patch for patch in self.patch_sizes if size % patch)
                step = math.lcm(*self.patch_sizes)
                fits = " or ".join(str(n * step) for n in sorted({max(1, size // step), size // step + 1}))
                raise UserError(f"--patch_sizes {wrong} does not divide {size} pixels; --image_size {fits} would do")
            with torch.device("meta"):  # sizes alone
                build_model(self.config(row, seed=self.seeds[0]))

    def rows(self):
        """[Row, ...] in the order of the tables."""
        found = []
        for model, size, variant in itertools.product(self.models, self.train_sizes or (None,), (None, *self.variants)):
            changes = {name: value for name, value in self.variants.get(variant, {}).items() if has(model, name)}
            if variant and not changes:
                continue
            grid = {name: values for name, values in self.grid.items() if has(model, name)}
            patches = (self.patch_sizes or (None,)) if model == "vit" else (None,)
            for patch, *values in itertools.product(patches, *grid.values()):
                chosen = dict(zip(grid, values))
                title = [TITLES[model], *(f"{flag(name)[2:]} {value}" for name, value in chosen.items())]
                settings = {**chosen, **changes}
                if patch:
                    settings["patch_size"] = patch
                    title.insert(1, f"patch {patch}")
                if variant:
                    title.append(variant)
                if size:
                    settings["num_train_images"] = size
                    title.append(f"{size:,} images")
                found.append(Row(", ".join(title), model, settings, chosen, variant))
        return found

    def config(self, row, *, seed, **more):
        """The TrainConfig of a cell; with min_steps of as many epochs, and epochs of warmup, as that takes."""
        shared = {name: value for name, value in self.settings.items() if has(row.model, name)}
        paths = {
            name: str(Path(self.settings.get(name, SETTINGS[name].default)) / self.name)
            for name in ("model_path", "output_path")
        }
        own = dict(model=row.model, seed=seed, no_test=True, resume="auto", **paths)
        config = TrainConfig.create(shared, {**row.settings, **own, **more})
        if not self.min_steps or not config.num_train_images or "epochs" in more:
            return config
        share = 1 / config.folds if config.folds else config.val_split
        batches = math.ceil(config.num_train_images * (1 - share) / config.batch_size)
        epochs = max(config.epochs, math.ceil(self.min_steps / math.ceil(batches / config.grad_accum_steps)))
        warmup = round(config.warmup_epochs * epochs / config.epochs, 6)  # 0 where it is given in steps
        return dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup)

    @property
    def folder(self):
        return Path(self.settings.get("output_path", TrainConfig.output_path)) / self.name

    def reference_of(self, row):
        """The row that a row is compared with: of the reference (the CNN where nothing else was asked for), with as
        many images and the same values of the grid, if possible of the same variant; of a single model its first
        row with as many images. None where there is none."""
        if len(self.models) == 1:
            first = next(other for other in self.rows() if other.size == row.size)
            return None if row == first else first
        model = self.reference or ("simple_cnn" if "simple_cnn" in self.models else self.models[-1])
        rows = [
            other
            for other in self.rows()
            if other.model == model
            and other.size == row.size
            and all(row.grid.get(name, value) == value for name, value in other.grid.items())
        ]
        other = max(rows, key=lambda other: other.variant == row.variant, default=row)
        return None if row.model == model else other


@dataclass(frozen=True)
class Row:
    """A model with its settings, among them those of the grid and of the variant."""

    title: str
    model: str
    settings: dict
    grid: dict
    variant: str | None

    @property
    def size(self):
        return self.settings.get("num_train_images")

    @property
    def slug(self):
        """The title as the name of a folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.title.lower().replace(",", "")).strip("-")


@dataclass(frozen=True)
class Cell:
    """One training: `kind` is "seed", "fold" or "trial" (of a learning rate)."""

    name: str
    row: Row
    kind: str
    config: TrainConfig
    test: bool


def has(model, name):
    """Whether a model takes that setting."""
    if name in in_groups("model"):
        return name in ARGUMENTS[model]
    return model == "vit" or not name.startswith("visualize")


def number(name, value, *, low):
    """A whole number from `low` on; UserError naming the flag where it is none."""
    text = str(value)
    if not text.isdecimal() or int(text) < low:
        raise UserError(f"--{name} {value}: give a whole number, at least {low}")
    return int(text)


def several(name, values, kind):
    """A list of distinct values of a setting (or of texts) as a tuple; UserError where it is empty."""
    values = values if isinstance(values, list | tuple) else [values]
    out = [str(value) if kind is str else SETTINGS[kind].convert(value) for value in values]
    if not out:
        raise UserError(f"--{name} is empty; give at least one value")
    if len(set(out)) < len(out):
        raise UserError(f"--{name} {' '.join(map(str, values))}: a value is there twice; keep one")
    return tuple(out)


def read_grid(raw):
    """--grid as a dict setting -> values, of ["FLAG=V1,V2", ...] or of a dict."""
    if not isinstance(raw, dict):
        raw = list(map(str, raw)) if isinstance(raw, list | tuple) else [str(raw)]
        for text in raw:
            if "=" not in text:
                raise UserError(f"--grid {text}: write FLAG=VALUE,VALUE")
        raw = {text.split("=", 1)[0].lstrip("-"): text.split("=", 1)[1].split(",") for text in raw}
    grid = {}
    for key, values in raw.items():
        values = [value for value in (values if isinstance(values, list | tuple) else [values]) if value != ""]
        if not values:
            raise UserError(f"--grid {key}: no values; write {key}=VALUE,VALUE")
        for value in values:
            settings = read_settings({key: yes_or_no(key, value)})
            (name,) = settings
            if name in NOT_SHARED:
                raise UserError(f"--grid {key}: a comparison decides that itself (--models, --seeds); leave it out")
            grid.setdefault(name, []).append(settings[name])
    return grid


def yes_or_no(key, value):
    """The value, which of a switch may be the text true or false."""
    is_switch = key in SPELLINGS and SETTINGS[SPELLINGS[key]].kind is bool
    return {"true": True, "false": False}.get(str(value).lower(), value) if is_switch else value
