"""Several models under one protocol: which trainings a study has, and running them.

    study = Study.create(name="mine", models=["vit", "simple_cnn"], dataset="digits", epochs=10)
    cells, failed = run(study)

A row is a model with its settings; a cell is a row with a seed, one training. All cells share data
order, augmentation, shape of the schedule and epochs (but for min_steps); each model has a learning rate of its own,
chosen on validation. A finished cell lies in OUTPUT_PATH/NAME/CELL and is never run again.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from tqdm import tqdm

from model import count_flops, count_parameters
from vitlab import checkpoint
from vitlab.config import FIELDS, NAMES, TYPES, TrainConfig, UserError, convert, flag, in_groups, read_settings
from vitlab.datasets import splits as data
from vitlab.evaluation import metrics
from vitlab.models.baselines import ARGUMENTS, MODELS, TITLES
from vitlab.training import loop as engine

NOT_SHARED = ("model", "seed", "folds", "fold", "folder_name", "resume", "overwrite", "init_from", "no_test")
LISTS = {"models": str, "patch_sizes": "patch_size", "train_sizes": "num_train_images", "seeds": "seed"}
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


# ----------------------------------------------------------------------------------------- the study


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
                self.config(row, seed=self.seeds[0]).build_model()

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
            name: str(Path(self.settings.get(name, FIELDS[name].default)) / self.name)
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
    out = [str(value) if kind is str else convert(kind, value) for value in values]
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
    is_switch = TYPES.get(NAMES.get(key)) is bool
    return {"true": True, "false": False}.get(str(value).lower(), value) if is_switch else value


# ------------------------------------------------------------------------------------------- running


def run(study):
    """Run what is not there yet. Returns (results of the cells, in order; [(cell's name, error), ...]).

    Raises UserError where the folder holds another study's results, and engine.Stopped after Ctrl-C:
    the same call goes on.
    """
    checkpoint.writable_folder(study.folder, "--output_path")
    refuse_others(study)
    failed = []
    rates = choose_learning_rates(study, failed)
    cells = plan(study, rates)
    done = run_cells(study, cells, failed)
    return [done[cell.name] for cell in cells if cell.name in done], failed


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


def choose_learning_rates(study, failed):
    """A dict model -> learning rate, the best of study.learning_rates on validation; empty where one is
    given. Prints the grid."""
    cells = trials(study)
    if not cells:
        single = len(study.learning_rates) == 1 and "learning_rate" not in {**study.settings, **study.grid}
        return dict.fromkeys(study.models, study.learning_rates[0]) if single else {}
    done, chosen = run_cells(study, cells, failed), {}
    epochs = {cell.row.model: cell.config.epochs for cell in cells}
    print(f"\nvalidation accuracy by learning rate, seed {study.seeds[0]}")
    for model in study.models:
        mine = {
            cell.config.learning_rate: done[cell.name]["val"]["accuracy"]
            for cell in cells
            if cell.row.model == model and cell.name in done
        }
        if not mine:
            first = next(row for row in study.rows() if row.model == model)
            rate = study.config(first, seed=study.seeds[0]).learning_rate
            print(f"{TITLES[model]:>20}: every trial failed; {rate:g} is taken")
            continue
        chosen[model] = max(mine, key=mine.get)
        words = ", ".join(f"{rate:g}: {accuracy:.4f}" for rate, accuracy in mine.items())
        print(f"{TITLES[model]:>20}: {words}; {epochs[model]} epochs; {chosen[model]:g} is taken")
    print()
    return chosen


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
        was = before.get(name, FIELDS[name].default)
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


def run_cells(study, cells, failed):
    """A dict name -> result of the cells that are finished or finish now; errors go to `failed`."""
    done = {cell.name: finished(study, cell) for cell in cells}
    waiting = [cell for cell in cells if done[cell.name] is None]
    done = {name: result for name, result in done.items() if result}
    if waiting and done:
        print(f"{len(done)} of {len(cells)} cells are there already")
    title = f"{len(cells)} trainings"
    bar = tqdm(total=len(cells), initial=len(done), desc=title, disable=None if waiting else True, unit="cell")

    def settle(cell, make):
        try:
            done[cell.name] = make()
        except Exception as error:  # whatever one cell dies of, the others go on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failed.append((cell.name, reason))
            bar.write(f"{cell.name} failed: {reason}")
        else:
            bar.write(f"{cell.name}: {in_words(done[cell.name])}")
        bar.update()

    with bar:
        if study.jobs == 1:
            for cell in waiting:
                bar.write(f"\n{cell.name}")
                settle(cell, lambda cell=cell: run_cell(cell))
            return done
        threads = max(1, len(os.sched_getaffinity(0)) // study.jobs) if hasattr(os, "sched_getaffinity") else 1
        context = multiprocessing.get_context("spawn")
        alone = []  # where a process is killed, all beside it end; which was it? each of them again, by itself
        while waiting or alone:
            todo, jobs = ([alone.pop(0)], 1) if alone else (waiting, study.jobs)
            running = {}
            with (
                contextlib.suppress(BrokenProcessPool),
                passing_on_sigterm(),
                ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool,
            ):
                while todo or running:
                    while todo and len(running) < jobs:  # no more, so that Ctrl-C finds none in a queue
                        future = pool.submit(run_quietly, todo[0])
                        running[future] = todo.pop(0)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        if jobs > 1 and isinstance(future.exception(), BrokenProcessPool):
                            raise future.exception()
                        settle(running.pop(future), future.result)
            alone += running.values()
    return done


@contextlib.contextmanager
def passing_on_sigterm():
    """Within it SIGTERM goes on to the processes side by side, which save themselves; then it raises Stopped.
    (Ctrl-C reaches them without us.)"""

    def pass_on(number, frame):
        for process in multiprocessing.active_children():
            process.terminate()
        raise engine.Stopped(number)

    try:
        before = signal.signal(signal.SIGTERM, pass_on)
    except ValueError:  # not the main thread, which alone hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_words(result):
    """A cell's accuracies in a line."""
    parts = [f"{split} {result[split]['accuracy']:.4f}" for split in ("train", "val", "test") if result[split]]
    return f"{', '.join(parts)}, {result['seconds']:.0f} s"


def run_quietly(cell):
    """run_cell in a process of its own: what it prints goes to log.txt in its folder."""
    folder = checkpoint.writable_folder(cell.config.output_folder, "--output_path")
    with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return run_cell(cell)


def run_cell(cell):
    """Train and test one cell: its result, which is written to its folder's cell.json. The test images'
    labels, predictions and probabilities go to test.npz beside it; those of the validation images of a cell that is
    not tested to val.npz."""
    config = cell.config
    config.overwrite = engine.newest(config) is None  # a folder without weights is from another machine, unfinished
    model = config.build_model()
    report = engine.fit(model, data.load(config, splits=("train", "val")), config)
    path = config.checkpoint_folder / "best.pt"
    split = "test" if cell.test else "val"
    if cell.test or (cell.kind == "seed" and report["val"]):
        found = checkpoint.load(path, device=config.pick_device())
        batches = getattr(data.load(config, splits=(split,), mean=found.mean, std=found.std), split)
        amp = engine.pick_amp(batches.labels.device, config.amp)
        labels, logits = engine.predict_all(found.model, batches, amp, split)
        if cell.test:
            report["test"] = metrics.summary(labels, logits.argmax(-1), F.cross_entropy(logits, labels))
            engine.write_json(config.output_folder / "report.json", report)
        with checkpoint.replacing(config.output_folder / f"{split}.npz") as part, open(part, "wb") as file:
            small = {
                "labels": labels.numpy().astype(np.int16),
                "predictions": logits.argmax(-1).numpy().astype(np.int16),
            }
            np.savez_compressed(file, **small, probabilities=logits.softmax(-1).numpy().astype(np.float16))
    history = checkpoint.read(config.checkpoint_folder / "last.pt")["history"]
    result = {
        "name": cell.name,
        "row": cell.row.title,
        "kind": cell.kind,
        "model": config.model,
        "settings": what_was_set(config),
        "seed": config.seed,
        "parameters": count_parameters(model),
        "flops": count_flops(model),
        "images_per_second": report["images_per_second"],
        "seconds": report["seconds"],
        "hardware": report["hardware"],
        "history": history,
        "checkpoint": str(path),
        **{split: report[split] for split in ("train", "val", "test")},
    }
    engine.write_json(config.output_folder / "cell.json", result)
    return json.loads(json.dumps(result))
