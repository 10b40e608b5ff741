"""The data sets and models that can be named, and the facts about them that need no torch."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitlab.hub import open_hub
from vitlab.layout import data_folder, find_layout
from vitlab.shards import open_shards

DEFAULT_MODEL = "model/vit-layer6-32-cifar10"  # of test.py and visualize.py; comes with the repository

CLASSES = json.loads(Path(__file__).with_name("class_names.json").read_text(encoding="utf-8"))  # in the order of labels
CLASSES = {dataset: tuple(names) for dataset, names in CLASSES.items()}


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is read.

    classes: in the order of the labels; () where they are read from the data.
    mean, std: of its training images, one value per channel, for images in 0..1; () where they are measured when the
        set is read. Sources: docs/training.md.
    augment: without flips where a mirrored image is another class, or none.
    defaults: the settings that suit it, where they differ from TrainConfig's.
    folders: of the classes, where these are called otherwise in words."""

    classes: tuple[str, ...]
    img_size: int | None
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    defaults: dict
    folders: tuple[str, ...] = ()


AT_DATA_PATH = ("folder", "hf", "webdataset")  # which --data_path names; the others lie in that folder
OWN = DatasetInfo(  # the classes are read from the set, mean and std are measured
    classes=(),
    img_size=64,
    in_chans=3,
    mean=(),
    std=(),
    augment="crop-flip",
    defaults=dict(patch_size=8),
)
DATASETS = {
    "cifar10": DatasetInfo(
        classes=CLASSES["cifar10"],
        img_size=32,
        in_chans=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment="crop-flip",
        defaults={},
    ),
    "cifar100": DatasetInfo(
        classes=CLASSES["cifar100"],
        img_size=32,
        in_chans=3,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        defaults={},
    ),
    "digits": DatasetInfo(
        classes=CLASSES["digits"],
        img_size=8,
        in_chans=1,
        mean=(0.3059,),
        std=(0.3762,),
        augment="affine",
        defaults=dict(patch_size=2, embed_dim=64, depth=4, batch_size=32, learning_rate=2e-3, stem="conv", pool="seq"),
    ),
    "mnist": DatasetInfo(
        classes=CLASSES["digits"],
        img_size=28,
        in_chans=1,
        mean=(0.1307,),
        std=(0.3081,),
        augment="affine",
        defaults={},
    ),
    "fashion_mnist": DatasetInfo(
        classes=CLASSES["fashion_mnist"],
        img_size=28,
        in_chans=1,
        mean=(0.2860,),
        std=(0.3530,),
        augment="crop-flip",
        defaults={},
    ),
    "kmnist": DatasetInfo(
        classes=CLASSES["kmnist"],
        img_size=28,
        in_chans=1,
        mean=(),
        std=(),
        augment="affine",
        defaults={},
    ),
    "emnist": DatasetInfo(
        classes=CLASSES["emnist"],
        img_size=28,
        in_chans=1,
        mean=(),
        std=(),
        augment="affine",
        defaults={},
    ),
    "svhn": DatasetInfo(
        classes=CLASSES["digits"],
        img_size=32,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop",
        defaults={},
    ),
    "stl10": DatasetInfo(
        classes=CLASSES["stl10"],
        img_size=96,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=8),
    ),
    "eurosat": DatasetInfo(
        classes=CLASSES["eurosat"],
        img_size=64,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=8),
    ),
    "flowers102": DatasetInfo(
        classes=CLASSES["flowers102"],
        img_size=224,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=16),
    ),
    "pets": DatasetInfo(
        classes=CLASSES["pets"],
        img_size=224,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=16),
    ),
    "food101": DatasetInfo(
        classes=CLASSES["food101"],
        img_size=224,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=16),
    ),
    "gtsrb": DatasetInfo(
        classes=CLASSES["gtsrb"],
        img_size=32,
        in_chans=3,
        mean=(),
        std=(),
        augment="affine",
        defaults={},
    ),
    "tiny_imagenet": DatasetInfo(
        classes=(),
        img_size=64,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=8),
    ),
    "cinic10": DatasetInfo(
        classes=CLASSES["cifar10"],
        img_size=32,
        in_chans=3,
        mean=(0.4789, 0.4723, 0.4305),
        std=(0.2421, 0.2383, 0.2587),
        augment="crop-flip",
        defaults={},
    ),
    **dict.fromkeys(AT_DATA_PATH, OWN),
}
NOT_DOWNLOADED = ("digits", *AT_DATA_PATH)  # by download.py
UNNAMED = DatasetInfo(  # batches of one's own, from Python
    classes=(),
    img_size=None,
    in_chans=3,
    mean=(),
    std=(),
    augment="none",
    defaults={},
)

TITLES = {
    "vit": "Vision Transformer",
    "simple_cnn": "CNN",
    "tiny_cnn": "tiny CNN",
    "mlp": "MLP",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
}
INPUT_ARGUMENTS = ("img_size", "in_chans", "num_classes")
ARGUMENTS = {  # which settings are arguments of which model
    "vit": (
        *INPUT_ARGUMENTS,
        *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "stem"),
        *("stem_depth", "stem_growth", "pool", "head", "norm_eps", "drop_rate", "attn_drop_rate", "drop_path_rate"),
    ),
    "simple_cnn": (*INPUT_ARGUMENTS, "drop_rate"),
    "tiny_cnn": INPUT_ARGUMENTS,
    "mlp": (*INPUT_ARGUMENTS, "hidden_sizes", "drop_rate"),
    "resnet18": INPUT_ARGUMENTS,
    "resnet50": INPUT_ARGUMENTS,
}
MODEL_DEFAULTS = {"simple_cnn": {"drop_rate": 0.3}, "mlp": {"drop_rate": 0.0}}  # where they differ from TrainConfig's


def describe(dataset: str | None, data_path: str | Path) -> DatasetInfo:
    """The facts about a data set. The classes of "folder" and "tiny_imagenet" are the folders in `data_path`, those of
    "hf" and "webdataset" are read from the set that `data_path` names.

    Raises UserError as find_layout, open_hub and open_shards do."""
    info = DATASETS[dataset] if dataset else UNNAMED
    if dataset == "hf":
        return dataclasses.replace(info, classes=open_hub(str(data_path)).classes)
    if dataset == "webdataset":
        return dataclasses.replace(info, classes=open_shards(str(data_path)).classes)
    if dataset and not info.classes:
        layout = find_layout(data_folder(dataset, data_path))
        return dataclasses.replace(info, classes=layout.names, folders=layout.classes)
    return info


def channel_statistics(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Mean or std, one value per channel, for a model with in_chans: those that are known, or their average."""
    return tuple(values) if len(values) == in_chans else in_chans * (sum(values) / len(values),)
