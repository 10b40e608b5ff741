"""Checkpoints: one self-describing file with weights, config, classes, normalisation and history.

    checkpoint = load_checkpoint("model/vit-layer6-32-cifar10")     # a file, or a run folder's best.pt
    checkpoint.predict("cat.png")                                      # [("cat", 0.93), ...]
    checkpoint = load_checkpoint("theirs.pth", dataset="cifar10", num_heads=4, pool="cls")

Files are read with weights_only=True: nothing in them is run. Foreign files go through models/foreign_weights.py.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch
from PIL import Image
from torch import nn

from vitlab.catalog import ARGUMENTS, AT_DATA_PATH, DATASETS, channel_statistics, describe
from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, flag, read_settings
from vitlab.datasets.images import open_image, to_batch, upright_frame
from vitlab.hardware import float32_as, send
from vitlab.models import foreign_weights
from vitlab.models.registry import MODELS
from vitlab.pt_files import FORMAT, find_checkpoint, read_checkpoint, write_checkpoint, write_safetensors

VERSION = 1
BATCH_SIZE = 128  # images that predict() puts through the model at once
Picture = str | Path | Image.Image  # an image: where it lies, or itself


def save_checkpoint(
    path: str | Path,
    model: nn.Module | dict[str, torch.Tensor],
    config: TrainConfig,
    *,
    classes: Iterable[str],
    mean: Iterable[float],
    std: Iterable[float],
    history: list[dict],
    **more,
) -> None:
    """Write a checkpoint of a model or of its state dict. `more` is what load_checkpoint does not need, such as the
    optimiser's state.

    Raises UserError if the file cannot be written; one that was there stays as it was.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    write_checkpoint(
        path,
        {
            FORMAT: VERSION,
            "model": {name: values.contiguous() for name, values in state.items()},
            "model_args": config.model_args(),
            "config": dataclasses.asdict(config),
            "classes": list(classes),
            "mean": list(mean),
            "std": list(std),
            "history": history,
            **more,
        },
    )


def publish(source: str | Path, target: str | Path, *, half: bool = False) -> None:
    """Copy one of our checkpoints without what only --resume needs, as .pt or, by its suffix, as .safetensors; `half`:
    with half-precision weights.

    Raises UserError if `source` is not one of our checkpoints or `target` cannot be written.
    """
    contents = read_checkpoint(source)
    if not is_ours(contents):
        raise UserError(
            f"{source} is not a checkpoint of this repository; load_checkpoint() reads foreign files as they are"
        )
    contents.pop("training", None)
    if half:
        contents["model"] = {k: v.half() if v.is_floating_point() else v for k, v in contents["model"].items()}
    write = write_safetensors if Path(target).suffix == ".safetensors" else write_checkpoint
    write(target, contents)


def is_ours(contents: object) -> bool:
    """Whether what a file holds is a checkpoint of this repository."""
    return isinstance(contents, dict) and FORMAT in contents


@dataclass
class Checkpoint:
    """A trained model and what is needed to use it.

    model: a VisionTransformer, or another of registry.MODELS.
    config: the run's settings. `dataset` is None for a foreign file if nobody named its data set.
    classes: the names of the logits.
    mean, std: normalisation of images in 0..1, one value per channel.
    history: one dict per epoch.
    notes: lines that say what was guessed about a foreign file.
    """

    path: Path
    model: nn.Module
    config: TrainConfig
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict]
    notes: tuple[str, ...] = ()

    @property
    def run_name(self) -> str:
        """NAME of the run that the file belongs to; the name of the file if it belongs to none."""
        of_a_run = self.path.is_dir() or self.path.stem in ("best", "last") or self.path.stem.startswith("ViT_model_")
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().name if of_a_run else self.path.stem

    @property
    def crop_pct(self) -> float:
        """The share of an image's short side that the model is shown (images.square)."""
        return self.config.crop_pct or 1.0

    def data_config(self, **settings) -> TrainConfig:
        """The config to read the data set with: the run's own, with `settings` on top. Images of a folder are
        looked for in the place they were in, unless data_path says otherwise.

        Raises UserError if the file does not say its data set, or if the data set has other classes.
        """
        if self.config.dataset is None:
            raise UserError(
                f"{self.path} does not say what it was trained on; add --dataset, or show it images (--image_path)"
            )
        if self.config.dataset in AT_DATA_PATH and settings.get("data_path") == TrainConfig.data_path:
            settings["data_path"] = self.config.data_path
        config = dataclasses.replace(self.config, **read_settings(settings))
        data = f"--data_path {config.data_path}" if config.dataset in AT_DATA_PATH else f"--dataset {config.dataset}"
        info = describe(config.dataset, config.data_path)
        if self.classes != info.folders:  # a file of before class names in words
            check_classes(data, info.classes, self.path, self.classes)
        return config

    def batch(self, image: Picture) -> torch.Tensor:
        """An image as the model takes it: normalised floats, 1 x in_chans x img_size x img_size, on its device."""
        model = self.model
        image = upright_frame(image) if isinstance(image, Image.Image) else open_image(image)
        sizes = dict(img_size=model.img_size, in_chans=model.in_chans, crop_pct=self.crop_pct)
        images = to_batch(image, **sizes, mean=self.mean, std=self.std)
        return send(images, next(model.parameters()).device)

    @float32_as("ieee")
    @torch.inference_mode()
    def predict(self, images: Picture | Sequence[Picture], top: int = 5) -> list:
        """The `top` likeliest classes of an image, a path or a PIL image: [(name, probability), ...], best first.

        A list of images gives a list of those, in the same order. Raises UserError if a file cannot be read.
        """
        if isinstance(images, Picture):
            return self.name(self.model(self.batch(images))[0], top)
        guesses = []
        for first in range(0, len(images), BATCH_SIZE):
            logits = self.model(torch.cat([self.batch(image) for image in images[first : first + BATCH_SIZE]]))
            guesses += [self.name(row, top) for row in logits.cpu()]
        return guesses

    def name(self, logits: torch.Tensor, top: int = 5) -> list[tuple[str, float]]:
        """The `top` likeliest classes of one image's logits (C values): [(name, probability), ...], best first."""
        likeliest = logits.softmax(-1).topk(min(top, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist())]


def load_checkpoint(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dataset: str | None = None,
    data_path: str | Path | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **model_args,
) -> Checkpoint:
    """Load a model: from a file of ours, from a run folder (its best.pt), or from a foreign file or folder
    (foreign_weights.translate). The model is on `device`, in evaluation mode.

    The other arguments supply what a foreign file does not say. `dataset` (of "folder" with its data_path) or
    `classes` name the logits; mean and std, one value per channel, normalised the images; model_args go by timm's
    names (num_heads=3, pool="mean").

    Raises UserError if one of them contradicts the file, if the file could be read in two ways, or if it is damaged,
    of another architecture, or holds code.
    """
    path = find_checkpoint(path)
    contents = read_checkpoint(path)
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict()")
    model_args = read_settings(model_args)
    about = read_settings({name: tuple(value) for name, value in dict(mean=mean, std=std).items() if value})
    about |= {"classes": tuple(classes)} if classes else {}
    about |= {"dataset": dataset} if dataset else {}
    if is_ours(contents):
        checkpoint = _from_ours(path, contents)
        _check_ours(checkpoint, {**model_args, **about})
    else:
        checkpoint = _from_foreign(path, contents, about, data_path or TrainConfig.data_path, model_args)
    checkpoint.model.to(device).eval()
    return checkpoint


def _from_ours(path: Path, contents: dict) -> Checkpoint:
    config = read_config(path, contents)
    return Checkpoint(
        path=path,
        model=_make_model(path, config.model, contents["model_args"], contents["model"]),
        config=config,
        classes=tuple(contents["classes"]),
        mean=tuple(contents["mean"]),
        std=tuple(contents["std"]),
        history=contents["history"],
    )


def read_config(path: Path, contents: dict) -> TrainConfig:
    """The settings of the run that made a file of ours. Raises UserError if the file is of a later version."""
    if contents[FORMAT] > VERSION:
        raise UserError(f"{path} is of a later version of this repository ({contents[FORMAT]}); update it")
    return TrainConfig(**stored_settings(contents))


def stored_settings(contents: dict) -> dict:
    """The settings in a file of ours, without those that a later version dropped. In a file of before crop_scale, files
    that do not fit in memory were not cropped at random."""
    stored = {"crop_scale": (0.0, 1.0), **contents["config"]}
    return {name: value for name, value in stored.items() if name in SETTINGS}


def _check_ours(checkpoint: Checkpoint, given: dict) -> None:
    """UserError if a flag contradicts what a file of ours says, or is not of its model."""
    config, path = checkpoint.config, checkpoint.path
    config.dataset = config.dataset or given.get("dataset")  # None: trained from Python on batches without a name
    known = {name: getattr(config, name) for name in ("dataset", "model", *ARGUMENTS[config.model])}
    known |= {name: getattr(checkpoint, name) for name in ("classes", "mean", "std")}
    for name in given:
        if name not in known:
            raise UserError(f"{flag(name)}: {path} is a {config.model}, which has none; leave the flag out")
    _check_against(path, known, given)


def _from_foreign(path: Path, contents: dict, about: dict, data_path: str | Path, given: dict) -> Checkpoint:
    theirs = foreign_weights.translate(contents, path, num_heads=given.get("num_heads"), pool=given.get("pool"))
    state, arguments, notes, facts = theirs.state, theirs.arguments, theirs.notes, theirs.facts
    untold = {} if "norm_eps" in facts else {"norm_eps": given.get("norm_eps", arguments["norm_eps"])}
    if given.get("pool") == "mean" and arguments["pool"] in ("normed_mean", "seq"):
        untold["pool"] = arguments["pool"]  # timm's global_pool="avg" is each of them
    told = {name: facts[name] for name in ("mean", "std") if name in facts}
    _check_against(path, {**arguments, **untold, **told, "model": "vit"}, {**given, **about, **untold})
    arguments = {**{name: value for name, value in given.items() if name != "model"}, **arguments, **untold}
    dataset, channels = about.get("dataset"), arguments["in_chans"]
    mean, std = ({**theirs.normalisation, **about}.get(name) for name in ("mean", "std"))
    if channels not in (1, 3):
        raise UserError(f"{path} takes images of {channels} channels; train.py --init_from {path} adapts it to 1 or 3")
    lengths = {len(about[name]) for name in ("mean", "std") if name in about}
    if (mean is None) != (std is None) or lengths - {channels}:
        raise UserError(f"--mean and --std: {path} needs both, with {channels} values each")
    if mean is None:
        notes.append(
            "the file does not say how images were normalised: taken to be (image - 0.5) / 0.5; --mean and --std set it"
        )
    origin = "--classes" if "classes" in about else "its config.json (--classes names them otherwise)"
    named = about.get("classes", facts.get("classes"))
    classes = _name_classes(path, dataset, data_path, named, origin, arguments["num_classes"])
    if named:
        state = foreign_weights.reorder_outputs(state, [named.index(name) for name in classes])
    elif dataset in AT_DATA_PATH:
        notes.append(
            f"the file does not name its classes: taken to be {', '.join(classes[:5])}, ...; --classes sets them"
        )
    return Checkpoint(
        path=path,
        model=_make_model(path, "vit", arguments, state),
        config=TrainConfig(**{**arguments, "dataset": dataset, "data_path": str(data_path), "drop_rate": 0.0}),
        classes=classes,
        mean=channel_statistics(mean or (0.5,), channels),
        std=channel_statistics(std or (0.5,), channels),
        history=[],
        notes=tuple(notes),
    )


def _name_classes(
    path: Path,
    dataset: str | None,
    data_path: str | Path,
    classes: tuple[str, ...] | None,
    origin: str,
    num_classes: int,
) -> tuple[str, ...]:
    """The classes of a foreign file: those that `origin` tells, otherwise a data set's, otherwise "0", "1", ...;
    UserError if they are not as many as the model's outputs, or if the data set has others (they may be in another
    order)."""
    if dataset is not None and dataset not in DATASETS:
        raise UserError(f"--dataset {dataset!r} is unknown; choose {', '.join(DATASETS)}")
    of_data = describe(dataset, data_path).classes if dataset else None
    for source, names in ((origin, classes), (f"--dataset {dataset}", of_data)):
        if names and len(names) != num_classes:
            raise UserError(f"{source} has {len(names)} classes, {path} has {num_classes}")
    if classes and of_data:
        check_classes(f"--dataset {dataset}", sorted(of_data), f"{path} by {origin}", sorted(classes))
    return of_data or classes or tuple(str(i) for i in range(num_classes))


def check_classes(data: str, of_data: Sequence[str], weights: str | Path, of_weights: Sequence[str]) -> None:
    """UserError, with what differs first, unless data and weights have the same classes in the same order."""
    differing = (i for i, (a, b) in enumerate(itertools.zip_longest(of_data, of_weights)) if a != b)
    for first in differing:
        start = 0 if max(len(of_data), len(of_weights)) <= 20 else first
        here, there = (", ".join(names[start : start + 20]) for names in (of_data, of_weights))
        raise UserError(f"{data} has the classes {here}, {weights} was trained on {there}; they must be the same")


def _check_against(path: str | Path, known: dict, given: dict) -> None:
    """UserError if a flag contradicts what the file says."""
    for name, value in given.items():
        if name in known and known[name] != value:
            spelling = flag(name) if name in SETTINGS else f"--{name}"
            raise UserError(f"{spelling} {value}: {path} has {known[name]}; leave the flag out")


def _make_model(path: str | Path, name: str, model_args: dict, state: dict) -> nn.Module:
    """A model of MODELS with those arguments and those weights, in float32."""
    try:
        model = resolve_name(MODELS[name])(**model_args)
        names = model.state_dict().keys()
        for verb, wrong in (("lacks", names - state.keys()), ("has", state.keys() - names)):
            if wrong:
                raise ValueError(f"it {verb} {', '.join(sorted(wrong)[:3])}")
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit the architecture that it names: {reason}") from None
    return model
