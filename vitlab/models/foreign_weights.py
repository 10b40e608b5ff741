"""Weights of other repositories' Vision Transformers, under our names: timm's layout and the teaching layout.

    state, arguments, notes = translate(torch.load("theirs.pth", weights_only=True), "theirs.pth")
    VisionTransformer(**arguments).load_state_dict(state)

The architecture is read off the tensors' shapes. Only the number of attention heads leaves no trace in them.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from vitlab.cli import UserError

State = dict[str, torch.Tensor]  # the name of a parameter -> its values

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts save their weights
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


def translate(contents: dict, path: str | Path, *, num_heads: int | None = None) -> tuple[State, dict, list[str]]:
    """Translate a foreign file to a VisionTransformer of model.py: (state dict, model arguments, notes).

    contents: what the file holds, a state dict or a dict with one inside.
    path: the name of the file, for messages.
    num_heads: attention heads, if known. Otherwise they are guessed, and a note says so.

    Raises UserError if the layout is unknown or tensors are missing.
    """
    state = unwrap(contents)
    if "embedding.pos_embedding" in state and "classifier.fc1.weight" in state:
        layout, guess = "teaching", 4
        state = rename_teaching(state, path)
        arguments = {"pool": "cls", "head": "mlp", "norm_eps": 1e-5}
    elif "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state and "cls_token" in state:
        layout, guess = "timm", max(1, state["cls_token"].shape[-1] // 64)  # timm's named models: 64 channels a head
        arguments = {"pool": "mean" if "fc_norm.weight" in state else "cls", "head": "linear", "norm_eps": 1e-6}
    else:
        raise UserError(
            f"{path} is of another architecture (its first entries: {', '.join(list(state)[:3])}); this reads its own "
            "checkpoints, the teaching layout (embedding.pos_embedding, ...) and timm's VisionTransformer"
        )
    try:
        state = add_cls_position(state)
        arguments.update(read_sizes(state, head=arguments["head"]), num_heads=num_heads or guess)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} looks like the {layout} layout but lacks {error}") from None
    notes = [f"{path}: {layout} layout, {arguments['depth']} blocks {arguments['embed_dim']} wide"]
    if num_heads is None:
        notes.append(
            f"the file does not say how many attention heads: taken to be {guess}; --n_attention_heads sets it"
        )
    return state, arguments, notes


def unwrap(contents: dict) -> State:
    """The state dict inside a training script's file, its names without the prefixes of torch's wrappers."""
    for key in WRAPPERS:
        contents = contents[key] if isinstance(contents.get(key), dict) else contents
    state = {}
    for name, value in contents.items():
        name = str(name)
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        state[name] = value
    return state


def read_sizes(state: State, *, head: str) -> dict:
    """The model arguments that the shapes of timm-named tensors show; KeyError or ValueError if one is missing."""
    embed_dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    grid_size = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return dict(
        img_size=grid_size * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=state["head.fc2.weight" if head == "mlp" else "head.weight"].shape[0],
        embed_dim=embed_dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )


def add_cls_position(state: State) -> State:
    """Give CLS a position embedding of zeros if it has none (timm's no_embed_class). The logits stay the same."""
    positions = state["pos_embed"]  # 1 x P x D without one, 1 x (1 + P) x D with one; P is a square
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        return state
    zero = torch.zeros(1, 1, positions.shape[2])
    return {**state, "pos_embed": torch.cat([zero, positions.float()], dim=1)}


def rename_teaching(old: State, path: str | Path) -> State:
    """The teaching layout's tensors under our names.

    Its position embedding has no row for CLS, so it gets one of zeros; its query, key and value projections are
    separate, so they are joined. Raises UserError, naming `path`, if a tensor is missing.
    """
    new = {}
    try:
        patches = old["embedding.pos_embedding"].float()  # 1 x P x D
        new["pos_embed"] = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        new["cls_token"] = old["embedding.cls_token"].reshape(1, 1, -1)
        for kind in ("weight", "bias"):
            new[f"patch_embed.proj.{kind}"] = old[f"embedding.conv1.{kind}"]
            new[f"norm.{kind}"] = old[f"norm.{kind}"]
            for layer in ("fc1", "fc2"):
                new[f"head.{layer}.{kind}"] = old[f"classifier.{layer}.{kind}"]
        for i in sorted({int(name.split(".")[1]) for name in old if name.startswith("encoder.")}):
            new.update(rename_teaching_block(old, f"encoder.{i}", f"blocks.{i}"))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} looks like the teaching layout but lacks {error}") from None
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
