"""A named data set -> training, validation and test batches on the device.

    sets = load_data(TrainConfig.create(dataset="digits"))
    for images, labels in sets.train:        # float B x C x S x S, normalised; int64 B
        ...

Which sets there are, and where they come from: official.py. A data set that fits lives as one uint8 tensor on the
device. Cropping, flipping, resizing and normalising happen there, a batch at a time.
"""

import hashlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vitlab import processes
from vitlab.catalog import channel_statistics, describe
from vitlab.cli import UserError
from vitlab.config import CROP_PCT, CROP_SCALE, TrainConfig
from vitlab.datasets.batches import Batches, FileBatches, TensorBatches
from vitlab.datasets.decoding import DecodedFiles, count_workers, decode, fit_in_memory
from vitlab.datasets.folders import (
    TEST_SEED,
    FileIndex,
    find_copies,
    shorten,
    stratified_order,
)
from vitlab.datasets.images import as_channels
from vitlab.datasets.official import download, find_index, read_split
from vitlab.datasets.streaming import ShardBatches
from vitlab.hardware import find_device
from vitlab.settings import CROPPING
from vitlab.shards import ShardImage

# ---------------------------------------------------------------------------- the images of a split


@dataclass
class Source:
    """The images of a split before they become batches: decoded, or (images is None) as files."""

    images: torch.Tensor | None  # uint8 n x C x H x W
    labels: torch.Tensor  # int64 n
    files: list[tuple[Path, int]] | None = None  # n pairs of path and label

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels kept in memory."""
        return 0 if self.images is None else self.images.nbytes

    def fingerprint(self) -> str:
        """What differs if the images are others, or in another order: their number, and a hash of the labels and of the
        files' names without their folders."""
        names = "/".join(re.split(r"[\\/]", str(file))[-1] for file, _ in self.files or ())
        digest = hashlib.sha256(self.labels.numpy().tobytes() + names.encode("utf-8", "surrogateescape"))
        return f"{len(self.labels)} images, {digest.hexdigest()[:8]}"

    def take(self, places: torch.Tensor) -> "Source":
        """The images at those places (int64), in that order."""
        images = None if self.images is None else self.images[places]
        return Source(images, self.labels[places], self.files and [self.files[i] for i in places.tolist()])


def official_source(config: TrainConfig, folder: FileIndex | None, split: str) -> Source:
    """All images of an official split: of the folder as files, if the set consists of files, or as an array."""
    if not folder:
        return Source(*read_split(config.dataset, config.data_path, train=split == "train"))
    files = folder.splits[split]
    return Source(None, torch.tensor([label for _, label in files], dtype=torch.int64), list(files))


def decode_source(source: Source, config: TrainConfig, folder: FileIndex | None, split: str, room: float) -> Source:
    """A source whose images are decoded, if they consist of files and take at most `room` bytes; what cannot be read is
    left out. UserError if it is "train" and no image of a class can be read."""
    if not source.files:
        return source
    decoded = Source(*decode(source.files, config, split, 0 if split == "train" and config.random_crops else room))
    lost = [name for name in folder.missing(decoded.files) if name not in folder.missing(source.files)]
    if split == "train" and lost:
        raise UserError(f"{config.data_path}: no training image of {lost[0]!r} can be read; add one, or remove it")
    return decoded


def read_sources(config: TrainConfig, splits: Collection[str], folder: FileIndex | None) -> dict[str, Source]:
    """The images of the splits asked for. Those for validation are cut from the training images, unless the set has
    its own. They share config.cache_gb; training images, which are needed in each epoch, come first."""
    sources = {}
    if "train" in splits or "val" in splits:
        train = official_source(config, folder, "train")
        own_val = has_own_validation(config, folder)
        train_places, val_places = cut_validation(train.labels, config, own_val)
        if "train" in splits:
            sources["train"] = train.take(train_places)
        if "val" in splits:
            sources["val"] = official_source(config, folder, "val") if own_val else train.take(val_places)
    if "test" in splits:
        test = official_source(config, folder, "test")
        places = stratified_subset(test.labels, config.num_test_images, "--num_test_images", config.dataset, TEST_SEED)
        sources["test"] = test.take(places.sort().values)
    room = config.cache_gb * 1e9
    for split, source in sources.items():
        sources[split] = decode_source(source, config, folder, split, room)
        room -= sources[split].nbytes if folder else 0
    return sources


def has_own_validation(config: TrainConfig, folder: FileIndex | None) -> bool:
    """Whether a run validates on the set's own validation images, which no seed changes."""
    return bool(folder and folder.splits["val"] and config.val_split and not config.folds)


def cut_validation(labels: torch.Tensor, config: TrainConfig, own_val: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the training and of the validation images among the official training images, sorted (int64).

    Validation is a seeded, stratified share config.val_split; with config.folds, part number config.fold of as many;
    nothing if the data set has its own validation images.
    """
    places = stratified_subset(labels, config.num_train_images, "--num_train_images", config.dataset, config.seed)
    share = 0 if own_val else 1 / config.folds if config.folds else config.val_split
    first, last = (round(len(places) * share * i) for i in (config.fold, config.fold + 1))
    if last - first == len(places):
        raise UserError(f"--val_split {config.val_split:g} leaves none of {last} images to train on; lower it")
    return torch.cat([places[:first], places[last:]]).sort().values, places[first:last].sort().values


def stratified_subset(labels: torch.Tensor, n: int | None, flag: str, dataset: str, seed: int) -> torch.Tensor:
    """Places of n images (None: of all) in a seeded order, the classes in proportion; UserError if there are fewer."""
    if n is not None and n > len(labels):
        raise UserError(f"{flag} {n}: {dataset} has {len(labels)}; leave the flag out for all")
    return torch.from_numpy(stratified_order(labels, seed)[:n])


def choose_crops(config: TrainConfig, folder: FileIndex | None) -> None:
    """Set config.crop_scale and crop_pct, where they are left open, before training images are read: images that do
    not fit in config.cache_gb are cropped at random from their files."""
    if not folder and (config.random_crops or (config.crop_pct or 1) != 1):
        raise UserError(
            f"--crop_scale and --crop_pct are for image files, and {config.dataset} has none; leave them out"
        )
    room = config.cache_gb * 1e9
    if folder and not config.crop_scale and not fit_in_memory(folder.splits["train"], config, room):
        if config.augment in CROPPING:
            config.crop_scale, config.crop_pct = CROP_SCALE, config.crop_pct or CROP_PCT


def describe_crops(config: TrainConfig) -> list[str]:
    """How files are cropped, as a line, unless they are scaled as a whole."""
    if not config.random_crops:
        return []
    low, high = config.random_crops
    return [
        f"training images: random crops of {low:.0%} to {high:.0%} of a file; others: its middle {config.crop_pct:.1%}"
    ]


# ------------------------------------------------------------------------------------- mean and std


def measure(source: Source, config: TrainConfig, most: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std, one value per channel, of at most `most` of the images, in 0..1."""
    some = source.take(torch.arange(0, len(source.labels), math.ceil(len(source.labels) / most)))
    images = some.images
    if images is None:
        images = DecodedFiles(some.files, config.img_size, config.in_chans, config.crop_pct)
    counts = 0  # of each channel, how many pixels have which of the 256 values
    for image in images:
        pixels, _, error = image if isinstance(image, tuple) else (image, None, None)
        if error:
            raise UserError(error)
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels])
    n, values = counts[0].sum(), torch.arange(256).double() / 255
    mean = (counts * values).sum(1) / n
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1)).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


# ------------------------------------------------------------------------------------------ batches


@dataclass
class Splits:
    """The splits of a data set (None: empty or not asked for), and what a model of it must know."""

    train: Batches | None
    val: Batches | None
    test: Batches | None
    classes: tuple[str, ...]  # names of the logits
    mean: tuple[float, ...]  # one value per channel, for images in 0..1
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()  # lines about images that are left out, missing, or in two splits
    fingerprints: dict[str, str] = field(default_factory=dict)  # of each split, see Source; none of own batches

    def summary(self) -> str:
        """The classes, the number of images and of classes in each split, and the notes, to be printed."""
        lines = [f"{len(self.classes)} classes: {shorten(self.classes)}"]
        for split in ("train", "val", "test"):
            batches = getattr(self, split)
            if batches and hasattr(batches, "labels"):
                n_classes = len(torch.as_tensor(batches.labels).unique())
                lines.append(f"{split}: {len(batches.labels)} images of {n_classes} classes")
        return "\n".join([*lines, *self.notes])


def load_data(
    config: TrainConfig,
    splits: Collection[str] = ("train", "val", "test"),
    *,
    device: torch.device | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """The data set of a config as batches on a device (default: that of the config).

    mean and std (default: the config's) replace the data set's own. Where none are published, they are measured on the
    training images.
    Raises UserError if the data set cannot be read, or has fewer images than the config asks for.
    """
    if config.dataset is None:
        raise UserError("dataset None is for batches of your own: hand them to fit() in a Splits")
    if processes.count() > 1:
        processes.once_a_machine(download, config.dataset, config.data_path)
    info = describe(config.dataset, config.data_path)
    device = device or find_device(config.device)
    mean, std = mean or config.mean, std or config.std
    to_measure = not (info.mean or (mean and std))
    folder = find_index(config.dataset, config.data_path)
    if "train" in splits:
        choose_crops(config, folder)
    sources = read_sources(config, {*splits, "train"} if to_measure else splits, folder)
    if not (mean and std):
        own = measure(sources["train"], config) if to_measure else (info.mean, info.std)
        mean, std = (given or channel_statistics(v, config.in_chans) for given, v in zip((mean, std), own))
    batches = {
        split: make_batches(source, split, config, device, mean, std)
        for split, source in sources.items()
        if split in splits
    }
    notes = [f"there are no {split} images" for split in splits if not batches[split]]
    notes += [*folder.notes, *(describe_crops(config) if batches.get("train") else ())] if folder else ()
    if config.dataset == "folder":
        notes += find_copies({split: source.files for split, source in sources.items()})
    return Splits(
        train=batches.get("train"),
        val=batches.get("val"),
        test=batches.get("test"),
        classes=info.classes,
        mean=mean,
        std=std,
        notes=tuple(notes),
        fingerprints={split: source.fingerprint() for split, source in sources.items()},
    )


def load_split(config: TrainConfig, split: str, *, mean: Sequence[float], std: Sequence[float]) -> Batches:
    """One split as load_data makes it; UserError if it has no images."""
    batches = getattr(load_data(config, (split,), mean=mean, std=std), split)
    if batches is None:
        raise UserError(f"--data_path {config.data_path} has no {split} images; add some")
    return batches


def evaluation_batch(config: TrainConfig, device: torch.device) -> int:
    """How many images without augmentation make up a batch: on an accelerator up to 1,000, fewer if they are large,
    but not fewer than in training, which needs more memory for each."""
    if device.type == "cpu":
        return config.batch_size
    return max(config.batch_size, min(1000, 2**22 // config.img_size**2))


def make_batches(
    source: Source, split: str, config: TrainConfig, device: torch.device, mean: Sequence[float], std: Sequence[float]
) -> Batches | None:
    """The images of a split as batches on the device, augmented if it is "train"; None if there are no images."""
    if not len(source.labels):
        return None
    options = dict(img_size=config.img_size, mean=mean, std=std, seed=config.seed)
    if split == "train":
        options.update(augment=config.augment, random_erasing=config.random_erasing)
        options.update(batch_size=config.batch_size, alternate_flip=config.alternate_flip)
    else:
        options.update(batch_size=evaluation_batch(config, device))
    labels = source.labels.to(device)
    if source.images is None:
        options.update(in_chans=config.in_chans, num_workers=count_workers(config), crop_pct=config.crop_pct)
        if split == "train":
            options.update(crop_scale=config.random_crops)
        if split == "train" and isinstance(source.files[0][0], ShardImage):
            return ShardBatches(source.files, labels, **options)
        return FileBatches(source.files, labels, **options)
    return TensorBatches(as_channels(source.images, config.in_chans).to(device), labels, **options)
