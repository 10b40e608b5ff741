"""Every setting of a run in one dataclass: its default, its help, its flags.

    config = TrainConfig.create(dataset="digits", epochs=40)     # from Python
    config = TrainConfig.from_args(sys.argv[1:])                 # from a command line

Settings, weakest first: the defaults below, the data set's own (data.DATASETS), the YAML file of
--config, the flags. A setting goes by its field name, which is timm's where timm has one, or by the
older spelling beside it; both work as a flag, as a YAML key and as a keyword.
"""

import argparse
import dataclasses
import difflib
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path


class UserError(ValueError):
    """Something the user can put right: one line that names the value and the remedy."""


def setting(default, group, help, *older, choices=None, low=None, above=None, high=None):
    """A dataclass field with all that its flag needs: `older` are further spellings of the flag,
    `low`, `above` and `high` bound the value (from, greater than, up to)."""
    return dataclasses.field(
        default=default,
        metadata=dict(group=group, help=help, older=older, choices=choices, low=low, above=above, high=high),
    )


GROUPS = ("data", "model", "recipe", "run")


@dataclass
class TrainConfig:
    # --- data
    dataset: str = setting("cifar10", "data", "cifar10, cifar100, digits (bundled: no download) or folder")
    data_path: str = setting("./data", "data", "where data sets lie, or are downloaded to; of folder: the images")
    batch_size: int = setting(128, "data", "images in a batch", low=1, high=1_000_000)
    num_workers: int = setting(
        2, "data", "processes that decode image folders (other sets need none)", low=0, high=1024
    )
    cache_gb: float = setting(4.0, "data", "splits of a folder up to so many GB of pixels are kept in memory", low=0)
    val_split: float = setting(0.1, "data", "share of the training set held out for validation", low=0, high=0.9)
    folds: int | None = setting(None, "data", "cross-validation: validate on one of so many parts instead", low=2)
    fold: int = setting(0, "data", "which of the --folds, from 0", low=0)
    num_train_images: int | None = setting(
        None, "data", "use this many training images (default: all), validation cut from them", low=1
    )
    num_test_images: int | None = setting(None, "data", "use this many test images (default: all)", low=1)
    augment: str | None = setting(
        None,
        "data",
        "randaugment and trivialaugment come after crop-flip (default: the set's)",
        choices=("none", "crop", "crop-flip", "affine", "randaugment", "trivialaugment"),
    )
    random_erasing: float = setting(0.0, "data", "share of the images that lose a rectangle", low=0, high=1)
    mixup: float = setting(0.0, "data", "alpha of mixup; 0 is off", low=0, high=100)
    cutmix: float = setting(0.0, "data", "alpha of cutmix; 0 is off", low=0, high=100)
    mix_prob: float = setting(1.0, "data", "share of the batches that mixup or cutmix is applied to", low=0, high=1)
    mix_switch_prob: float = setting(0.5, "data", "share of those that get cutmix, where both are on", low=0, high=1)

    # --- model: which one, and its arguments, most of them model.VisionTransformer's (baselines.ARGUMENTS)
    model: str = setting(
        "vit",
        "model",
        "the Vision Transformer, or what it is compared with",
        choices=("vit", "simple_cnn", "tiny_cnn", "mlp", "resnet18", "resnet50"),
    )
    img_size: int | None = setting(
        None, "model", "side images are resized to (default: the set's)", "image_size", low=1, high=4096
    )
    patch_size: int = setting(4, "model", "side of a patch; divides the image size", low=1, high=4096)
    in_chans: int | None = setting(None, "model", "1 grey or 3 RGB (default: the set's)", "n_channels", choices=(1, 3))
    num_classes: int | None = setting(
        None, "model", "outputs (default: the set's classes)", "n_classes", low=1, high=1_000_000
    )
    embed_dim: int = setting(128, "model", "width of a token", low=1, high=65536)
    depth: int = setting(6, "model", "encoder blocks", "n_layers", low=1, high=1000)
    num_heads: int = setting(4, "model", "attention heads; divide the width", "n_attention_heads", low=1, high=65536)
    mlp_ratio: float = setting(2.0, "model", "hidden width of the MLP over embed_dim", "forward_mul", above=0, high=64)
    qkv_bias: bool = setting(True, "model", "biases in the query, key and value projections")
    drop_rate: float = setting(0.1, "model", "dropout inside the MLP", "dropout", low=0, high=0.99)
    attn_drop_rate: float = setting(0.0, "model", "dropout of the attention weights", low=0, high=0.99)
    drop_path_rate: float = setting(0.0, "model", "stochastic depth of the last block", low=0, high=0.99)
    stem: str = setting("linear", "model", "patches, or a convolutional tokenizer", choices=("linear", "conv"))
    stem_depth: int = setting(1, "model", "convolutions in each stage of a conv stem", low=1, high=100)
    pool: str = setting(
        "cls",
        "model",
        "the head sees CLS, the patches' mean, or one of learned weights",
        choices=("cls", "mean", "seq"),
    )
    head: str = setting("linear", "model", "mlp: linear, tanh, linear", choices=("linear", "mlp"))
    norm_eps: float = setting(1e-6, "model", "epsilon of the layer norms", above=0, high=1)
    hidden_sizes: tuple[int, ...] = setting(
        (512, 256), "model", "widths of the hidden layers of mlp", low=1, high=1_000_000
    )

    # --- recipe
    epochs: int = setting(200, "recipe", "passes over the training images", low=1, high=1_000_000)
    learning_rate: float = setting(5e-4, "recipe", "peak of the schedule", above=0, high=100)
    min_lr: float = setting(1e-5, "recipe", "where the cosine ends", low=0, high=100)
    warmup_epochs: float | None = setting(
        None, "recipe", "linear warmup, 0 or a fraction too (default: a tenth of the epochs, at most 10)", low=0
    )
    warmup_steps: int | None = setting(None, "recipe", "linear warmup in steps, instead of epochs", low=0)
    weight_decay: float = setting(0.05, "recipe", "not on norms, biases, tokens and positions", low=0, high=100)
    optimizer: str = setting(
        "adamw",
        "recipe",
        "muon: on the blocks' matrices and all convolutions but the first, AdamW elsewhere; sgd wants a weight_decay "
        "near 5e-4",
        choices=("adamw", "muon", "sgd"),
    )
    muon_lr: float = setting(0.01, "recipe", "Muon's own peak, on the schedule of learning_rate", above=0, high=100)
    label_smoothing: float = setting(0.0, "recipe", "share of the target spread over all classes", low=0, high=0.99)
    clip_grad: float = setting(0.0, "recipe", "largest norm of the gradient; 0 is off", low=0, high=1e6)
    grad_accum_steps: int = setting(1, "recipe", "batches whose gradients make one step", low=1, high=100_000)
    ema_decay: float = setting(
        0.0, "recipe", "of averaged weights, which are then what is evaluated", low=0, high=0.999999
    )
    early_stopping: int | None = setting(None, "recipe", "stop after N epochs without a lower validation loss", low=1)

    # --- run
    device: str = setting("auto", "run", "auto, cuda, mps or cpu")
    amp: str = setting(
        "auto",
        "run",
        "auto: bf16 on CUDA and on CPUs with bf16 instructions, else off",
        choices=("auto", "bf16", "fp16", "off"),
    )
    compile: bool = setting(False, "run", "torch.compile the model")
    seed: int = setting(0, "run", "of the split, the weights, the order and the augmentation", low=0, high=2**32 - 1)
    output_path: str = setting("./output", "run", "curves, tables and reports go to OUTPUT_PATH/NAME")
    model_path: str = setting("./model", "run", "checkpoints go to MODEL_PATH/NAME")
    folder_name: str | None = setting(None, "run", "NAME (default: vit-layer{n_layers}-{image_size}-{dataset})")
    no_test: bool = setting(False, "run", "leave the test set alone")
    resume: str | None = setting(
        None, "run", "auto (the run's last.pt, where there is one) or a checkpoint to go on from"
    )
    init_from: str | None = setting(None, "run", "a checkpoint whose weights to start from (fine-tuning)")
    save_every_n_epochs: int | None = setting(None, "run", "keep ViT_model_{epoch}.pt that often", low=1)
    save_every_n_steps: int | None = setting(None, "run", "write last.pt within an epoch that often", low=1)
    log_backend: str = setting("none", "run", "curves to", choices=("tensorboard", "wandb", "both", "none"))
    log_every_n_steps: int = setting(50, "run", "how often a step is logged; 0: epochs alone", low=0)
    project_name: str = setting("vit-small-images", "run", "the project at Weights & Biases")
    overwrite: bool = setting(False, "run", "write over a run of the same name instead of calling this one NAME-2")
    visualizers: tuple[str, ...] = setting(
        (),
        "run",
        "pictures of fixed images while the model learns; hooks is hidden",
        choices=("token_attn_maps", "cls_heatmap", "hidden", "hooks", "cls_dim_reduction"),
    )
    visualize_every_n_epochs: int = setting(10, "run", "how often, and after the last epoch", low=1)
    visualize_layers: tuple[int, ...] = setting((), "run", "of which blocks (default: first, middle, last)", low=0)
    save_npy: bool = setting(False, "run", "the numbers of these pictures too, as .npy")

    @classmethod
    def create(cls, *layers, **settings):
        """A complete, checked config from dicts of settings, weakest first, and keywords."""
        from vitlab.datasets.splits import DATASETS, describe  # here, since data.py imports this file
        from vitlab.models.baselines import ARGUMENTS, DEFAULTS

        given = {}
        for layer in (*layers, settings):
            given.update(read_settings(layer))
        dataset = given.get("dataset", cls.dataset)
        if dataset not in DATASETS:
            raise UserError(f"dataset {dataset!r} is unknown; choose {', '.join(DATASETS)}")
        model = given.get("model", cls.model)
        defaults = {**DATASETS[dataset].defaults, **DEFAULTS.get(model, {})}
        for name, value in given.items():
            foreign = name in in_groups("model") and name not in ("model", *ARGUMENTS[model])
            if foreign and value != defaults.get(name, FIELDS[name].default):
                raise UserError(f"{flag(name)} {value}: {model} has no such setting; leave it out")
        config = cls(**{**defaults, **given})
        info = describe(dataset, config.data_path)
        config._fill_in(info)
        config._check(info)
        return config

    @classmethod
    def from_args(cls, argv=None, groups=GROUPS, **parser_args):
        """The config of a command line; `groups` are the settings that it offers."""
        parser = Parser(**parser_args)
        parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from")
        for group in groups:
            add_flags(parser.add_argument_group(group), in_groups(group))
        flags = vars(parser.parse_args(argv))
        file = flags.pop("config", None)
        return cls.create(read_yaml(file) if file else {}, flags)

    def _fill_in(self, info):
        """Defaults that depend on the data set or on other settings."""
        self.img_size = self.img_size or info.img_size
        self.in_chans = self.in_chans or info.in_chans
        self.num_classes = self.num_classes or len(info.classes)
        self.augment = self.augment or info.augment
        if self.warmup_epochs is None:
            self.warmup_epochs = min(10.0, self.epochs / 10) if self.warmup_steps is None else 0.0
        self.visualizers = tuple(dict.fromkeys("hidden" if name == "hooks" else name for name in self.visualizers))
        self.visualize_layers = self.visualize_layers or tuple(sorted({0, self.depth // 2, self.depth - 1}))
        kind = f"vit-layer{self.depth}" if self.model == "vit" else self.model
        self.folder_name = self.folder_name or f"{kind}-{self.img_size}-{self.dataset}"

    def _check(self, info):
        """What no setting can tell alone."""
        if self.num_classes < len(info.classes):
            raise UserError(
                f"--n_classes {self.num_classes}: {self.dataset} has {len(info.classes)}; leave the flag out"
            )
        if self.warmup_steps is not None and self.warmup_epochs:
            raise UserError("--warmup_steps and --warmup_epochs say the same thing twice; keep one")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup_epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}; choose fewer"
            )
        if self.min_lr > self.learning_rate:
            raise UserError(
                f"--min_lr {self.min_lr:g} is above --learning_rate {self.learning_rate:g}; choose a smaller one"
            )
        if (self.mixup or self.cutmix) and self.num_classes < 2:
            raise UserError("--mixup and --cutmix need two classes to mix; leave them out")
        if self.early_stopping and not (self.val_split or self.folds):
            raise UserError("--early_stopping watches the validation loss, and --val_split 0 leaves none; raise it")
        if self.overwrite and self.resume:
            raise UserError("--overwrite starts anew and --resume goes on; keep one")
        if self.init_from and self.resume and self.resume != "auto":
            raise UserError("--init_from starts anew and --resume goes on; keep one")
        if self.fold >= (self.folds or 1):
            remedy = f"of --folds {self.folds} there are 0 to {self.folds - 1}" if self.folds else "it needs --folds"
            raise UserError(f"--fold {self.fold}: {remedy}")
        if self.visualizers and self.model != "vit":
            raise UserError(f"--visualizers show attention, and {self.model} has none; leave the flag out")
        if self.visualize_layers and max(self.visualize_layers) >= self.depth:
            raise UserError(
                f"--visualize_layers {max(self.visualize_layers)}: {flag('depth')} {self.depth} has layers 0 to "
                f"{self.depth - 1}"
            )
        if Path(self.folder_name).name != self.folder_name or self.folder_name in (".", ".."):
            raise UserError(f"--folder_name {self.folder_name!r}: give a plain name; --output_path says where")

    def model_args(self):
        """Keyword arguments of the model (baselines.build)."""
        from vitlab.models.baselines import ARGUMENTS

        return {name: getattr(self, name) for name in ARGUMENTS[self.model]}

    def build_model(self):
        """The model, its fresh weights those of the seed; UserError where its sizes do not fit each other."""
        import torch

        from vitlab.models import baselines

        torch.manual_seed(self.seed)
        try:
            return baselines.build(self.model, **self.model_args())
        except ValueError as error:
            raise UserError(error) from None

    def pick_device(self):
        """The torch.device that `device` names; UserError where it is not there."""
        from model import pick_device

        try:
            return pick_device(self.device)
        except ValueError as error:
            raise UserError(error) from None

    @property
    def checkpoint_folder(self):
        return Path(self.model_path) / self.folder_name

    @property
    def output_folder(self):
        return Path(self.output_path) / self.folder_name


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
TYPES = typing.get_type_hints(TrainConfig)
NAMES = {spelling: name for name, field in FIELDS.items() for spelling in (name, *field.metadata["older"])}


def flag(name):
    """How messages spell a setting: the older way where there is one."""
    return "--" + (*FIELDS[name].metadata["older"], name)[0]


def convert(name, value):
    """A setting's value, from text or from YAML, as its type and within its bounds; UserError if not."""
    kind = TYPES[name]
    if isinstance(kind, types.UnionType):  # X | None
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:  # several of a kind
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(convert_one(name, item, typing.get_args(kind)[0]) for item in several)
    return convert_one(name, value, kind)


def convert_one(name, value, kind):
    """A value, or one of several, as that kind and within the setting's bounds."""
    limits = FIELDS[name].metadata
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    wrong = UserError(f"{flag(name)} {value!r}: give {words}")
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise wrong
        return value
    if kind is str:
        if not isinstance(value, str):
            raise wrong
    else:
        try:
            number = float(value)
            value = kind(value) if isinstance(value, str) else kind(number)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        if value != number:
            raise wrong  # 1.5 for a whole number; nan, which equals nothing
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{flag(name)} {value!r}: choose {', '.join(map(str, limits['choices']))}")
    for bound, holds, words in (
        (limits["low"], lambda: value >= limits["low"], "at least"),
        (limits["above"], lambda: value > limits["above"], "above"),
        (limits["high"], lambda: value <= limits["high"], "at most"),
    ):
        if bound is not None and not holds():
            raise UserError(f"{flag(name)} {value}: must be {words} {bound}")
    return value


def read_settings(raw):
    """A dict of settings by their field names, converted; UserError at an unknown or doubled one."""
    out = {}
    for key, value in raw.items():
        if key not in NAMES:
            near = difflib.get_close_matches(str(key), NAMES, n=1)
            raise UserError(f"setting {key!r} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
        name = NAMES[key]
        if name in out:
            raise UserError(f"setting {key!r} is given twice, also by its other spelling; keep one")
        out[name] = convert(name, value)
    return out


def read_yaml(path):
    """The settings in a YAML file, as a dict; UserError naming the file where it is none."""
    import yaml

    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"--config {path}: write one 'setting: value' a line")
    return raw


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line and no abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise UserError(message)


def in_groups(*groups):
    """The names of the settings in those groups."""
    return [name for name, field in FIELDS.items() if field.metadata["group"] in groups]


def add_flags(parser, names):
    """Give an argument parser (or a group of one) the flags of those settings. What is not given is
    absent from the result, and values stay text: read_settings() converts them."""
    for name in names:
        field = FIELDS[name]
        spellings = ["--" + spelling for spelling in (name, *field.metadata["older"])]
        if name == "learning_rate":
            spellings.append("-lr")
        words = field.metadata["help"]
        if field.metadata["choices"]:
            words = f"{', '.join(map(str, field.metadata['choices']))}; {words}"
        if field.default not in (None, ()) and not isinstance(field.default, bool):
            words += f" (default: {field.default})"
        options = dict(dest=name, default=argparse.SUPPRESS, help=words.replace("%", "%%"))
        if TYPES[name] is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            parser.add_argument(*spellings, action=action, **options)
        else:
            if typing.get_origin(TYPES[name]) is tuple:
                options["nargs"] = "+"
            parser.add_argument(*spellings, metavar=name.rsplit("_", 1)[-1].upper(), **options)


def run_cli(main):
    """Run a script's main(): UserError becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)
