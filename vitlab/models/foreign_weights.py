"""Weights of other repositories' Vision Transformers, under our names (layouts.py).

    theirs = translate(torch.load("theirs.pth", weights_only=True), "theirs.pth", pool="cls")
    VisionTransformer(**theirs.arguments).load_state_dict(theirs.state)

The architecture is read off the tensors' shapes. Some things leave no trace in them: the number of attention heads
(unless their queries have norms), the epsilon of the norms, and in timm's layout what the head pools. A config.json
beside the weights may tell them. What cannot be represented is refused, never left out.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitlab.cli import UserError
from vitlab.config import flag
from vitlab.models.hub_config import read_facts
from vitlab.models.layouts import LAYOUTS, Layout, State, missing, rename

AVERAGED = {"ema", "teacher", "averaged"}  # words in the names of averaged weights
USUAL_HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1280: 16}  # of the published models, by width
UNSUPPORTED = {  # part of a tensor's name -> what the model has, in words
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "storage_tokens": "register tokens",
    "rope": "rotary positions",
    "norm_pre": "a norm before the first block",
    "attn_pool": "attention pooling",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "q_bias": "separate biases of queries and values",
    "attn.norm": "norms inside its blocks",
    "mlp.norm": "norms inside its blocks",
    "mlp.w12": "gated MLPs",
    "mlp.w1.": "gated MLPs",
    "mlp.fc1_g": "gated MLPs",
    "weights_in": "gated MLPs",
    "conv_bn_relu": "a convolutional stem",
}


@dataclass
class ForeignModel:
    """A foreign Vision Transformer as one of ours.

    state: its state dict. arguments: of VisionTransformer. notes: lines about what was guessed or left out.
    facts: what a config.json beside the file says (hub_config.read_facts).
    normalisation: mean and std of the images, one value per channel: by the facts, or as is usual in the layout; {} if
        nothing is known.
    """

    state: State
    arguments: dict
    notes: list[str]
    facts: dict
    normalisation: dict


def translate(
    contents: dict, path: str | Path, *, num_heads: int | None = None, pool: str | None = None, backbone: bool = False
) -> ForeignModel:
    """Translate a foreign file to a VisionTransformer of model.py.

    contents: what the file holds, a state dict or a dict with one somewhere inside (and pt_files' "config.json").
    path: the name of the file, for messages.
    num_heads: attention heads, if known. Otherwise those that are usual, and a note says so.
    pool: "cls" or "mean", if known: timm's global_pool "token" or "avg".
    backbone: only the blocks are wanted. Then the file need not have a head, and an unknown pool is no error.
    What the file itself says wins over num_heads and pool.

    Raises UserError if the layout is unknown, tensors are missing, the model has parts that ours lacks, or the file
    could be read in more than one way.
    """
    facts = read_facts(contents, path)
    name, state, notes = find_state(contents, path)
    layout = LAYOUTS[name]
    told_pool = facts.get("pool", pool)
    try:
        state, lines = under_our_names(state, path, layout)
        state, pool = read_head(state, path, pool=told_pool if name == "timm" else "cls", backbone=backbone)
        if lacking := missing(state):
            raise KeyError(lacking)
    except KeyError as error:
        raise UserError(f"{path} looks like the {name} layout but lacks {layout.theirs(error.args[0])!r}") from None
    arguments = read_sizes(state, path)
    if arguments["qk_norm"]:
        facts = {**facts, "num_heads": arguments["embed_dim"] // len(state["blocks.0.attn.q_norm.weight"])}
    arguments.update(pool=pool, norm_eps=facts.get("norm_eps", layout.norm_eps))
    usual = 4 if name == "teaching" else USUAL_HEADS.get(arguments["embed_dim"])
    arguments["num_heads"] = facts.get("num_heads") or num_heads or usual
    if not arguments["num_heads"]:
        raise UserError(f"{path} does not say how many attention heads it has; give {flag('num_heads')}")
    notes.append(f"{path}: {name} layout, {arguments['depth']} blocks {arguments['embed_dim']} wide")
    notes += lines
    if name == "timm" and told_pool is None:
        notes.append(f"the file does not say what its head reads: taken to be {pool}; --pool sets it")
    if num_heads is None and "num_heads" not in facts:
        notes.append(
            f"the file does not say how many attention heads: taken to be {usual}; {flag('num_heads')} sets it"
        )
    of_facts = {kind: facts[kind] for kind in ("mean", "std") if kind in facts}
    return ForeignModel(state, arguments, notes, facts, {**layout.normalisation, **of_facts})


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
            "reads its own checkpoints and plain Vision Transformers of timm, torchvision, transformers "
            "(ViTForImageClassification), DINO, MAE, DeiT, and of the teaching layout (embedding.pos_embedding, ...)"
        )
    _, layout, state = averaged[0]
    return layout, state, notes


def state_dicts(contents: dict, place: str = "") -> Iterator[tuple[str, str, State]]:
    """(place, layout, state dict) of every Vision Transformer in nested dicts. What wrappers have put before its names,
    such as "module." or "model.", is left out there and ends the place."""
    tensors = {str(name): value for name, value in contents.items() if isinstance(value, torch.Tensor)}
    for layout, known in LAYOUTS.items():
        for name in tensors:
            prefix = name.removesuffix(known.anchor)
            if prefix != name and prefix[-1:] in ("", "."):
                prefix = re.sub(r"(^|\.)(vit|deit)\.$", r"\1", prefix) if layout == "transformers" else prefix
                state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                yield f"{place}{prefix}".strip(".") or "weights", layout, state
    for key, value in contents.items():
        if isinstance(value, dict):
            yield from state_dicts(value, f"{place}{key}.")


def under_our_names(state: State, path: str | Path, layout: Layout) -> tuple[State, list[str]]:
    """The tensors under our names, as far as that changes no logits, and notes; KeyError if one is missing.

    LayerScale is multiplied into the weights, CLS gets a position of zeros if it has none, and a distillation token
    is dropped, which does change the logits.
    """
    for part, words in UNSUPPORTED.items():
        if any(part in name for name in state):
            raise UserError(f"{path} has {words}, which this Vision Transformer lacks; choose a model without")
    if layout is LAYOUTS["timm"] and not {"head.weight", "head.fc2.weight"} & state.keys():  # DINO's projection head
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    state, unknown = rename(state, layout)
    if unknown:
        raise UserError(
            f"{path} has {', '.join(unknown[:3])}, which this Vision Transformer lacks; choose a model without"
        )
    if "pos_embed" not in state:
        raise UserError(
            f"{path} has no position embedding (rotary positions leave none), which this Vision Transformer needs; "
            "choose a model with one"
        )
    state, notes = drop_distillation(state)
    return fold_layer_scale(add_cls_position(state)), notes


def drop_distillation(state: State) -> tuple[State, list[str]]:
    """The state without the distillation token of DeiT (Touvron et al., arXiv:2012.12877, section 4) and its head, and
    a line that says so."""
    if "dist_token" not in state:
        return state, []
    state = {name: value for name, value in state.items() if not name.startswith(("dist_token", "head_dist."))}
    positions = state["pos_embed"]  # of CLS, the token and the patches, or of the patches alone
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    return state, ["the distillation token and its head are dropped: the head of CLS alone answers"]


def read_head(state: State, path: str | Path, *, pool: str | None, backbone: bool) -> tuple[State, str]:
    """The state as our model has it for what its head pools, and the name of that; KeyError if the last norm is
    missing."""
    norm_last, has_cls = "fc_norm.weight" in state, "cls_token" in state
    if not backbone and not {"head.weight", "head.fc2.weight"} & state.keys():
        raise UserError(f"{path} is a backbone without a head: it names no classes; fine-tune it: train.py --init_from")
    if not has_cls:
        return read_without_cls(state, path, pool)
    if not norm_last and "norm.weight" not in state:
        raise KeyError("norm.weight")
    if pool not in ("cls", "mean", "normed_mean") and not backbone:
        raise UserError(
            f"{path} does not say what its head reads; give --pool cls (timm's global_pool='token') or --pool mean "
            "(timm's global_pool='avg')"
        )
    pool = pool or ("mean" if norm_last else "cls")
    if pool in ("mean", "normed_mean"):  # timm's fc_norm, True or False
        pool = "mean" if norm_last else "normed_mean"
    if pool != "mean" and norm_last:  # timm's fc_norm=True: of one token it is the same
        state = {name.replace("fc_norm.", "norm."): value for name, value in state.items()}
    return state, pool


def read_without_cls(state: State, path: str | Path, pool: str | None) -> tuple[State, str]:
    """The state of a model without CLS for our pool "seq": timm's mean of the normed tokens is that with a query of
    zeros. UserError if its head pools otherwise."""
    if pool == "cls" or "fc_norm.weight" in state:
        words = "and its last norm comes after the mean" if pool != "cls" else "for --pool cls"
        raise UserError(f"{path} has no CLS token {words}, which this Vision Transformer needs; choose another model")
    query = {"seq_pool.weight": torch.zeros(1, state["pos_embed"].shape[2]), "seq_pool.bias": torch.zeros(1)}
    return {**query, **state}, "seq"


def read_sizes(state: State, path: str | Path) -> dict:
    """The model arguments that the shapes of the tensors show."""
    if state["patch_embed.proj.weight"].ndim != 4:
        raise UserError(f"{path} does not cut its patches by a 2-D convolution, as this reads; choose another model")
    embed_dim, in_chans, patch_size, width = state["patch_embed.proj.weight"].shape
    patches = state["pos_embed"].shape[1] - ("cls_token" in state)
    grid_size = math.isqrt(patches)
    if width != patch_size or grid_size**2 != patches:
        raise UserError(
            f"{path}: its {patches} patches of {patch_size} x {width} pixels make no square; this reads square "
            "images of square patches"
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    mlp_ratio = hidden / embed_dim
    if int(embed_dim * mlp_ratio) < hidden:  # rounded down
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    if state["blocks.0.mlp.fc2.weight"].shape[1] != hidden:
        raise UserError(f"{path} has gated MLPs, which this Vision Transformer lacks; choose a model without")
    if "head.fc1.weight" in state and len(state["head.fc1.weight"]) != embed_dim:
        raise UserError(f"{path} has a representation layer of another width, which this Vision Transformer lacks")
    classes = state.get("head.fc2.weight", state.get("head.weight"))
    return dict(
        img_size=grid_size * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=1 if classes is None else classes.shape[0],
        embed_dim=embed_dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        mlp_ratio=mlp_ratio,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        head="mlp" if "head.fc1.weight" in state else "linear",
    )


def add_cls_position(state: State) -> State:
    """Give CLS a position embedding of zeros if it has none (timm's no_embed_class). The logits stay the same."""
    positions = state["pos_embed"]  # 1 x P x D without one, 1 x (1 + P) x D with one; P is a square
    if "cls_token" not in state or math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
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
