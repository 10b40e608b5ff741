"""Folders of images: which files belong to which class and split, and decoding them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import make_dataset
from tqdm import tqdm

from vitlab.catalog import class_folders, find_folders
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.images import is_image_file, open_image, to_pixels

TEST_SEED = 0  # for cutting off test images: they are the same whatever the seed of a training


def stratified_order(labels: Sequence[int], seed: int) -> np.ndarray:
    """A seeded order of the indices 0..n-1 in which every prefix holds the classes in proportion."""
    labels = np.asarray(labels)
    order = np.random.RandomState(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)  # spread evenly over 0..1
    return order[np.argsort(place[order], kind="stable")]


class FolderIndex:
    """The image files below a folder, by split and class.

    classes: the names of the classes, sorted.
    splits: from "train", "val" and "test" to lists of (path, class index), sorted by class and path; "val" is None
        if the folder has no validation images of its own.

    Layouts: DIR/train/CLASS/* with DIR/test or DIR/val (either is the test split; if both exist, val/ is the
    validation split), or one tree DIR/CLASS/*, of which a fixed, stratified fifth is the test split.

    Raises UserError if there are no classes, if a class has no images, or if train/ lacks a class.
    """

    def __init__(self, data_path: str | Path):
        parts, self.classes = find_folders(data_path)
        if parts:
            files = {name: self._list(folder) for name, folder in parts.items()}
            has_both = "val" in files and "test" in files
            self.splits = {
                "train": files["train"],
                "val": files["val"] if has_both else None,
                "test": files["test"] if "test" in files else files["val"],
            }
        else:
            files = self._list(Path(data_path))
            order = stratified_order([label for _, label in files], TEST_SEED)
            n_test = round(len(files) / 5)
            held_out, kept = sorted(order[:n_test]), sorted(order[n_test:])
            self.splits = {"train": [files[i] for i in kept], "val": None, "test": [files[i] for i in held_out]}

    def _list(self, folder: Path) -> list[tuple[Path, int]]:
        """The images of each class in a folder; links to folders are followed, as in torchvision's ImageFolder."""
        unknown = set(class_folders(folder)) - set(self.classes)
        if unknown:
            raise UserError(f"{folder} has the class {min(unknown)!r}, which the training images lack; move it")
        labels = {name: label for label, name in enumerate(self.classes)}
        found = make_dataset(folder, labels, is_valid_file=lambda file: is_image_file(Path(file)), allow_empty=True)
        files = sorted(((Path(file), label) for file, label in found), key=lambda file: (file[1], file[0]))
        empty = set(labels.values()) - {label for _, label in files}
        if empty:
            raise UserError(f"{folder / self.classes[min(empty)]} has no images; fill it, or remove it everywhere")
        return files


class DecodedFiles(torch.utils.data.Dataset):
    """Image files as (uint8 in_chans x size x size, label, None); an unreadable one as (None, label, its error)."""

    def __init__(self, files: Sequence[tuple[Path, int]], size: int, in_chans: int):
        self.files, self.size, self.in_chans = files, size, in_chans

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor | None, int, str | None]:
        path, label = self.files[i]
        try:
            return to_pixels(open_image(path), self.size, self.in_chans), label, None
        except UserError as error:
            return None, label, str(error)


def count_workers(config: TrainConfig) -> int:
    """config.num_workers, but at most one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(config.num_workers, cores)


def decode(
    files: Sequence[tuple[Path, int]], config: TrainConfig, split: str
) -> tuple[torch.Tensor | None, torch.Tensor, list[tuple[Path, int]]]:
    """Decode image files once, in worker processes, to check that all can be read.

    Returns the images (uint8 n x in_chans x img_size x img_size), the labels (int64 n) and the n readable files.
    The images are None if they would take more than config.cache_gb; FileBatches then decodes them for each batch.

    Unreadable files are left out and named; more than a tenth of them raises UserError.
    """
    size, in_chans = config.img_size, config.in_chans
    fits = len(files) * in_chans * size**2 <= config.cache_gb * 1e9
    images = torch.empty(len(files), in_chans, size, size, dtype=torch.uint8) if fits else None
    loader = torch.utils.data.DataLoader(
        DecodedFiles(files, size, in_chans), batch_size=32, num_workers=count_workers(config), collate_fn=list
    )
    readable, errors = [], []
    with tqdm(total=len(files), desc=f"decode {split}", leave=False, disable=None, unit="image") as bar:
        for i, (pixels, _, error) in enumerate(item for batch in loader for item in batch):
            bar.update()
            if error:
                errors.append(error)
                continue
            if fits:
                images[len(readable)] = pixels
            readable.append(files[i])
    for error in errors:
        print(f"left out: {error}")
    if len(errors) > len(files) / 10:
        raise UserError(f"{len(errors)} of {len(files)} {split} images are unreadable, the first: {errors[0]}")
    if errors:
        print(f"{split}: {len(errors)} of {len(files)} images left out")
    return images[: len(readable)] if fits else None, torch.tensor([label for _, label in readable]), readable
