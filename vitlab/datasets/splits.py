"""A named data set -> train, validation and test batches, already on the device.

    python -m vitlab.datasets.splits cifar10                   # download and verify CIFAR-10 into ./data, nothing else
    python -m vitlab.datasets.splits cifar100 --data_path DIR

    python train.py --dataset folder --data_path DIR     # your own images: see FolderIndex

From Python:

    sets = load_data(TrainConfig.create(dataset="digits"))
    for images, labels in sets.train:        # float B x C x H x W normalised, int64 B
        ...

A set that fits lives as one uint8 tensor on the device; cropping, flipping, resizing and
normalising happen there, a batch at a time.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from vitlab.catalog import describe
from vitlab.cli import UserError
from vitlab.datasets.batches import FileBatches, TensorBatches, as_channels, channel_statistics
from vitlab.datasets.cifar import read_cifar
from vitlab.datasets.folders import TEST_SEED, FolderIndex, _Decoded, decode, stratified_order, workers
from vitlab.datasets.images import open_image
from vitlab.hardware import find_device


def read_digits(data_path, train):
    """scikit-learn's 1,797 handwritten digits, 8 x 8; a fixed, stratified fifth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = stratified_order(bunch.target, TEST_SEED)
    mine = np.sort(order[360:] if train else order[:360])
    images = (bunch.images[mine] * (255 / 16)).round().astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(bunch.target[mine]).long()


def read_split(name, data_path, train):
    """A named set's images (uint8 n x C x H x W) and labels (int64 n), in the official order."""
    if name == "digits":
        return read_digits(data_path, train)
    return read_cifar(name, data_path, train)


@dataclass
class Splits:
    """The three splits of a set (None: empty, or not asked for) and what a model of it must know."""

    train: TensorBatches | None
    val: TensorBatches | None
    test: TensorBatches | None
    classes: tuple
    mean: tuple
    std: tuple


def load_data(config, splits=("train", "val", "test"), *, mean=None, std=None):
    """The data set of a config as Splits, on the device of the config; mean and std, where given,
    take the place of the set's own.

    Validation is a seeded, stratified cut of the training images (a folder may bring its own), or,
    with config.folds, one of as many such parts.
    Raises UserError where the set cannot be had.
    """
    info, device = describe(config.dataset, config.data_path), find_device(config.device)
    index = FolderIndex(config.data_path).splits if config.dataset == "folder" else None

    def read(split):
        """(images or None, labels, files or None) of the official training or test images."""
        if index:
            return decode(index[split], config, split)
        return *read_split(config.dataset, config.data_path, train=split == "train"), None

    def subset(labels, n, what, seed):
        if n is not None and n > len(labels):
            raise UserError(f"--num_{what}_images {n}: {config.dataset} has {len(labels)}; leave the flag out for all")
        return torch.from_numpy(stratified_order(labels, seed)[:n])

    def batches(source, chosen, augment=None):
        """The images at the places `chosen`, as batches."""
        if not len(chosen):
            return None
        images, labels, files = source
        options = dict(batch_size=config.batch_size, img_size=config.img_size, mean=mean, std=std, seed=config.seed)
        options.update(augment=augment, random_erasing=config.random_erasing)
        labels = labels[chosen].to(device)
        if images is None:
            files, more = [files[i] for i in chosen], dict(in_chans=config.in_chans, num_workers=workers(config))
            return FileBatches(files, labels, **more, **options)
        return TensorBatches(as_channels(images[chosen], config.in_chans).to(device), labels, **options)

    chosen = {}  # split -> (where from, which places)
    if "train" in splits or "val" in splits:
        source = read("train")
        places = subset(source[1], config.num_train_images, "train", config.seed)
        own = index["val"] if index and config.val_split and not config.folds else None
        share = 0 if own else 1 / config.folds if config.folds else config.val_split
        first, last = (round(len(places) * share * i) for i in (config.fold, config.fold + 1))
        if last - first == len(places):
            raise UserError(f"--val_split {config.val_split:g} leaves none of {last} images to train on; lower it")
        chosen["train"] = source, torch.cat([places[:first], places[last:]]).sort().values
        chosen["val"] = source, places[first:last].sort().values
        if own:
            source = read("val")
            chosen["val"] = source, torch.arange(len(source[1]))
    if "test" in splits:
        source = read("test")
        chosen["test"] = source, subset(source[1], config.num_test_images, "test", TEST_SEED).sort().values

    if info.mean:
        mean = mean or channel_statistics(info.mean, config.in_chans)
        std = std or channel_statistics(info.std, config.in_chans)
    elif mean is None:
        mean, std = measure(*chosen["train"], config)
    return Splits(
        train=batches(*chosen["train"], config.augment) if "train" in chosen else None,
        val=batches(*chosen["val"]) if "val" in chosen else None,
        test=batches(*chosen["test"]) if "test" in chosen else None,
        classes=info.classes,
        mean=mean,
        std=std,
    )


def test_image(config, index):
    """(PIL image, label) of one image of the test split, by its place in the official order; UserError
    with the range where it is not there."""
    if config.dataset == "folder":
        files = FolderIndex(config.data_path).splits["test"]
        labels = [label for _, label in files]
    else:
        images, labels = read_split(config.dataset, config.data_path, train=False)
    if not 0 <= index < len(labels):
        raise UserError(f"--index {index}: {config.dataset} has test images 0 to {len(labels) - 1}")
    if config.dataset == "folder":
        return open_image(files[index][0]), labels[index]
    return Image.fromarray(images[index].permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB"), int(labels[index])


def measure(source, places, config, most=2000):
    """mean and std, a value a channel, of (at most 2,000 of) the training images in 0..1."""
    images, _, files = source
    some = places[:: math.ceil(len(places) / most)]
    if images is None:
        decoded = _Decoded(files, config.img_size, config.in_chans)
        images, some = torch.stack([decoded[i][0] for i in some.tolist()]), slice(None)
    pixels = images[some].double() / 255
    return tuple(pixels.mean((0, 2, 3)).tolist()), tuple(pixels.std((0, 2, 3)).clamp_min(1e-3).tolist())
