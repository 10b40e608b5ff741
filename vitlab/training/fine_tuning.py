"""Fine-tuning: a new run that starts from the weights and the architecture of a file (--init_from)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model import VisionTransformer
from vitlab.catalog import ARGUMENTS, channel_statistics
from vitlab.checkpoint import is_ours, read_checkpoint, read_config
from vitlab.cli import UserError
from vitlab.config import flag
from vitlab.models import foreign_weights
from vitlab.models.resampling import adapt_channels, resize_patches, resize_positions

NOT_INHERITED = ("num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate")  # of the data, or of the recipe


def take_architecture(path: str | Path, given: dict) -> dict:
    """The settings of the model whose weights lie at `path`, ours or foreign, to put under the settings that the user
    has `given`: its architecture, and how its images were normalised where that is known. Prints those of them that
    differ: they win. Raises UserError if the file is of another kind of model.
    """
    contents = _read(path)
    if is_ours(contents):
        config, normalisation = read_config(path, contents), contents
        settings = {name: getattr(config, name) for name in ("model", *ARGUMENTS[config.model])}
    else:
        known = {name: given.get(name) for name in ("num_heads", "pool")}
        theirs = foreign_weights.translate(contents, path, **known, backbone=True)
        settings, normalisation = {"model": "vit", "stem": "linear", **theirs.arguments}, theirs.normalisation
    settings = {name: value for name, value in settings.items() if name not in NOT_INHERITED}
    if given.get("model", settings["model"]) != settings["model"]:
        raise UserError(f"--model {given['model']}: --init_from {path} is a {settings['model']}; leave one out")
    in_chans = given.get("in_chans", settings["in_chans"])
    known = [name for name in ("mean", "std") if name in normalisation]
    settings |= {name: channel_statistics(normalisation[name], in_chans) for name in known}
    if not {"mean", "std"} & (settings.keys() | given.keys()):
        print(f"{path} does not say how images were normalised: as the data set's own; --mean and --std set it")
    for name, value in settings.items():
        if given.get(name, value) != value:
            print(f"{flag(name)} {given[name]} wins over {value} of --init_from {path}")
    if {"mean", "std"} & given.keys():  # one of the user's is not paired with one of the file's
        settings = {name: value for name, value in settings.items() if name not in ("mean", "std")}
    return settings


def load_weights(model: nn.Module, path: str | Path, classes: Sequence[str]) -> list[str]:
    """Start `model` from the weights of a checkpoint, ours or foreign, and return lines that say what was used and
    what was not.

    Patches of another size or number of channels, and a position embedding of another number of patches, are resampled
    (models/resampling.py). The last layer keeps its fresh weights unless the file was trained on these very `classes`.
    Raises UserError if nothing
    fits, or if the number of heads differs (tensor shapes cannot show it).
    """
    contents, notes = _read(path), []
    heads = model.blocks[0].attn.num_heads if isinstance(model, VisionTransformer) else None
    if is_ours(contents):
        pretrained, arguments, named = contents["model"], contents["model_args"], contents["classes"]
    else:
        pool = getattr(model, "pool", None)
        theirs = foreign_weights.translate(contents, path, num_heads=heads, pool=pool, backbone=True)
        pretrained, arguments, notes = theirs.state, theirs.arguments, theirs.notes
        named = theirs.facts.get("classes", ())
    if heads and arguments.get("num_heads", heads) != heads:
        raise UserError(
            f"--init_from {path}: it has {arguments['num_heads']} attention heads, not {heads}; "
            f"give {flag('num_heads')} {arguments['num_heads']}"
        )
    initial = model.state_dict()
    if heads and "pos_embed" in pretrained:
        for fit in (fit_patches, fit_positions):
            pretrained, lines = fit(pretrained, model)
            notes += lines
    used = {name: value for name, value in pretrained.items() if name in initial and value.shape == initial[name].shape}
    if not any(name.startswith(("blocks.", "features.", "layers.", "layer1.")) for name in used):
        raise UserError(f"--init_from {path}: none of its blocks fits this model; give it the same width")
    if tuple(named) != tuple(classes):
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        used = {name: value for name, value in used.items() if not name.startswith(f"{last}.")}
    model.load_state_dict({**initial, **used})
    lines = [*notes, f"--init_from {path}: {len(used)} of {len(pretrained)} tensors used"]
    for title, state in (("not used", pretrained), ("fresh", initial)):
        names = [name for name in state if name not in used]
        lines += [f"{title}: {', '.join(names)}"] if names else []
    return lines


def fit_patches(state: dict, model: VisionTransformer) -> tuple[dict, list[str]]:
    """The state with the patch projection resampled to the model's patch size and channels, and lines about that."""
    name, lines = "patch_embed.proj.weight", []
    if name not in state or name not in model.state_dict():  # a convolutional stem
        return state, lines
    weight, size = state[name], model.patch_embed.proj.weight.shape[-1]
    if weight.shape[1] != model.in_chans:
        lines.append(f"patch projection adapted from {weight.shape[1]} to {model.in_chans} channels")
        weight = adapt_channels(weight, model.in_chans)
    if weight.shape[-1] != size:
        lines.append(f"patch projection resampled from {weight.shape[-1]} to {size} pixels a side")
        weight = resize_patches(weight, size)
    return {**state, name: weight}, lines


def fit_positions(state: dict, model: VisionTransformer) -> tuple[dict, list[str]]:
    """The state with the position embedding resized to the model's patches, and its row of CLS as the model has it;
    and a line about it, if it was resized."""
    positions, old, new = state["pos_embed"].float(), math.isqrt(state["pos_embed"].shape[1]), model.grid_size
    prefix = positions.shape[1] - old**2  # 1 for CLS, or 0
    lines = []
    if old != new:
        positions = resize_positions(positions, old=old, new=new, prefix=prefix)
        lines = [f"position embedding resized from {old} x {old} to {new} x {new} patches"]
    if prefix > model.has_cls:
        positions = positions[:, 1:]
    elif prefix < model.has_cls and positions.shape[-1] == model.pos_embed.shape[-1]:
        positions = torch.cat([model.pos_embed[:, :1].detach().cpu(), positions], dim=1)
    return {**state, "pos_embed": positions}, lines


def _read(path: str | Path) -> dict:
    contents = read_checkpoint(path)
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict()")
    return contents
