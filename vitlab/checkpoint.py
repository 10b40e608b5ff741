"""One self-describing file: weights, config, classes, normalisation, history; and readers of
foreign layouts.

    found = load_checkpoint("model/vit-plain-cpu-32-cifar10")     # a file, or a run folder's best.pt
    found.predict(Image.open("cat.png"))                          # [("cat", 0.93), ...]
    found = load_checkpoint("theirs.pth", dataset="cifar10", num_heads=4)

Files are read with weights_only=True: nothing in them is run.
"""

import dataclasses
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch
import torch.nn.functional as F

from vitlab.catalog import ARGUMENTS, DATASETS, describe
from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, flag
from vitlab.datasets.images import to_batch
from vitlab.files import replacing
from vitlab.models.registry import MODELS

FORMAT = "vit-small-images"  # the key by which our files are known


VERSION = 1


DEFAULT_MODEL = "model/vit-conv-cpu-32-cifar10"  # of test.py and visualize.py; comes with the repository


def save_checkpoint(path, model, config, *, classes, mean, std, history, **more):
    """Write a checkpoint. `more` is what load() does not need, such as the optimiser's state.

    Raises UserError where it cannot be written; a file that was there stays as it was.
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


def write_checkpoint(path, contents):
    """Write a dict of tensors and plain values beside `path`, then rename it into place."""
    with replacing(path) as part, open(part, "wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # so the zip writer calls a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path):
    """The contents of a .pt file of tensors and plain values; UserError where it is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; train one with train.py, or check --model_path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than weights: pickled Python, which is refused and was not run; "
            "where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except (LookupError, AttributeError, EOFError, AssertionError, struct.error):  # what torch makes of other files
        raise UserError(f"{path} is no whole checkpoint; check --model_path, or copy it again") from None
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no whole checkpoint ({reason}); copy it again") from None


@dataclass
class Checkpoint:
    """A trained model and what it needs to be used.

    `history` has one dict an epoch; `classes` names the logits; `mean` and `std` normalise images in
    0..1; `config.dataset` is None for a foreign file whose data set was not named; `notes` says what
    was guessed of a foreign file.
    """

    path: Path
    model: torch.nn.Module  # a VisionTransformer, or one of MODELS
    config: TrainConfig
    classes: tuple
    mean: tuple
    std: tuple
    history: list
    contents: dict
    notes: tuple = ()

    @property
    def run_name(self):
        """NAME of the run that the file is of, or the name of a file by itself."""
        of_a_run = self.path.is_dir() or self.path.stem in ("best", "last") or self.path.stem.startswith("ViT_model_")
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().name if of_a_run else self.path.stem

    def data_config(self, **settings):
        """The config with which to read the data set here: the run's own under those settings. Images
        of a folder are looked for where they were, unless data_path says otherwise.

        Raises UserError where the file does not say its data set, or the folder has other classes.
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

    def batch(self, image):
        """A PIL image as the model takes it: float 1 x in_chans x img_size x img_size."""
        args = self.model
        images = to_batch(image, img_size=args.img_size, in_chans=args.in_chans, mean=self.mean, std=self.std)
        return images.to(next(self.model.parameters()).device)

    @torch.inference_mode()
    def predict(self, image, top=5):
        """The `top` likeliest classes of a PIL image: [(name, probability), ...], best first."""
        return self.name(self.model(self.batch(image))[0], top)

    def name(self, logits, top=5):
        """The `top` likeliest classes of one image's logits: [(name, probability), ...]."""
        likeliest = logits.softmax(-1).topk(min(top, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist())]


def load_checkpoint(path, *, device="cpu", dataset=None, **model_args):
    """Read a checkpoint: a file of ours, a plain state dict of the teaching layout or of timm's
    VisionTransformer, or a run folder (its best.pt).

    `model_args` (timm's names: num_heads=3, pool="mean") and `dataset` supply what a foreign file
    does not say. Raises UserError where one contradicts the file, where the file is damaged or of
    another architecture, or where it holds code.
    """
    contents = read_checkpoint(path)
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict()")
    if FORMAT in contents:
        found = _load_ours(path, contents)
        names = ("dataset", "model", *ARGUMENTS[found.config.model])
        known = {name: getattr(found.config, name) for name in names}
        for name in model_args:
            if name not in known:
                raise UserError(f"{flag(name)}: {path} is a {found.config.model}, which has none; leave the flag out")
        _check_against(path, known, {**model_args, **({"dataset": dataset} if dataset else {})})
    else:
        found = _load_foreign(path, contents, dataset, model_args)
    found.model.to(device).eval()
    return found


def _check_against(path, known, given):
    for name, value in given.items():
        if name in known and known[name] != value:
            raise UserError(f"{flag(name)} {value}: {path} has {known[name]}; leave the flag out")


def _fill(path, name, model_args, state):
    """A model of that name and those arguments with those weights."""
    try:
        model = resolve_name(MODELS[name])(**model_args)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit the architecture that it names: {reason}") from None
    return model


def _load_ours(path, contents):
    if contents[FORMAT] > VERSION:
        raise UserError(f"{path} is of a later version of this repository ({contents[FORMAT]}); update it")
    config = TrainConfig(**{name: value for name, value in contents["config"].items() if name in SETTINGS})
    return Checkpoint(
        path=Path(path),
        model=_fill(path, config.model, contents["model_args"], contents["model"]),
        config=config,
        classes=tuple(contents["classes"]),
        mean=tuple(contents["mean"]),
        std=tuple(contents["std"]),
        history=contents["history"],
        contents=contents,
    )


def load_weights(model, path):
    """Start `model` from the weights of a checkpoint, ours or foreign (fine-tuning).

    The position embedding is resized to another number of patches (section 3.2 of the paper), and a
    head for other classes stays as it is. Returns lines that say what was used and what was not.
    Raises UserError where nothing fits, or where the heads are not as many, which no shape shows.
    """
    foreign = FORMAT not in read_checkpoint(path)
    found = load_checkpoint(
        path, **({"num_heads": model.blocks[0].attn.num_heads} if foreign and hasattr(model, "blocks") else {})
    )
    heads = [each.blocks[0].attn.num_heads for each in (found.model, model) if hasattr(each, "blocks")]
    if len(set(heads)) > 1:
        raise UserError(
            f"--init_from {path}: it has {heads[0]} attention heads, not {heads[1]}; give --num_heads {heads[0]}"
        )
    theirs, ours = found.model.state_dict(), model.state_dict()
    old, new = (getattr(each, "grid_size", None) for each in (found.model, model))
    if "pos_embed" in ours and "pos_embed" in theirs and old != new:
        split = found.model.has_cls
        first, patches = theirs["pos_embed"][:, :split], theirs["pos_embed"][:, split:]
        patches = patches.view(1, old, old, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=(new, new), mode="bicubic", antialias=True)
        theirs["pos_embed"] = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    used = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    if not any(name.startswith(("blocks.", "features.", "layers.", "layer1.")) for name in used):
        raise UserError(f"--init_from {path}: none of its blocks fits this model; give it the same width")
    model.load_state_dict({**ours, **used})
    left, fresh = [name for name in theirs if name not in used], [name for name in ours if name not in used]
    lines = [*found.notes, f"--init_from {path}: {len(used)} of {len(theirs)} tensors used"]
    if old and new and old != new:
        lines.append(f"position embedding resized from {old} x {old} to {new} x {new} patches")
    lines += [f"not used: {', '.join(left)}"] if left else []
    lines += [f"fresh: {', '.join(fresh)}"] if fresh else []
    return lines


def _load_foreign(path, contents, dataset, given):
    state = contents
    for wrapper in ("state_dict", "model", "model_state_dict"):
        state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
    state = {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}

    if "embedding.pos_embedding" in state and "classifier.fc1.weight" in state:
        layout, known = "teaching", {"pool": "cls", "head": "mlp", "norm_eps": 1e-5}
        state = _rename_teaching(path, state)
        heads = 4
    elif "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state and "cls_token" in state:
        layout, known = "timm", {"head": "linear", "norm_eps": 1e-6}
        known["pool"] = "mean" if "fc_norm.weight" in state else "cls"
        heads = max(1, state["cls_token"].shape[-1] // 64)  # timm's named models: 64 a head
    else:
        names = ", ".join(list(state)[:3])
        raise UserError(
            f"{path} is of another architecture (its first entries: {names}); this reads its own checkpoints, "
            "the teaching layout (embedding.pos_embedding, ...) and timm's VisionTransformer"
        )

    try:
        width, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        tokens = state["pos_embed"].shape[1]
        last = "head.fc2.weight" if known["head"] == "mlp" else "head.weight"
        side = round((tokens - 1) ** 0.5)
        if side**2 == tokens:  # timm's no_embed_class: CLS has no position
            tokens, side = tokens + 1, round(tokens**0.5)
            zero = torch.zeros(1, 1, width)
            state["pos_embed"] = torch.cat([zero, state["pos_embed"].float()], dim=1)
        known.update(
            img_size=side * patch_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=state[last].shape[0],
            embed_dim=width,
            depth=depth,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} looks like the {layout} layout but lacks {error}") from None
    _check_against(path, {**known, "model": "vit"}, given)

    notes = [f"{path}: {layout} layout, {depth} blocks {width} wide"]
    if "num_heads" not in given:
        notes.append(
            f"the file does not say how many attention heads: taken to be {heads}; --n_attention_heads sets it"
        )
    model_args = {"num_heads": heads, **given, **known}
    model_args.pop("model", None)
    if dataset is not None and dataset not in DATASETS:
        raise UserError(f"--dataset {dataset!r} is unknown; choose {', '.join(DATASETS)}")
    classes = (
        DATASETS[dataset].classes
        if dataset and dataset != "folder"
        else tuple(str(i) for i in range(known["num_classes"]))
    )
    if len(classes) != known["num_classes"]:
        raise UserError(f"--dataset {dataset} has {len(classes)} classes, {path} has {known['num_classes']}")
    config = TrainConfig(**{**model_args, "dataset": dataset, "drop_rate": 0.0})
    half = in_chans * (0.5,)
    notes.append("the file does not say how images were normalised: taken to be (image - 0.5) / 0.5")
    model = _fill(path, "vit", model_args, state)
    return Checkpoint(Path(path), model, config, tuple(classes), half, half, [], {}, tuple(notes))


def _rename_teaching(path, old):
    """The teaching layout's weights under our names. Its position embedding has no row for CLS (a
    zero one does the same), and its query, key and value projections are separate."""
    new = {}
    try:
        patches = old["embedding.pos_embedding"].float()
        new["pos_embed"] = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        new["cls_token"] = old["embedding.cls_token"].reshape(1, 1, -1)
        for kind in ("weight", "bias"):
            new[f"patch_embed.proj.{kind}"] = old[f"embedding.conv1.{kind}"]
            new[f"norm.{kind}"] = old[f"norm.{kind}"]
            for layer in ("fc1", "fc2"):
                new[f"head.{layer}.{kind}"] = old[f"classifier.{layer}.{kind}"]
        for i in sorted({int(name.split(".")[1]) for name in old if name.startswith("encoder.")}):
            for kind in ("weight", "bias"):
                theirs, ours = f"encoder.{i}.", f"blocks.{i}."
                qkv = [old[f"{theirs}attention.{part}.{kind}"] for part in ("queries", "keys", "values")]
                new[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
                new[f"{ours}attn.proj.{kind}"] = old[f"{theirs}attention.out_projection.{kind}"]
                for part in ("norm1", "norm2"):
                    new[f"{ours}{part}.{kind}"] = old[f"{theirs}{part}.{kind}"]
                for part in ("fc1", "fc2"):
                    new[f"{ours}mlp.{part}.{kind}"] = old[f"{theirs}{part}.{kind}"]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} looks like the teaching layout but lacks {error}") from None
    return new
