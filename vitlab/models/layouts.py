"""How other repositories call the tensors of a Vision Transformer, and what the same tensors are called here.

In a name # stands for the number of a block, * for weight or bias. Separate projections of queries, keys and values are
called attn.q, attn.k and attn.v until join_projections() makes attn.qkv of them. DINO, MAE and DeiT have timm's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

State = dict[str, torch.Tensor]  # the name of a parameter -> its values

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PRETRAINING = ("decoder_", "decoder.", "mask_token", "pooler.")  # what only a pretraining used (MAE, DINOv2)
INSIDE = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")  # of a block
QK_NORMS = ("attn.q_norm", "attn.k_norm")  # of a block, in few models
OUTSIDE = ("cls_token", "pos_embed", *(f"{name}.*" for name in ("patch_embed.proj", "norm", "head", "head.fc1")))


@dataclass(frozen=True)
class Layout:
    """A way to name tensors.

    anchor: a tensor that every file of the layout has.
    names: their name -> ours.
    norm_eps: epsilon of the layer norms.
    normalisation: mean and std of the images, if all published weights have the same.
    """

    anchor: str
    names: Mapping[str, str]
    norm_eps: float
    normalisation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def ours(self, name: str) -> str | None:
        """Our name of one of their tensors; None if it has no counterpart."""
        return _translate(name, self.names.items())

    def theirs(self, name: str) -> str:
        """Their name of one of our tensors."""
        return _translate(name, ((ours, theirs) for theirs, ours in self.names.items())) or name


def _translate(name, pairs):
    for source, target in pairs:
        pattern = re.escape(source).replace(r"\#", r"(?P<block>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
        if match := re.fullmatch(pattern, name):
            found = match.groupdict()
            return target.replace("#", found.get("block", "#")).replace("*", found.get("kind", "*"))
    return None


def _block(prefix: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}{theirs}*": f"blocks.#.{ours}.*" for theirs, ours in parts.items()}


LAYOUTS = {
    "timm": Layout(
        anchor="patch_embed.proj.weight",
        names={
            **{name: name for name in OUTSIDE},
            **{name: name for name in ("dist_token", "fc_norm.*", "head.fc2.*", "head_dist.*", "seq_pool.*")},
            "pre_logits.fc.*": "head.fc1.*",
            **_block("blocks.#.", {f"{part}.": part for part in (*INSIDE, *QK_NORMS)}),
            **{f"blocks.#.ls{i}.gamma": f"blocks.#.ls{i}.gamma" for i in (1, 2)},
            **{f"blocks.#.gamma_{i}": f"blocks.#.ls{i}.gamma" for i in (1, 2)},  # DeiT III
        },
        norm_eps=1e-6,
    ),
    "torchvision": Layout(
        anchor="encoder.pos_embedding",
        names={
            "class_token": "cls_token",
            "encoder.pos_embedding": "pos_embed",
            "conv_proj.*": "patch_embed.proj.*",
            **_block(
                "encoder.layers.encoder_layer_#.",
                {
                    "ln_1.": "norm1",
                    "self_attention.in_proj_": "attn.qkv",
                    "self_attention.out_proj.": "attn.proj",
                    "ln_2.": "norm2",
                    **{"mlp.0.": "mlp.fc1", "mlp.3.": "mlp.fc2"},
                    **{"mlp.linear_1.": "mlp.fc1", "mlp.linear_2.": "mlp.fc2"},  # until torchvision 0.12
                },
            ),
            "encoder.ln.*": "norm.*",
            "heads.pre_logits.*": "head.fc1.*",
            "heads.head.*": "head.*",
        },
        norm_eps=1e-6,
        normalisation=IMAGENET,
    ),
    "transformers": Layout(
        anchor="embeddings.patch_embeddings.projection.weight",
        names={
            "embeddings.cls_token": "cls_token",
            "embeddings.distillation_token": "dist_token",
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
            **_block(
                "encoder.layer.#.",
                {
                    "layernorm_before.": "norm1",
                    **{f"attention.attention.{part}.": f"attn.{part[0]}" for part in ("query", "key", "value")},
                    "attention.output.dense.": "attn.proj",
                    "layernorm_after.": "norm2",
                    "intermediate.dense.": "mlp.fc1",
                    "output.dense.": "mlp.fc2",
                },
            ),
            **_block(  # in memory since transformers 5
                "layers.#.",
                {
                    "layernorm_before.": "norm1",
                    **{f"attention.{part}_proj.": f"attn.{part}" for part in "qkv"},
                    "attention.o_proj.": "attn.proj",
                    "layernorm_after.": "norm2",
                    **{"mlp.fc1.": "mlp.fc1", "mlp.fc2.": "mlp.fc2"},
                },
            ),
            "layernorm.*": "norm.*",
            "classifier.*": "head.*",
            "cls_classifier.*": "head.*",
            "distillation_classifier.*": "head_dist.*",
        },
        norm_eps=1e-12,
    ),
    "teaching": Layout(
        anchor="embedding.pos_embedding",
        names={
            "embedding.cls_token": "cls_token",
            "embedding.pos_embedding": "pos_embed",
            "embedding.conv1.*": "patch_embed.proj.*",
            **_block(
                "encoder.#.",
                {
                    **{f"attention.{part}.": f"attn.{part[0]}" for part in ("queries", "keys", "values")},
                    "attention.out_projection.": "attn.proj",
                    **{f"{part}.": part for part in ("norm1", "norm2")},
                    **{f"{part}.": f"mlp.{part}" for part in ("fc1", "fc2")},
                },
            ),
            "norm.*": "norm.*",
            **{f"classifier.{part}.*": f"head.{part}.*" for part in ("fc1", "fc2")},
        },
        norm_eps=1e-5,
    ),
}


def rename(state: State, layout: Layout) -> tuple[State, list[str]]:
    """(the tensors under our names, the names of those that have none); what only a pretraining used is left out."""
    renamed, unknown = {}, []
    for name, value in state.items():
        name = re.sub(r"^(vit|deit)\.", "", name) if layout is LAYOUTS["transformers"] else name
        if name.startswith(PRETRAINING):
            continue
        if ours := layout.ours(name):
            renamed[ours] = value
        else:
            unknown.append(name)
    if "head.fc1.weight" in renamed:  # the last layer behind a representation layer
        renamed = {re.sub(r"^head\.(weight|bias)$", r"head.fc2.\1", name): value for name, value in renamed.items()}
    return join_projections(renamed), unknown


def join_projections(state: State) -> State:
    """The state with separate projections of queries, keys and values joined; KeyError if one of the three lacks."""
    joined = {name: value for name, value in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name in state.keys() - joined.keys():
        block, kind = re.fullmatch(r"(.*\.attn)\.[qkv]\.(\w+)", name).groups()
        joined[f"{block}.qkv.{kind}"] = torch.cat([state[f"{block}.{part}.{kind}"] for part in "qkv"])
    return joined


def missing(state: State) -> str | None:
    """A tensor, by our name, that a whole model of this state would have and the state lacks; None if it has all."""
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=0)
    modules = ["patch_embed.proj", "fc_norm" if "fc_norm.weight" in state else "norm"]
    modules += [name for name in ("head", "head.fc1", "head.fc2") if f"{name}.weight" in state]
    inside = INSIDE + (QK_NORMS if "blocks.0.attn.q_norm.weight" in state else ())
    modules += [f"blocks.{i}.{part}" for i in range(depth) for part in inside]
    unbiased = {f"blocks.{i}.attn.qkv.bias" for i in range(depth)}
    unbiased = unbiased if not unbiased & state.keys() else set()
    names = (f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))
    return next((name for name in names if name not in state and name not in unbiased), None)
