"""What the config.json beside weights says of them: that of Hugging Face transformers, or timm's."""

import collections
from collections.abc import Sequence
from pathlib import Path

from vitlab.cli import UserError

MODEL_TYPES = ("vit", "deit", "vit_mae")  # of transformers
POOLS = {"token": "cls", "avg": "mean"}  # timm's global_pool


def read_facts(contents: dict, path: str | Path) -> dict:
    """Facts from the "config.json" and "preprocessor_config.json" in `contents` (pt_files.read_checkpoint), those that
    they tell of: num_heads, norm_eps, pool, classes, mean, std.

    Raises UserError if they are of a model that ours cannot express."""
    config = contents.get("config.json")
    if config is None:
        return {}
    try:
        read = read_transformers if "model_type" in config else read_timm
        facts = read(config, contents.get("preprocessor_config.json", {}), path)
        return {name: value for name, value in facts.items() if value}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the config.json of {path} is not as transformers or timm write it ({error!r})") from None


def read_transformers(config: dict, preprocessor: dict, path: str | Path) -> dict:
    """The facts of a ViTForImageClassification."""
    kind, activation = config["model_type"], config.get("hidden_act", "gelu")
    if kind not in MODEL_TYPES:
        raise UserError(f"{path} is a {kind} of transformers; this reads its {', '.join(MODEL_TYPES)}")
    if activation != "gelu":
        raise UserError(f"{path} has {activation} in its MLPs, this Vision Transformer gelu; choose a model with it")
    labels = config.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)]
    normalised = preprocessor.get("do_normalize", True)
    return {
        "num_heads": config.get("num_attention_heads"),
        "norm_eps": config.get("layer_norm_eps"),
        "classes": () if names == [f"LABEL_{i}" for i in range(len(names))] else distinct(names),
        "mean": tuple(preprocessor.get("image_mean", ())) if normalised else 3 * (0.0,),
        "std": tuple(preprocessor.get("image_std", ())) if normalised else 3 * (1.0,),
    }


def read_timm(config: dict, preprocessor: dict, path: str | Path) -> dict:
    """The facts of a VisionTransformer of timm."""
    about, arguments = config.get("pretrained_cfg", config), config.get("model_args", {})
    pool = config.get("global_pool")
    activation = "quick_gelu" if "quickgelu" in config.get("architecture", "") else arguments.get("act_layer", "gelu")
    if activation not in ("gelu", "gelu_tanh"):  # logits of the latter differ by 3e-5 of their size
        raise UserError(f"{path} has {activation} in its MLPs, this Vision Transformer gelu; choose a model with it")
    if pool and pool not in (*POOLS, "map"):
        raise UserError(f"{path} pools by {pool}, which this Vision Transformer lacks; choose token or avg")
    return {
        "num_heads": arguments.get("num_heads"),
        "pool": POOLS.get(pool),
        "classes": distinct(label_names(config, about)),
        "mean": tuple(about.get("mean", ())),
        "std": tuple(about.get("std", ())),
    }


def label_names(config: dict, about: dict) -> Sequence[str]:
    """The names of a timm model's classes: its writer puts them at the top, as a list, or by number if it is a dict.
    Raises ValueError if numbers are missing."""
    names = config.get("label_names") or about.get("label_names") or ()
    if not isinstance(names, dict):
        return names
    numbered = {int(number): name for number, name in names.items()}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(f"label_names has not the numbers 0 to {len(numbered) - 1}")
    return [numbered[i] for i in range(len(numbered))]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, with their number where a name stands there twice (ImageNet has two cranes)."""
    count = collections.Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))
