"""Every setting of a run in one dataclass: its default, its help, its flags.

    config = TrainConfig.create(dataset="digits", epochs=40)     # from Python
    config = TrainConfig.from_args(sys.argv[1:])                 # from a command line

Settings, weakest first: the defaults below, the data set's own (catalog.DATASETS), the model's own
(catalog.MODEL_DEFAULTS), the YAML file of --config, the flags. A setting goes by its field name, which is timm's if
timm has one, or by the older spelling; both work as a flag, as a YAML key and as a keyword.
"""

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitlab.catalog import ARGUMENTS, DATASETS, MODEL_DEFAULTS, DatasetInfo, describe
from vitlab.cli import Parser, UserError
from vitlab.settings import check_settings, read_yaml, setting, settings_of

CROP_SCALE, CROP_PCT = (0.08, 1.0), 0.875  # what images that do not fit in memory get
GROUPS = ("data", "model", "recipe", "run")


@dataclass
class DataSettings:
    """Which images are used, and what is done to them."""

    dataset: str | None = setting(
        "cifar10", "digits (bundled), cifar10, ... (docs/training.md), folder, hf, webdataset"
    )
    data_path: str = setting(
        "./data", "where sets lie, or go to; of folder, hf, webdataset: the set itself", is_path=True
    )
    batch_size: int = setting(128, "images in a batch", low=1, high=1_000_000)
    num_workers: int = setting(2, "processes that decode image files (sets held in memory need none)", low=0, high=1024)
    cache_gb: float = setting(4.0, "GB of a folder's pixels to keep in memory: whole splits, training first", low=0)
    val_split: float = setting(0.1, "share of the training set held out for validation", low=0, high=0.9)
    folds: int | None = setting(None, "cross-validation: validate on one of so many parts instead", low=2)
    fold: int = setting(0, "which of the --folds, from 0", low=0)
    num_train_images: int | None = setting(
        None, "use this many training images (default: all); those for validation are taken from them", low=1
    )
    num_test_images: int | None = setting(None, "use this many test images (default: all)", low=1)
    mean: tuple[float, ...] = setting(
        (), "of each channel, for images in 0..1 (default: of --init_from, else of the set)", low=0, high=1
    )
    std: tuple[float, ...] = setting((), "standard deviation, likewise (default: as of mean)", above=0, high=1)
    augment: str | None = setting(
        None,
        "randaugment and trivialaugment come after crop-flip (default: the set's)",
        choices=("none", "crop", "crop-flip", "translate", "affine", "randaugment", "trivialaugment"),
    )
    crop_scale: tuple[float, ...] = setting(
        (),
        "random crops of the original files, least and most share of their area (default: 0.08 1 where the images do "
        "not fit in cache_gb; 0: none)",
        low=0,
        high=1,
    )
    crop_pct: float | None = setting(
        None,
        "share of the short side that evaluation shows (default: 0.875 with crop_scale, else 1)",
        above=0,
        high=1,
    )
    alternate_flip: bool = setting(False, "mirror half of the images in each epoch, the other half in the next")
    random_erasing: float = setting(0.0, "share of the images that lose a rectangle", low=0, high=1)
    mixup: float = setting(0.0, "alpha of mixup; 0 is off", low=0, high=100)
    cutmix: float = setting(0.0, "alpha of cutmix; 0 is off", low=0, high=100)
    mix_prob: float = setting(1.0, "share of the batches that mixup or cutmix is applied to", low=0, high=1)
    mix_switch_prob: float = setting(0.5, "share of those that get cutmix, where both are on", low=0, high=1)


@dataclass
class ModelSettings:
    """Which model, and its arguments (catalog.ARGUMENTS)."""

    model: str = setting(
        "vit",
        "the Vision Transformer, or what it is compared with",
        choices=("vit", "simple_cnn", "tiny_cnn", "mlp", "resnet18", "resnet50"),
    )
    img_size: int | None = setting(
        None, "side images are resized to (default: the set's)", "image_size", low=1, high=4096
    )
    patch_size: int = setting(4, "side of a patch; divides the image size", low=1, high=4096)
    in_chans: int | None = setting(None, "1 grey or 3 RGB (default: the set's)", "n_channels", choices=(1, 3))
    num_classes: int | None = setting(None, "outputs (default: the set's classes)", "n_classes", low=1, high=1_000_000)
    embed_dim: int = setting(128, "width of a token", low=1, high=65536)
    depth: int = setting(6, "encoder blocks", "n_layers", low=1, high=1000)
    num_heads: int = setting(4, "attention heads; divide the width", "n_attention_heads", low=1, high=65536)
    mlp_ratio: float = setting(2.0, "hidden width of the MLP over embed_dim", "forward_mul", above=0, high=64)
    qkv_bias: bool = setting(True, "biases in the query, key and value projections")
    qk_norm: bool = setting(False, "norms of each head's queries and keys (arXiv:2302.05442)")
    drop_rate: float = setting(0.1, "dropout inside the MLP", "dropout", low=0, high=0.99)
    attn_drop_rate: float = setting(0.0, "dropout of the attention weights", low=0, high=0.99)
    drop_path_rate: float = setting(
        0.0, "stochastic depth: from 0 in the first block to this in the last", low=0, high=0.99
    )
    stem: str = setting(
        "linear",
        "linear: patches; conv: convolutions; whitened: convolutions of whitened pixels",
        choices=("linear", "conv", "whitened"),
    )
    stem_depth: int = setting(1, "convolutions in each stage of a conv stem", low=1, high=100)
    stem_growth: int = setting(2, "how many times wider each stage of a conv stem is than the last", low=1, high=100)
    pool: str = setting(
        "cls",
        "the head reads CLS, the patches' mean (then normed, or of normed patches), or a learned mean",
        choices=("cls", "mean", "normed_mean", "seq"),
    )
    head: str = setting("linear", "mlp: linear, tanh, linear", choices=("linear", "mlp"))
    norm_eps: float = setting(1e-6, "epsilon of the layer norms", above=0, high=1)
    hidden_sizes: tuple[int, ...] = setting((512, 256), "widths of the hidden layers of mlp", low=1, high=1_000_000)


@dataclass
class RecipeSettings:
    """How it is trained."""

    epochs: int = setting(200, "passes over the training images", low=1, high=1_000_000)
    learning_rate: float = setting(5e-4, "peak of the schedule", above=0, high=100)
    schedule: str = setting(
        "cosine", "how the learning rate falls to min_lr after the warmup", choices=("cosine", "linear")
    )
    min_lr: float = setting(1e-5, "learning rate at the end of the schedule", low=0, high=100)
    warmup_epochs: float | None = setting(
        None, "linear warmup, 0 or a fraction too (default: a tenth of the epochs, at most 10)", low=0
    )
    warmup_steps: int | None = setting(None, "linear warmup in optimiser steps, instead of epochs", low=0)
    weight_decay: float = setting(0.05, "not on norms, biases, tokens and positions", low=0, high=100)
    optimizer: str = setting(
        "adamw",
        "muon: on the blocks' matrices and all convolutions but the first, AdamW elsewhere; sgd wants a weight_decay "
        "near 5e-4",
        choices=("adamw", "muon", "sgd"),
    )
    muon_lr: float = setting(0.01, "Muon's own peak, on the schedule of learning_rate", above=0, high=100)
    muon_conv_lr: float | None = setting(None, "Muon's peak for convolutions (default: muon_lr)", above=0, high=100)
    muon_momentum: float = setting(0.95, "momentum of Muon", low=0, high=0.9999)
    normalize_filters: bool = setting(
        False, "Muon scales a convolution's filters after each step: the mean square of their norms is 1"
    )
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", low=0, high=0.99)
    clip_grad: float = setting(0.0, "largest norm of the gradient; 0 is off", low=0, high=1e6)
    grad_accum_steps: int = setting(1, "batches whose gradients make one step", low=1, high=100_000)
    freeze: str | None = setting(None, "head: train only the head; N: freeze the embedding and the first N blocks")
    layer_decay: float = setting(
        1.0, "multiplies the learning rate of block i by layer_decay^(depth - i)", above=0, high=1
    )
    patch_drop_rate: float = setting(
        0.0, "share of the patches left out of training images at first; falls to 0 in the last epoch", low=0, high=0.9
    )
    ema_decay: float = setting(0.0, "decay of averaged weights, which are then evaluated; 0: off", low=0, high=0.999999)
    early_stopping: int | None = setting(None, "stop after N epochs without a lower validation loss", low=1)


@dataclass
class RunSettings:
    """Where and how a run runs, and what it leaves behind."""

    device: str = setting("auto", "auto, cuda, mps or cpu")
    amp: str = setting(
        "auto",
        "auto: bf16 on CUDA (fp16 on older GPUs) and on CPUs with bf16 instructions, else off",
        choices=("auto", "bf16", "fp16", "off"),
    )
    threads: int | None = setting(
        None, "threads of PyTorch on the CPU (default: PyTorch's own number)", low=1, high=1024
    )
    compile: bool = setting(False, "torch.compile the model")
    fsdp: bool = setting(False, "divide the weights between the processes of torchrun, for models that do not fit")
    grad_checkpointing: bool = setting(False, "save memory: a block's inner values are computed again, not kept")
    sync_batchnorm: bool = setting(False, "batch norm's statistics over all GPUs, not over each one's own images")
    seed: int = setting(0, "of the split, the weights, the order and the augmentation", low=0, high=2**32 - 1)
    output_path: str = setting("./output", "curves, tables and reports go to OUTPUT_PATH/NAME", is_path=True)
    model_path: str = setting("./model", "checkpoints go to MODEL_PATH/NAME", is_path=True)
    folder_name: str | None = setting(None, "NAME (default: vit-layer{n_layers}-{image_size}-{dataset})")
    no_test: bool = setting(False, "leave the test set alone")
    resume: str | None = setting(
        None,
        "a last.pt to go on from, with its settings; auto: that of the newest run of this name that fits",
        is_path=True,
    )
    init_from: str | None = setting(None, "a checkpoint whose weights to start from (fine-tuning)", is_path=True)
    save_every_n_epochs: int | None = setting(None, "keep ViT_model_{epoch}.pt that often", low=1)
    save_every_n_steps: int | None = setting(None, "write last.pt within an epoch after so many batches", low=1)
    log_backend: str = setting("none", "where curves are logged", choices=("tensorboard", "wandb", "both", "none"))
    log_every_n_steps: int = setting(50, "batches between the steps that are logged; 0: epochs alone", low=0)
    project_name: str = setting("vit-small-images", "the project at Weights & Biases")
    overwrite: bool = setting(False, "write over a run of the same name instead of calling this one NAME-2")
    visualizers: tuple[str, ...] = setting(
        (),
        "pictures of fixed images while the model learns (hooks: the older name of hidden)",
        choices=("token_attn_maps", "cls_heatmap", "hidden", "hooks", "cls_dim_reduction"),
    )
    visualize_every_n_epochs: int = setting(10, "how often, and after the last epoch", low=1)
    visualize_layers: tuple[int, ...] = setting((), "of which blocks, from 0 (default: first, middle, last)", low=0)
    save_npy: bool = setting(False, "the numbers of these pictures too, as .npy")


@dataclass
class TrainConfig(RunSettings, RecipeSettings, ModelSettings, DataSettings):  # the last one's fields come first
    """All settings of a run; create() and from_args() make complete, checked ones."""

    @classmethod
    def create(cls, *layers: dict, **settings) -> "TrainConfig":
        """A complete, checked config from dicts of settings, weakest first, and keywords, which are strongest.
        Raises UserError, naming the value, if something does not fit."""
        given = {}
        for layer in (*layers, settings):
            given.update(read_settings(layer))
        dataset = given.get("dataset", cls.dataset)
        if dataset is None and not ("img_size" in given and "num_classes" in given):
            raise UserError(
                "dataset None, of batches of your own, does not say their size: give img_size and num_classes"
            )
        if dataset and dataset not in DATASETS:
            raise UserError(f"dataset {dataset!r} is unknown; choose {', '.join(DATASETS)}")
        model = given.get("model", cls.model)
        defaults = {**(DATASETS[dataset].defaults if dataset else {}), **MODEL_DEFAULTS.get(model, {})}
        for name, value in given.items():
            foreign = name in in_groups("model") and name not in ("model", *ARGUMENTS[model])
            if foreign and value != defaults.get(name, SETTINGS[name].default):
                raise UserError(f"{flag(name)} {value}: {model} has no such setting; leave it out")
        config = cls(**{**defaults, **given})
        info = describe(dataset, config.data_path)
        config._fill_in(info)
        check_settings(config, info.classes)
        return config

    @classmethod
    def from_args(cls, argv: list[str] | None = None, groups: tuple[str, ...] = GROUPS, **parser_args) -> "TrainConfig":
        """The config of a command line, from what read_args gives. Raises UserError as create does."""
        return cls.create(read_args(argv, groups, **parser_args))

    def _fill_in(self, info: DatasetInfo) -> None:
        """Defaults that depend on the data set or on other settings."""
        self.img_size = self.img_size or info.img_size
        self.in_chans = self.in_chans or info.in_chans
        self.num_classes = self.num_classes or len(info.classes)
        self.augment = self.augment or info.augment
        self.crop_scale = (*self.crop_scale, 1.0) if len(self.crop_scale) == 1 else self.crop_scale
        if self.random_crops and self.crop_pct is None:
            self.crop_pct = CROP_PCT
        if self.warmup_epochs is None:
            self.warmup_epochs = min(10.0, self.epochs / 10) if self.warmup_steps is None else 0.0
        self.visualizers = tuple(dict.fromkeys("hidden" if name == "hooks" else name for name in self.visualizers))
        self.visualize_layers = self.visualize_layers or tuple(sorted({0, self.depth // 2, self.depth - 1}))
        kind = f"vit-layer{self.depth}" if self.model == "vit" else self.model
        self.folder_name = self.folder_name or f"{kind}-{self.img_size}-{self.dataset or 'own'}"

    def changed_from_defaults(self) -> dict:
        """The data set, the model and the settings that differ from their defaults; the run's name is left out."""
        chosen = dict(dataset=self.dataset, model=self.model)
        defaults = TrainConfig.create(chosen, data_path=self.data_path, num_classes=self.num_classes)
        derived = ("folder_name", *(() if self.visualizers else ("visualize_layers",)))
        names = [name for name in SETTINGS if name not in derived]
        shown = {name: now for name, (_, now) in changed_settings(vars(defaults), self, names).items()}
        return {**chosen, **shown}

    @property
    def random_crops(self) -> tuple[float, float] | None:
        """crop_scale, if training images are random crops of their files."""
        return self.crop_scale if self.crop_scale and self.crop_scale[0] else None

    def model_args(self) -> dict:
        """Keyword arguments of the model (registry.build_model)."""
        return {name: getattr(self, name) for name in ARGUMENTS[self.model]}

    @property
    def soft_labels(self) -> bool:
        """Whether it trains on smoothed or mixed labels."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    @property
    def checkpoint_folder(self) -> Path:
        """Where the run's checkpoints go: MODEL_PATH/NAME."""
        return Path(self.model_path) / self.folder_name

    @property
    def output_folder(self) -> Path:
        """Where the run's curves, pictures and report go: OUTPUT_PATH/NAME."""
        return Path(self.output_path) / self.folder_name


SETTINGS = settings_of(TrainConfig)
SPELLINGS = {spelling.lstrip("-"): name for name, known in SETTINGS.items() for spelling in known.spellings}


def flag(name: str) -> str:
    """How messages spell a setting: the older way if there is one."""
    return SETTINGS[name].flag


def in_groups(*groups: str) -> list[str]:
    """The names of the settings in these groups (of GROUPS), in order."""
    return [name for name, known in SETTINGS.items() if known.group in groups]


def read_settings(raw: dict) -> dict:
    """Settings by their field names, converted to their types. `raw` may use either spelling; UserError, with the
    nearest name, if a setting is unknown, and UserError if one is given twice or does not fit."""
    settings = {}
    for key, value in raw.items():
        spelling = str(key).replace("-", "_")
        if spelling not in SPELLINGS:
            near = difflib.get_close_matches(spelling, SPELLINGS, n=1)
            raise UserError(f"setting {key!r} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
        name = SPELLINGS[spelling]
        if name in settings:
            raise UserError(f"setting {key!r} is given twice, also by its other spelling; keep one")
        settings[name] = SETTINGS[name].convert(value)
    return settings


def read_args(argv: list[str] | None = None, groups: tuple[str, ...] = GROUPS, **parser_args) -> dict:
    """The settings that a command line (None: of this process) gives, itself and in its --config file, by their field
    names. `groups` are the groups of settings that have flags, `parser_args` go to the Parser. Raises UserError if one
    is unknown or does not fit."""
    parser = Parser(**parser_args)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from")
    for group in groups:
        add_flags(parser.add_argument_group(group), in_groups(group))
    flags = vars(parser.parse_args(argv))
    file = flags.pop("config", None)
    return {**read_settings(read_yaml(file) if file else {}), **read_settings(flags)}


def add_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup, names: list[str] | tuple[str, ...]) -> None:
    """Add the flags of those settings to a parser or to a group of one."""
    for name in names:
        SETTINGS[name].add_to(parser)


def changed_settings(before: dict, config: TrainConfig, names: Iterable[str]) -> dict[str, tuple]:
    """The settings among `names` that differ from an earlier config (a dict of values): name -> (before, now). A
    setting that the earlier config lacks had its default."""
    pairs = {name: (before.get(name, SETTINGS[name].default), getattr(config, name)) for name in names}
    as_yaml = {name: tuple(list(v) if isinstance(v, tuple) else v for v in pair) for name, pair in pairs.items()}
    return {name: pairs[name] for name, (was, now) in as_yaml.items() if was != now}
