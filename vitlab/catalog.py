"""The data sets and models that can be named, and the facts about them that need no torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vitlab.layout import find_layout

DEFAULT_MODEL = "model/vit-conv-cpu-32-cifar10"  # of test.py and visualize.py; comes with the repository

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
""".split()


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is read.

    mean, std: of its training images, one value per channel, for images in 0..1.
    defaults: the settings that suit it, where they differ from TrainConfig's."""

    classes: tuple[str, ...]
    img_size: int | None
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    defaults: dict


DATASETS = {
    "cifar10": DatasetInfo(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        img_size=32,
        in_chans=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment="crop-flip",
        defaults={},
    ),
    "cifar100": DatasetInfo(
        classes=tuple(CIFAR100_CLASSES),
        img_size=32,
        in_chans=3,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        defaults={},
    ),
    "digits": DatasetInfo(
        classes=tuple("0123456789"),
        img_size=8,
        in_chans=1,
        mean=(0.3059,),
        std=(0.3762,),
        augment="affine",
        defaults=dict(patch_size=2, embed_dim=64, depth=4, batch_size=32, learning_rate=2e-3, stem="conv", pool="seq"),
    ),
    "folder": DatasetInfo(  # the classes are the folders' names, mean and std are measured
        classes=(),
        img_size=64,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=8),
    ),
}
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
        *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "stem", "stem_depth", "pool"),
        *("head", "norm_eps", "drop_rate", "attn_drop_rate", "drop_path_rate"),
    ),
    "simple_cnn": (*INPUT_ARGUMENTS, "drop_rate"),
    "tiny_cnn": INPUT_ARGUMENTS,
    "mlp": (*INPUT_ARGUMENTS, "hidden_sizes", "drop_rate"),
    "resnet18": INPUT_ARGUMENTS,
    "resnet50": INPUT_ARGUMENTS,
}
MODEL_DEFAULTS = {"simple_cnn": {"drop_rate": 0.3}, "mlp": {"drop_rate": 0.0}}  # where they differ from TrainConfig's


def describe(dataset: str | None, data_path: str | Path) -> DatasetInfo:
    """The facts about a data set; the classes of dataset "folder" are the folders in `data_path`.

    Raises UserError as find_layout does."""
    if dataset != "folder":
        return DATASETS[dataset] if dataset else UNNAMED
    return dataclasses.replace(DATASETS["folder"], classes=find_layout(data_path).classes)
