"""The official splits of the named data sets, each image at its place: as one array, as files, or one by one.

They are downloaded to a data_path if they are missing; `python download.py cifar10` does only that. "digits" comes with
scikit-learn, "folder" is your own images, and "hf" any set of the Hugging Face hub. Some are read as one array
(read_split), the others are files (find_index).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.catalog import describe
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.cifar import cifar_folder, read_cifar
from vitlab.datasets.folders import TEST_SEED, FileIndex, FolderIndex, shorten, stratified_order, with_test
from vitlab.datasets.images import from_pixels, open_image
from vitlab.datasets.torchvision_sets import READERS, download_set, file_index, read_arrays
from vitlab.hub import open_hub
from vitlab.layout import FOLDERS, data_folder
from vitlab.shards import open_shards


def read_digits(data_path: str | Path | None, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1,797 handwritten digits (uint8 n x 1 x 8 x 8, int64 n); a fixed, stratified fifth is the test
    split."""
    digits = load_digits()
    order = stratified_order(digits.target, TEST_SEED)
    chosen = np.sort(order[360:] if train else order[:360])
    images = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target[chosen]).long()


def read_split(dataset: str, data_path: str | Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (uint8 n x C x H x W) and labels (int64 n) of a set that is read as one array, in the official order."""
    if dataset == "digits":
        return read_digits(data_path, train)
    if dataset in READERS:
        return read_arrays(dataset, data_path, train)
    return read_cifar(dataset, data_path, train)


def download(dataset: str, data_path: str | Path) -> None:
    """Download a set if it is missing and its reader would download it. Raises UserError as the reader does."""
    if dataset in ("cifar10", "cifar100"):
        cifar_folder(dataset, data_path)
    elif dataset in READERS and dataset not in FOLDERS:
        download_set(dataset, data_path)


def find_index(dataset: str, data_path: str | Path) -> FileIndex | None:
    """The files of a set that consists of them; None if it is read as one array (read_split).

    Raises UserError as the readers do."""
    if dataset == "hf":
        hub = open_hub(str(data_path))
        return with_test(FileIndex(hub.classes, hub.read_splits(), hub.notes))
    if dataset == "webdataset":
        shards = open_shards(str(data_path))
        return with_test(FileIndex(shards.classes, dict(shards.splits)))
    if dataset == "folder" or dataset in FOLDERS:
        index, classes = FolderIndex(data_folder(dataset, data_path)), describe(dataset, data_path).classes
        if index.classes != classes:
            raise UserError(
                f"--data_path {data_path}: {dataset} has the classes {shorten(classes)}; complete the folder"
            )
        return index
    return file_index(dataset, data_path) if dataset in READERS and READERS[dataset].in_files else None


def list_split(config: TrainConfig, split: str) -> tuple[Sequence[int], Callable[[int], Image.Image]]:
    """Of the official split "train" or "test": the labels, and a function that opens the image at a place. It raises
    UserError if the file there cannot be read."""
    index = find_index(config.dataset, config.data_path)
    if index:
        files = index.splits[split]
        return [label for _, label in files], lambda place: open_image(files[place][0])
    images, labels = read_split(config.dataset, config.data_path, train=split == "train")
    return labels.tolist(), lambda place: from_pixels(images[place])


def test_image(config: TrainConfig, number: int) -> tuple[Image.Image, int]:
    """(PIL image, label) of one test image, by its place in the official order; UserError if there is none."""
    labels, open_at = list_split(config, "test")
    if not labels:
        raise UserError(f"--data_path {config.data_path} has no test images; add some")
    if not 0 <= number < len(labels):
        raise UserError(f"--index {number}: {config.dataset} has test images 0 to {len(labels) - 1}")
    return open_at(number), labels[number]
