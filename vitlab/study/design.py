"""The design of a comparison: which models, with which settings, seeds and numbers of images.

    study = Study.create(name="sizes", models=["vit", "simple_cnn"], dataset="digits", epochs=10)
    cells, failed = run(study)      # vitlab.study.running

A row is a model with its settings; a cell is a row with a seed, one training. All cells share the data
order, augmentation, schedule and number of epochs (min_steps adds epochs for few images); each model has
its own learning rate, chosen on validation. A finished cell lies in OUTPUT_PATH/NAME/CELL and is never
run again.
"""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from vitlab.catalog import ARGUMENTS, TITLES
from vitlab.cli import UserError, check_folder_name, whole_number
from vitlab.config import SETTINGS, SPELLINGS, TrainConfig, flag, in_groups, read_settings

DECIDED_BY_THE_STUDY = ("model", "seed", "folds", "fold", "folder_name", "resume", "overwrite", "init_from", "no_test")
IMAGES_JUDGED = ("dataset", "data_path", "num_test_images")  # the same for all rows, which are compared image by image
OF_BLOCKS = ("visualize", "patch_drop_rate", "grad_checkpointing", "layer_decay")  # how settings of vit alone begin
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
LIST_READERS = {  # fields that are lists of values, and how one value is read
    "models": str,
    "patch_sizes": SETTINGS["patch_size"].convert,
    "train_sizes": SETTINGS["num_train_images"].convert,
    "seeds": SETTINGS["seed"].convert,
    "learning_rates": SETTINGS["learning_rate"].convert,
}
READERS = {
    **LIST_READERS,
    "folds": whole_number("--folds", low=2),
    "lr_epochs": whole_number("--lr_epochs", low=1),
    "min_steps": whole_number("--min_steps", low=1),
    "jobs": whole_number("--jobs", low=1),
}


@dataclass(frozen=True)
class Row:
    """A model with its own settings, those of the grid and of the variant among them."""

    title: str
    model: str
    settings: dict
    grid: dict
    variant: str | None

    @property
    def size(self) -> int | None:
        """The number of training images; None for all."""
        return self.settings.get("num_train_images")

    @property
    def slug(self) -> str:
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


@dataclass
class Study:
    """A comparison as compare.py is asked for it; create() makes checked ones."""

    name: str = "comparison"
    models: tuple[str, ...] = ("vit", "simple_cnn")
    patch_sizes: tuple[int, ...] = ()  # of vit
    train_sizes: tuple[int, ...] = ()  # training images, validation among them
    grid: dict = field(default_factory=dict)  # setting -> values: every combination is a row
    variants: dict = field(default_factory=dict)  # title -> settings: one more row for each model that has them
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 0  # parts of the cross-validation; 0: none
    reference: str | None = None  # the model that the others are compared with
    learning_rates: tuple[float, ...] = LEARNING_RATES  # each model gets the best of them on validation
    lr_epochs: int | None = None  # length of these trials (default: a quarter of the epochs)
    min_steps: int | None = None  # rows with few images get more epochs, to make that many steps
    jobs: int = 1  # cells trained at the same time
    no_test: bool = False
    settings: dict = field(default_factory=dict)  # of TrainConfig, shared by all rows

    @classmethod
    def create(cls, *layers: dict, **more) -> "Study":
        """A checked study from dicts, weakest first, and keywords: its own fields, and settings of TrainConfig
        in either spelling. Raises UserError, naming the value, if something does not fit."""
        fields, settings = {}, {}
        names = [f.name for f in dataclasses.fields(cls) if f.name != "settings"]
        for layer in (*layers, more):
            layer = {key: value for key, value in layer.items() if value is not None}
            fields.update({name: layer.pop(name) for name in names if name in layer})
            if "folder_name" in layer:
                fields["name"] = layer.pop("folder_name")
            settings.update(read_settings(layer))
        for name in DECIDED_BY_THE_STUDY:
            if name in settings:
                raise UserError(f"{flag(name)}: a comparison decides that itself; leave it out")
        study = cls(**read_fields(fields), settings=settings)
        check_models(study)
        check_lists(study)
        check_rows(study)
        return study

    def rows(self) -> list[Row]:
        """The rows in the order of the tables: by model, number of images, variant, patch size, grid."""
        rows = []
        for model, size, variant in itertools.product(self.models, self.train_sizes or (None,), (None, *self.variants)):
            changes = applicable(self.variants.get(variant, {}), model)
            if variant and not changes:
                continue
            grid = applicable(self.grid, model)
            patches = (self.patch_sizes or (None,)) if model == "vit" else (None,)
            for patch, *values in itertools.product(patches, *grid.values()):
                point = dict(zip(grid, values))
                title = [TITLES[model], *(f"{flag(name)[2:]} {value}" for name, value in point.items())]
                settings = {**point, **changes}
                if patch:
                    settings["patch_size"] = patch
                    title.insert(1, f"patch {patch}")
                if variant:
                    title.append(variant)
                if size:
                    settings["num_train_images"] = size
                    title.append(f"{size:,} images")
                rows.append(Row(", ".join(title), model, settings, point, variant))
        return rows

    def config(self, row: Row, *, seed: int, **more) -> TrainConfig:
        """The TrainConfig of a cell. With min_steps it has as many epochs, and epochs of warmup, as that takes."""
        paths = {
            name: str(Path(self.settings.get(name, SETTINGS[name].default)) / self.name)
            for name in ("model_path", "output_path")
        }
        decided = dict(model=row.model, seed=seed, no_test=True, resume="auto", **paths)
        rate = max(self.learning_rates)  # where none is given: trials will choose
        rates = {"learning_rate": rate, "min_lr": min(rate, TrainConfig.min_lr)}
        config = TrainConfig.create(rates, applicable(self.settings, row.model), {**row.settings, **decided, **more})
        if not self.min_steps or not config.num_train_images or "epochs" in more:
            return config
        share = 1 / config.folds if config.folds else config.val_split
        batches = math.ceil(config.num_train_images * (1 - share) / config.batch_size)
        epochs = max(config.epochs, math.ceil(self.min_steps / math.ceil(batches / config.grad_accum_steps)))
        warmup = round(config.warmup_epochs * epochs / config.epochs, 6)  # 0 if it is given in steps
        return dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.settings.get("output_path", TrainConfig.output_path)) / self.name

    def baseline_of(self, row: Row) -> Row | None:
        """The row that `row` is compared with: of the reference model (by default the CNN), with the same number
        of images and the same grid values, of the same variant if possible. With a single model it is the first
        row with as many images. None if there is none."""
        if len(self.models) == 1:
            first = next(other for other in self.rows() if other.size == row.size)
            return None if row == first else first
        model = self.reference or ("simple_cnn" if "simple_cnn" in self.models else self.models[-1])
        matches = [
            other
            for other in self.rows()
            if other.model == model
            and other.size == row.size
            and all(row.grid.get(name, value) == value for name, value in other.grid.items())
        ]
        baseline = max(matches, key=lambda other: other.variant == row.variant, default=row)
        return None if row.model == model else baseline


def takes_setting(model: str, name: str) -> bool:
    """Whether a model has that setting."""
    if name in in_groups("model"):
        return name in ARGUMENTS[model]
    return model == "vit" or not name.startswith(OF_BLOCKS)


def applicable(settings: dict, model: str) -> dict:
    """Those of the settings that a model has."""
    return {name: value for name, value in settings.items() if takes_setting(model, name)}


def read_fields(raw: dict) -> dict:
    """The fields of a Study in their types, from flags, a YAML file or keywords."""
    fields = dict(raw)
    for name, read in READERS.items():
        if name in fields:
            fields[name] = distinct_values(name, fields[name]) if name in LIST_READERS else read(fields[name])
    if "name" in fields:
        fields["name"] = str(fields["name"])
        check_folder_name(fields["name"])
    if not isinstance(fields.get("no_test", False), bool):
        raise UserError(f"no_test {fields['no_test']}: write true or false")
    variants = fields.get("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
        raise UserError("variants: write WORDS: {SETTING: VALUE}, a line each")
    variants = {str(title): read_settings(changes) for title, changes in variants.items()}
    return {**fields, "grid": read_grid(fields.get("grid", {})), "variants": variants}


def distinct_values(name: str, raw: object) -> tuple:
    """The values of a list; UserError if there is none, or one twice."""
    raw = raw if isinstance(raw, list | tuple) else [raw]
    values = tuple(map(LIST_READERS[name], raw))
    if not values:
        raise UserError(f"--{name} is empty; give at least one value")
    if len(set(values)) < len(values):
        raise UserError(f"--{name} {' '.join(map(str, raw))}: a value is there twice; keep one")
    return values


def read_grid(raw: object) -> dict:
    """--grid as a dict setting -> values, from ["FLAG=V1,V2", ...] or from a dict."""
    if not isinstance(raw, dict):
        texts = list(map(str, raw)) if isinstance(raw, list | tuple) else [str(raw)]
        for text in texts:
            if "=" not in text:
                raise UserError(f"--grid {text}: write FLAG=VALUE,VALUE")
        raw = {text.split("=", 1)[0].lstrip("-"): text.split("=", 1)[1].split(",") for text in texts}
    grid = {}
    for key, values in raw.items():
        values = [value for value in (values if isinstance(values, list | tuple) else [values]) if value != ""]
        if not values:
            raise UserError(f"--grid {key}: no values; write {key}=VALUE,VALUE")
        for value in values:
            settings = read_settings({key: parse_switch(key, value)})
            (name,) = settings
            if name in DECIDED_BY_THE_STUDY:
                raise UserError(f"--grid {key}: a comparison decides that itself (--models, --seeds); leave it out")
            grid.setdefault(name, []).append(settings[name])
    return grid


def parse_switch(key: str, value: object) -> object:
    """true and false as a bool, if the setting is a switch; any other value as it is."""
    is_switch = key in SPELLINGS and SETTINGS[SPELLINGS[key]].kind is bool
    return {"true": True, "false": False}.get(str(value).lower(), value) if is_switch else value


def check_models(study: Study) -> None:
    """UserError if a model is unknown, or the reference is none of them."""
    for model in study.models:
        if model not in TITLES:
            raise UserError(f"--models {model}: choose {', '.join(TITLES)}")
    if study.reference is not None:
        if study.reference not in study.models:
            raise UserError(f"--reference {study.reference}: choose one of --models {' '.join(study.models)}")
        if len(study.seeds) < 2:
            raise UserError(f"--seeds {study.seeds[0]}: --reference asks for intervals over seeds; give two or more")


def check_lists(study: Study) -> None:
    """UserError if a list, the grid or a variant changes nothing, or a setting is listed twice."""
    models = ", ".join(study.models)
    for name in study.grid:
        if not any(takes_setting(model, name) for model in study.models):
            raise UserError(f"--grid {flag(name)[2:]}: not a setting of {models}; leave it out")
    for title, changes in study.variants.items():
        if not any(takes_setting(model, name) for model in study.models for name in changes):
            raise UserError(f"variants {title!r}: changes nothing of {models}; leave it out")
    if study.patch_sizes and "vit" not in study.models:
        raise UserError(f"--patch_sizes {study.patch_sizes[0]}: are those of vit; add it to --models")
    for name, values in (("patch_size", study.patch_sizes), ("num_train_images", study.train_sizes)):
        if values and any(name in changes for changes in (study.grid, *study.variants.values())):
            raise UserError(f"--grid {name}: it is asked for twice, as a list of its own too; keep one")
    judged = (*IMAGES_JUDGED, "val_split") if study.no_test else IMAGES_JUDGED
    for name in judged:
        if any(name in changes for changes in (study.grid, *study.variants.values())):
            raise UserError(f"{flag(name)}: rows are compared on the same images; make a comparison for each")
    if study.min_steps and not any(study.config(row, seed=0).num_train_images for row in study.rows()):
        raise UserError(f"--min_steps {study.min_steps}: is for --train_sizes; give them, or leave it out")


def check_rows(study: Study) -> None:
    """UserError if two rows have one name, or settings of a row do not go together. (Whether each model can
    be built is for plan.check_sizes: that takes torch.)"""
    rows = study.rows()
    slugs = [row.slug for row in rows]
    for row in rows:
        if slugs.count(row.slug) > 1:
            raise UserError(f"{row.title!r} is there twice, or differs in signs alone; name or choose another")
        size = study.config(row, seed=study.seeds[0]).img_size  # or whatever TrainConfig refuses
        if row.model == "vit" and any(size % patch for patch in study.patch_sizes):
            wrong = next(patch for patch in study.patch_sizes if size % patch)
            step = math.lcm(*study.patch_sizes)
            fits = " or ".join(str(n * step) for n in sorted({max(1, size // step), size // step + 1}))
            raise UserError(f"--patch_sizes {wrong} does not divide {size} pixels; --image_size {fits} would do")
