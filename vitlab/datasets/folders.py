"""Folders of images: which images, of which class and split, and decoding them."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from vitlab.catalog import class_folders, find_folders
from vitlab.cli import UserError
from vitlab.datasets.images import open_image, to_pixels

TEST_SEED = 0  # of what is cut off for testing: the same images, whatever the seed of a training


def stratified_order(labels, seed):
    """A seeded order of the indices in which every prefix holds the classes in proportion."""
    labels = np.asarray(labels)
    order = np.random.RandomState(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)  # spread evenly over 0..1
    return order[np.argsort(place[order], kind="stable")]


class FolderIndex:
    """The images below a folder, by split and class: `.classes` and `.splits`, a dict from "train",
    "val" and "test" to lists of (path, class index); "val" is None where it is to be cut from train.

    DIR/train/CLASS/* with DIR/val or DIR/test: the one that is there is the test split; of both, val/
    is the validation split. Or one tree, DIR/CLASS/*: a stratified fifth, always the same, is the test split.

    Raises UserError where there are no classes, an empty one, or one that train/ does not know.
    """

    def __init__(self, data_path):
        parts, self.classes = find_folders(data_path)
        if parts:
            found = {name: self._list(folder) for name, folder in parts.items()}
            self.splits = {
                "train": found["train"],
                "val": found["val"] if "test" in found and "val" in found else None,
                "test": found["test"] if "test" in found else found["val"],
            }
        else:
            files = self._list(Path(data_path))
            order = stratified_order([label for _, label in files], TEST_SEED)
            n_test = round(len(files) / 5)
            held_out, kept = sorted(order[:n_test]), sorted(order[n_test:])
            self.splits = {"train": [files[i] for i in kept], "val": None, "test": [files[i] for i in held_out]}

    def _list(self, folder):
        suffixes = Image.registered_extensions()
        strange = set(class_folders(folder)) - set(self.classes)
        if strange:
            raise UserError(f"{folder} has the class {sorted(strange)[0]!r}, which the training images lack; move it")
        files = []
        for label, name in enumerate(self.classes):
            inside = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
            mine = [(path, label) for path in inside if path.suffix.lower() in suffixes and path.is_file()]
            if not mine:
                raise UserError(f"{folder / name} has no images; fill it, or remove it everywhere")
            files += mine
        return files


class _Decoded(torch.utils.data.Dataset):
    """Files decoded to uint8 C x S x S; an unreadable one gives its error instead."""

    def __init__(self, files, size, in_chans):
        self.files, self.size, self.in_chans = files, size, in_chans

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        try:
            return to_pixels(open_image(path), self.size, self.in_chans), label, None
        except UserError as error:
            return None, label, str(error)


def workers(config):
    """config.num_workers, but no more than this process may have cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(config.num_workers, cores)


def decode(files, config, what):
    """Decode image files in worker processes, each once: (uint8 n x C x S x S, int64 n, the readable
    files). The images are None where they would take more than config.cache_gb; they are then
    decoded again for each batch.

    Unreadable files are left out and named; more than a tenth of them is a UserError.
    """
    size, channels = config.img_size, config.in_chans
    fits = len(files) * channels * size**2 <= config.cache_gb * 1e9
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8) if fits else None
    loader = torch.utils.data.DataLoader(
        _Decoded(files, size, channels), batch_size=32, num_workers=workers(config), collate_fn=list
    )
    good, bad = [], []
    with tqdm(total=len(files), desc=f"decode {what}", leave=False, disable=None, unit="image") as bar:
        for i, (pixels, _, error) in enumerate(item for batch in loader for item in batch):
            bar.update()
            if error:
                bad.append(error)
                continue
            if fits:
                images[len(good)] = pixels
            good.append(files[i])
    for error in bad:
        print(f"left out: {error}")
    if len(bad) > len(files) / 10:
        raise UserError(f"{len(bad)} of {len(files)} {what} images are unreadable, the first: {bad[0]}")
    if bad:
        print(f"{what}: {len(bad)} of {len(files)} images left out")
    return images[: len(good)] if fits else None, torch.tensor([label for _, label in good]), good
