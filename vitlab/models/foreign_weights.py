"""Weights of other repositories' Vision Transformers, under our names: timm's layout and the teaching layout.

    state, arguments, notes = translate(torch.load("theirs.pth", weights_only=True), "theirs.pth", pool="cls")
    VisionTransformer(**arguments).load_state_dict(state)

The architecture is read off the tensors' shapes. Two things leave no trace in them: the number of attention heads, and
in timm's layout what the head pools. What cannot be represented is refused, never left out.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from vitlab.cli import UserError
from vitlab.config import flag

State = dict[str, torch.Tensor]  # the name of a parameter -> its values

LAYOUTS = {  # a tensor that every file of the layout has
    "timm": "patch_embed.proj.weight",
    "teaching": "embedding.pos_embedding",
}
AVERAGED = {"ema", "teacher", "averaged"}  # words in the names of averaged weights
TIMM_HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16}  # width -> heads of timm's named models
UNSUPPORTED = {  # part of a tensor's name -> what the model has, in words
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre": "a norm before the first block",
    "attn_pool": "attention pooling",
    "q_norm": "norms of queries and keys",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "q_bias": "separate biases of queries and values",
    "attn.norm": "norms inside its blocks",
    "mlp.norm": "norms inside its blocks",
    "mlp.w12": "gated MLPs",
}
PRETRAINING = ("decoder_", "mask_token", "decoder.")  # what only the pretraining of an MAE or DINOv2 used


def translate(
    contents: dict, path: str | Path, *, num_heads: int | None = None, pool: str | None = None, backbone: bool = False
) -> tuple[State, dict, list[str]]:
    """Translate a foreign file to a VisionTransformer of model.py: (state dict, model arguments, notes).

    contents: what the file holds, a state dict or a dict with one somewhere inside.
    path: the name of the file, for messages.
    num_heads: attention heads, if known. Otherwise those that are usual, and a note says so.
    pool: "cls" or "mean", if known: timm's global_pool "token" or "avg".
    backbone: only the blocks are wanted. Then the file need not have a head, and an unknown pool is no error.

    Raises UserError if the layout is unknown, tensors are missing, the model has parts that ours lacks, or the file
    could be read in more than one way.
    """
    layout, state, notes = find_state(contents, path)
    try:
        if layout == "teaching":
            state, arguments = rename_teaching(state), {"pool": "cls", "head": "mlp", "norm_eps": 1e-5}
        else:
            state, arguments = read_timm(state, path, pool=pool, backbone=backbone)
        arguments.update(read_sizes(state, path, head=arguments["head"]))
    except KeyError as error:
        raise UserError(f"{path} looks like the {layout} layout but lacks {error}") from None
    usual = 4 if layout == "teaching" else TIMM_HEADS.get(arguments["embed_dim"])
    if not (num_heads or usual):
        raise UserError(f"{path} does not say how many attention heads it has; give {flag('num_heads')}")
    arguments["num_heads"] = num_heads or usual
    notes.append(f"{path}: {layout} layout, {arguments['depth']} blocks {arguments['embed_dim']} wide")
    if layout == "timm" and pool is None:
        notes.append(f"the file does not say what its head reads: taken to be {arguments['pool']}; --pool sets it")
    if num_heads is None:
        notes.append(
            f"the file does not say how many attention heads: taken to be {usual}; {flag('num_heads')} sets it"
        )
    return state, arguments, notes


def find_state(contents: dict, path: str | Path) -> tuple[str, State, list[str]]:
    """(layout, state dict, notes) of a training script's file: under whatever keys and prefixes the weights lie there.

    Of a model and its average the average is taken, and a note says so. Raises UserError if there is no Vision
    Transformer, or more than one.
    """
    found = list(state_dicts(contents))
    if len(found) > 1:
        averaged = [one for one in found if AVERAGED & set(re.split(r"[._]", one[0]))]
        if len(averaged) != 1:
            names = ", ".join(place for place, _, _ in found)
            raise UserError(f"{path} holds several models ({names}); save the state dict of one of them")
        notes = [f"{path} holds {' and '.join(place for place, _, _ in found)}: {averaged[0][0]} is used"]
    elif found:
        averaged, notes = found, []
    else:
        while inner := [value for value in contents.values() if isinstance(value, dict) and value]:
            contents = inner[0]
        raise UserError(
            f"{path} is of another architecture (its first entries: {', '.join(map(str, list(contents)[:3]))}); this "
            "reads its own checkpoints, the teaching layout (embedding.pos_embedding, ...) and timm's VisionTransformer"
        )
    _, layout, state = averaged[0]
    return layout, state, notes


def state_dicts(contents: dict, place: str = "") -> Iterator[tuple[str, str, State]]:
    """(place, layout, state dict) of every Vision Transformer in nested dicts. What wrappers have put before its names,
    such as "module." or "model.", is left out there and ends the place."""
    tensors = {str(name): value for name, value in contents.items() if isinstance(value, torch.Tensor)}
    for layout, anchor in LAYOUTS.items():
        for name in tensors:
            prefix = name.removesuffix(anchor)
            if prefix != name and prefix[-1:] in ("", "."):
                state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                yield f"{place}{prefix}".strip(".") or "weights", layout, state
    for key, value in contents.items():
        if isinstance(value, dict):
            yield from state_dicts(value, f"{place}{key}.")


def read_timm(state: State, path: str | Path, *, pool: str | None, backbone: bool) -> tuple[State, dict]:
    """timm's tensors as our model has them, and the arguments that their names show; KeyError if one is missing."""
    useless = PRETRAINING if "head.weight" in state else (*PRETRAINING, "head.")  # DINO's head
    state = {name: value for name, value in state.items() if not name.startswith(useless)}
    check_supported(state, path)
    if "head.weight" not in state and not backbone:
        raise UserError(f"{path} is a backbone without a head: it names no classes; fine-tune it: train.py --init_from")
    if "fc_norm.weight" not in state and "norm.weight" not in state:
        raise KeyError("norm.weight")
    norm_last = "fc_norm.weight" in state
    if pool not in ("cls", "mean", "normed_mean") and not backbone:
        raise UserError(
            f"{path} does not say what its head reads; give --pool cls (timm's global_pool='token') or --pool mean "
            "(timm's global_pool='avg')"
        )
    pool = pool or ("mean" if norm_last else "cls")
    if pool in ("mean", "normed_mean"):  # timm's fc_norm, True or False
        pool = "mean" if norm_last else "normed_mean"
    if pool == "cls" and norm_last:  # timm's fc_norm=True: of one token it is the same
        state = {name.replace("fc_norm.", "norm."): value for name, value in state.items()}
    state = fold_layer_scale(add_cls_position(state))
    return state, {"pool": pool, "head": "linear", "norm_eps": 1e-6}


def check_supported(state: State, path: str | Path) -> None:
    """UserError, saying in words what the model has, if it is not a plain Vision Transformer with CLS and positions."""
    for part, words in UNSUPPORTED.items():
        if any(part in name for name in state):
            raise UserError(f"{path} has {words}, which this Vision Transformer lacks; choose a model without")
    for name, words in (("cls_token", "CLS token"), ("pos_embed", "position embedding")):
        if name not in state:
            raise UserError(f"{path} has no {words}, which this Vision Transformer needs; choose a model with one")


def read_sizes(state: State, path: str | Path, *, head: str) -> dict:
    """The model arguments that the shapes of timm-named tensors show; KeyError if a tensor is missing."""
    embed_dim, in_chans, patch_size, width = state["patch_embed.proj.weight"].shape
    patches = state["pos_embed"].shape[1] - 1
    grid_size = math.isqrt(patches)
    if width != patch_size or grid_size**2 != patches:
        raise UserError(
            f"{path}: its {patches} patches of {patch_size} x {width} pixels make no square; this reads square "
            "images of square patches"
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    if state["blocks.0.mlp.fc2.weight"].shape[1] != hidden:
        raise UserError(f"{path} has gated MLPs, which this Vision Transformer lacks; choose a model without")
    classes = state.get("head.fc2.weight" if head == "mlp" else "head.weight")
    return dict(
        img_size=grid_size * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=1 if classes is None else classes.shape[0],
        embed_dim=embed_dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        mlp_ratio=hidden / embed_dim,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )


def add_cls_position(state: State) -> State:
    """Give CLS a position embedding of zeros if it has none (timm's no_embed_class). The logits stay the same."""
    positions = state["pos_embed"]  # 1 x P x D without one, 1 x (1 + P) x D with one; P is a square
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        return state
    zero = torch.zeros(1, 1, positions.shape[2])
    return {**state, "pos_embed": torch.cat([zero, positions.float()], dim=1)}


def fold_layer_scale(state: State) -> State:
    """Multiply LayerScale's factors (arXiv:2103.17239) into the projection before them. The logits stay the same."""
    folded = {name: value for name, value in state.items() if not name.endswith((".ls1.gamma", ".ls2.gamma"))}
    for name in state.keys() - folded.keys():
        block, scale, _ = name.rsplit(".", 2)
        for kind in ("weight", "bias"):
            target = f"{block}.{'attn.proj' if scale == 'ls1' else 'mlp.fc2'}.{kind}"
            gamma, values = state[name].float(), state[target].float()
            folded[target] = gamma[:, None] * values if kind == "weight" else gamma * values
    return folded


def reorder_outputs(state: State, order: Sequence[int]) -> State:
    """Put the rows of the head's last layer in another order: output i is what output order[i] was."""
    last = [f"{name}.{kind}" for name in ("head", "head.fc2") for kind in ("weight", "bias")]
    return {name: value[list(order)] if name in last else value for name, value in state.items()}


def rename_teaching(old: State) -> State:
    """The teaching layout's tensors under our names.

    Its position embedding has no row for CLS, so it gets one of zeros; its query, key and value projections are
    separate, so they are joined. Raises KeyError if a tensor is missing.
    """
    new = {}
    patches = old["embedding.pos_embedding"].float()  # 1 x P x D
    new["pos_embed"] = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
    new["cls_token"] = old["embedding.cls_token"].reshape(1, 1, -1)
    for kind in ("weight", "bias"):
        new[f"patch_embed.proj.{kind}"] = old[f"embedding.conv1.{kind}"]
        new[f"norm.{kind}"] = old[f"norm.{kind}"]
        for layer in ("fc1", "fc2"):
            new[f"head.{layer}.{kind}"] = old[f"classifier.{layer}.{kind}"]
    for i in sorted({int(name.split(".")[1]) for name in old if re.match(r"encoder\.\d+\.", name)}):
        new.update(rename_teaching_block(old, f"encoder.{i}", f"blocks.{i}"))
    return new


def rename_teaching_block(old: State, theirs: str, ours: str) -> State:
    """One encoder block of the teaching layout, from the names below `theirs` to those below `ours`."""
    new = {}
    for kind in ("weight", "bias"):
        qkv = [old[f"{theirs}.attention.{part}.{kind}"] for part in ("queries", "keys", "values")]
        new[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
        new[f"{ours}.attn.proj.{kind}"] = old[f"{theirs}.attention.out_projection.{kind}"]
        for part in ("norm1", "norm2"):
            new[f"{ours}.{part}.{kind}"] = old[f"{theirs}.{part}.{kind}"]
        for part in ("fc1", "fc2"):
            new[f"{ours}.mlp.{part}.{kind}"] = old[f"{theirs}.{part}.{kind}"]
    return new


def resize_positions(pos_embed: torch.Tensor, *, old: int, new: int, prefix: int) -> torch.Tensor:
    """Interpolate a position embedding for another number of patches (Dosovitskiy et al., arXiv:2010.11929,
    section 3.2): 1 x (prefix + old * old) x D -> 1 x (prefix + new * new) x D.

    old, new: patches along one side. prefix: tokens before the patches, which stay as they are (1 for CLS, or 0).
    """
    first, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    patches = patches.view(1, old, old, -1).permute(0, 3, 1, 2)  # 1 x D x old x old
    patches = F.interpolate(patches, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
