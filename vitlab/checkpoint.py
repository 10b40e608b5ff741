"""Checkpoints: one self-describing file with weights, config, classes, normalisation and history.

    checkpoint = load_checkpoint("model/vit-plain-cpu-32-cifar10")     # a file, or a run folder's best.pt
    checkpoint.predict(Image.open("cat.png"))                          # [("cat", 0.93), ...]
    checkpoint = load_checkpoint("theirs.pth", dataset="cifar10", num_heads=4)

Files are read with weights_only=True: nothing in them is run. Foreign files go through models/foreign_weights.py.
"""

import dataclasses
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from PIL import Image
from torch import nn

from model import VisionTransformer
from vitlab.catalog import ARGUMENTS, DATASETS, describe
from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, flag
from vitlab.datasets.images import to_batch
from vitlab.files import replacing
from vitlab.models import foreign_weights
from vitlab.models.registry import MODELS

FORMAT = "vit-small-images"  # the key by which our files are known
VERSION = 1


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    config: TrainConfig,
    *,
    classes: Iterable[str],
    mean: Iterable[float],
    std: Iterable[float],
    history: list[dict],
    **more,
) -> None:
    """Write a checkpoint. `more` is what load_checkpoint does not need, such as the optimiser's state.

    Raises UserError if the file cannot be written; one that was there stays as it was.
    """
    write_checkpoint(
        path,
        {
            FORMAT: VERSION,
            "model": model.state_dict(),
            "model_args": config.model_args(),
            "config": dataclasses.asdict(config),
            "classes": list(classes),
            "mean": list(mean),
            "std": list(std),
            "history": history,
            **more,
        },
    )


def write_checkpoint(path: str | Path, contents: dict) -> None:
    """Write a dict of tensors and plain values next to `path`, then rename it into place. Raises UserError if it
    cannot be written."""
    with replacing(path) as part, open(part, "wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # raised by the zip writer when the disk is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: str | Path, *, lazily: bool = False) -> Any:
    """What a .pt file, or a run folder's best.pt, holds: tensors and plain values, in a dict if it is one of ours.

    lazily: leave the tensors in the file until they are used; for a look at the plain values alone.
    Raises UserError if there is no such file, or if it is damaged or holds code.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; train one with train.py, or check --model_path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than weights: pickled Python, which is refused and was not run; "
            "where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except (LookupError, AttributeError, EOFError, AssertionError, struct.error):  # torch.load on other kinds of files
        raise UserError(f"{path} is not a complete checkpoint; check --model_path, or copy it again") from None
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a complete checkpoint ({reason}); copy it again") from None


def publish(source: str | Path, target: str | Path, *, half: bool = False) -> None:
    """Copy one of our checkpoints without what only --resume needs; `half`: with half-precision weights.

    Raises UserError if `source` is not one of our checkpoints or `target` cannot be written.
    """
    contents = read_checkpoint(source)
    if not _is_ours(contents):
        raise UserError(
            f"{source} is not a checkpoint of this repository; load_checkpoint() reads foreign files as they are"
        )
    contents.pop("training", None)
    if half:
        contents["model"] = {k: v.half() if v.is_floating_point() else v for k, v in contents["model"].items()}
    write_checkpoint(target, contents)


def _is_ours(contents: object) -> bool:
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

    def data_config(self, **settings) -> TrainConfig:
        """The config to read the data set with: the run's own, with `settings` on top. Images of a folder are
        looked for in the place they were in, unless data_path says otherwise.

        Raises UserError if the file does not say its data set, or if the folder has other classes.
        """
        if self.config.dataset is None:
            raise UserError(f"{self.path} does not say what it was trained on; add --dataset cifar10")
        if self.config.dataset == "folder" and settings.get("data_path") == TrainConfig.data_path:
            settings["data_path"] = self.config.data_path
        config = dataclasses.replace(self.config, **settings)
        if config.dataset == "folder":
            classes = describe("folder", config.data_path).classes
            if classes != self.classes:
                raise UserError(
                    f"--data_path {config.data_path} has the classes {', '.join(classes)}, "
                    f"{self.path} was trained on {', '.join(self.classes)}"
                )
        return config

    def batch(self, image: Image.Image) -> torch.Tensor:
        """A PIL image as the model takes it: normalised floats, 1 x in_chans x img_size x img_size, on its device."""
        model = self.model
        images = to_batch(image, img_size=model.img_size, in_chans=model.in_chans, mean=self.mean, std=self.std)
        return images.to(next(model.parameters()).device)

    @torch.inference_mode()
    def predict(self, image: Image.Image, top: int = 5) -> list[tuple[str, float]]:
        """The `top` likeliest classes of a PIL image: [(name, probability), ...], best first."""
        return self.name(self.model(self.batch(image))[0], top)

    def name(self, logits: torch.Tensor, top: int = 5) -> list[tuple[str, float]]:
        """The `top` likeliest classes of one image's logits (C values): [(name, probability), ...], best first."""
        likeliest = logits.softmax(-1).topk(min(top, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist())]


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", dataset: str | None = None, **model_args
) -> Checkpoint:
    """Load a model: from a file of ours, from a run folder (its best.pt), or from a plain state dict in the
    teaching layout or in that of timm's VisionTransformer. The model is on `device`, in evaluation mode.

    `dataset` and `model_args` (timm's names: num_heads=3, pool="mean") supply what a foreign file does not say.
    Raises UserError if one of them contradicts the file, or if the file is damaged, of another architecture, or
    holds code.
    """
    checkpoint = _from_contents(path, read_checkpoint(path), dataset, model_args)
    checkpoint.model.to(device).eval()
    return checkpoint


def _from_contents(path: str | Path, contents: object, dataset: str | None, model_args: dict) -> Checkpoint:
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict()")
    if not _is_ours(contents):
        return _from_foreign(path, contents, dataset, model_args)
    checkpoint = _from_ours(path, contents)
    config = checkpoint.config
    known = {name: getattr(config, name) for name in ("dataset", "model", *ARGUMENTS[config.model])}
    for name in model_args:
        if name not in known:
            raise UserError(f"{flag(name)}: {path} is a {config.model}, which has none; leave the flag out")
    _check_against(path, known, {**model_args, **({"dataset": dataset} if dataset else {})})
    return checkpoint


def _from_ours(path: str | Path, contents: dict) -> Checkpoint:
    if contents[FORMAT] > VERSION:
        raise UserError(f"{path} is of a later version of this repository ({contents[FORMAT]}); update it")
    config = TrainConfig(**{name: value for name, value in contents["config"].items() if name in SETTINGS})
    return Checkpoint(
        path=Path(path),
        model=_make_model(path, config.model, contents["model_args"], contents["model"]),
        config=config,
        classes=tuple(contents["classes"]),
        mean=tuple(contents["mean"]),
        std=tuple(contents["std"]),
        history=contents["history"],
    )


def _from_foreign(path: str | Path, contents: dict, dataset: str | None, given: dict) -> Checkpoint:
    state, arguments, notes = foreign_weights.translate(contents, path, num_heads=given.get("num_heads"))
    _check_against(path, {**arguments, "model": "vit"}, given)
    arguments = {**{name: value for name, value in given.items() if name != "model"}, **arguments}
    classes = _name_classes(path, dataset, arguments["num_classes"])
    half = arguments["in_chans"] * (0.5,)
    return Checkpoint(
        path=Path(path),
        model=_make_model(path, "vit", arguments, state),
        config=TrainConfig(**{**arguments, "dataset": dataset, "drop_rate": 0.0}),
        classes=classes,
        mean=half,
        std=half,
        history=[],
        notes=(*notes, "the file does not say how images were normalised: taken to be (image - 0.5) / 0.5"),
    )


def _name_classes(path: str | Path, dataset: str | None, num_classes: int) -> tuple[str, ...]:
    """The classes of a data set, if a foreign file's is known, otherwise "0", "1", ...; UserError if they are not
    as many as the model's outputs."""
    if dataset is not None and dataset not in DATASETS:
        raise UserError(f"--dataset {dataset!r} is unknown; choose {', '.join(DATASETS)}")
    if not dataset or dataset == "folder":
        return tuple(str(i) for i in range(num_classes))
    classes = DATASETS[dataset].classes
    if len(classes) != num_classes:
        raise UserError(f"--dataset {dataset} has {len(classes)} classes, {path} has {num_classes}")
    return classes


def _check_against(path: str | Path, known: dict, given: dict) -> None:
    """UserError if a flag contradicts what the file says."""
    for name, value in given.items():
        if name in known and known[name] != value:
            raise UserError(f"{flag(name)} {value}: {path} has {known[name]}; leave the flag out")


def _make_model(path: str | Path, name: str, model_args: dict, state: dict) -> nn.Module:
    """A model of MODELS with those arguments and those weights, in float32."""
    try:
        model = resolve_name(MODELS[name])(**model_args)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit the architecture that it names: {reason}") from None
    return model


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Start `model` from the weights of a checkpoint, ours or foreign (fine-tuning), and return lines that say
    what was used and what was not.

    The position embedding is resized if the number of patches differs (foreign_weights.resize_positions); a head
    for other classes keeps its fresh weights. Raises UserError if nothing fits, or if the number of heads differs
    (tensor shapes cannot show it).
    """
    contents = read_checkpoint(path)
    is_vit = isinstance(model, VisionTransformer)
    known = {"num_heads": model.blocks[0].attn.num_heads} if is_vit and not _is_ours(contents) else {}
    checkpoint = _from_contents(path, contents, None, known)
    pretrained, initial, resized = checkpoint.model.state_dict(), model.state_dict(), []
    if is_vit and isinstance(checkpoint.model, VisionTransformer):
        heads = checkpoint.model.blocks[0].attn.num_heads
        if heads != model.blocks[0].attn.num_heads:
            raise UserError(
                f"--init_from {path}: it has {heads} attention heads, not {model.blocks[0].attn.num_heads}; "
                f"give --num_heads {heads}"
            )
        old, new, prefix = checkpoint.model.grid_size, model.grid_size, int(checkpoint.model.has_cls)
        if old != new:
            positions = pretrained["pos_embed"]
            pretrained["pos_embed"] = foreign_weights.resize_positions(positions, old=old, new=new, prefix=prefix)
            resized = [f"position embedding resized from {old} x {old} to {new} x {new} patches"]
    used = {k: v for k, v in pretrained.items() if k in initial and v.shape == initial[k].shape}
    if not any(name.startswith(("blocks.", "features.", "layers.", "layer1.")) for name in used):
        raise UserError(f"--init_from {path}: none of its blocks fits this model; give it the same width")
    model.load_state_dict({**initial, **used})
    lines = [*checkpoint.notes, f"--init_from {path}: {len(used)} of {len(pretrained)} tensors used", *resized]
    for title, state in (("not used", pretrained), ("fresh", initial)):
        names = [name for name in state if name not in used]
        lines += [f"{title}: {', '.join(names)}"] if names else []
    return lines
