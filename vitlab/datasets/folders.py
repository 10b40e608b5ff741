"""Folders of images: which files belong to which class and split."""

import collections
import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitlab.cli import UserError
from vitlab.datasets.images import ImageSource, count_others, find_images
from vitlab.layout import class_folders, find_layout, label_file, read_labels

MOST_COMPARED = 50_000  # files that find_copies looks at
TEST_SEED = 0  # for choosing test images: they are the same whatever the seed of a training


def stratified_order(labels: Sequence[int], seed: int) -> np.ndarray:
    """A seeded order of the indices 0..n-1 in which every prefix holds the classes in proportion."""
    return spread_classes(np.asarray(labels), np.random.RandomState(seed).permutation(len(labels)))


def spread_classes(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """An order of indices, changed so that every prefix holds the classes in proportion; that within a class stays."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)  # spread evenly over 0..1
    return order[np.argsort(place[order], kind="stable")]


def cut_test(files: Sequence[tuple[Path, int]]) -> tuple[list, list]:
    """Pairs of path and label as (train, test), in their order: a stratified fifth is the test split.

    It is chosen by the files' names. So it hardly changes when images are added, and a model that was trained before
    is not tested on what it was trained on."""
    hashes = [hashlib.sha256(name_of(file).encode("utf-8", "surrogateescape")).digest() for file, _ in files]
    order = np.array(sorted(range(len(files)), key=hashes.__getitem__), dtype=int)
    order, n_test = spread_classes(np.array([label for _, label in files]), order), round(len(files) / 5)
    return [files[i] for i in sorted(order[n_test:])], [files[i] for i in sorted(order[:n_test])]


def name_of(file: Path | ImageSource) -> str:
    """What stays of an image's path when the data set is moved: the file and its folder."""
    return "/".join(file.parts[-2:]) if isinstance(file, Path) else file.place


@dataclass
class FileIndex:
    """The image files of a data set.

    classes: the names of the classes.
    splits: from "train", "val" and "test" to lists of (path, class index); "val" is None if the set has no validation
        images of its own.
    notes: lines about what is there and not used."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[Path, int]] | None]
    notes: Sequence[str] = ()

    def missing(self, files: Sequence[tuple[Path, int]]) -> list[str]:
        """The classes that have no image among the files."""
        present = {label for _, label in files}
        return [name for label, name in enumerate(self.classes) if label not in present]


def with_test(index: FileIndex) -> FileIndex:
    """An index with a test split: without its own, one that is cut from the training images."""
    index.splits = {"val": None, **index.splits}
    if "test" not in index.splits:
        index.splits["train"], index.splits["test"] = cut_test(index.splits["train"])
        index.notes = [*index.notes, "the test split is a fifth of the training images, chosen by their names"]
    return index


class FolderIndex(FileIndex):
    """The image files below a folder, sorted by class and path; the classes are sorted too.

    Layouts: DIR/train/CLASS/* with DIR/test or DIR/val (either is the test split; if both exist, val/ is the
    validation split), or one tree DIR/CLASS/*, of which a stratified fifth is the test split (cut_test). A split
    without class folders may have a file of labels, as ImageNet's val/ and Tiny ImageNet's.

    Raises UserError if there are no classes, if a class has no images, or if train/ lacks a class.
    """

    def __init__(self, data_path: str | Path):
        layout = find_layout(data_path)
        self.folders, self.classes, self.notes = layout.classes, layout.names, list(layout.notes)
        files = self._list(layout.train)
        if missing := self.missing(files):
            folder = layout.train / self.folders[self.classes.index(missing[0])]
            others = count_others(find_images(folder)[1])
            raise UserError(f"{folder} has no images{others and ', only ' + others}; fill it, or remove it everywhere")
        self.splits = {"train": files, "val": layout.val and self._list(layout.val)}
        if layout.test:
            self.splits["test"] = self._list(layout.test)
        else:
            self.splits["train"], self.splits["test"] = cut_test(files)
        for split in ("val", "test"):
            missing = self.missing(self.splits[split] or ())
            if self.splits[split] and missing:
                self.notes.append(f"classes without {split} images ({len(missing)}): {shorten(missing)}")

    def _list(self, folder: Path) -> list[tuple[Path, int]]:
        """The images of a split, by its class folders or its file of annotations; notes what is no image."""
        names, pairs, others = class_folders(folder), [], collections.Counter()
        labels = label_file(folder)
        if set(names) & set(self.folders) or not labels:
            for name in names:
                files, no_images = find_images(folder / name)
                pairs += [(file, name) for file in files]
                others += no_images
        else:
            name_of = read_labels(folder)
            names = name_of.values()
            files, others = find_images(folder)
            pairs = [(file, name_of[file.name]) for file in files if file.name in name_of]
            others[f"not in {labels.name}"] = len(files) - len(pairs)
            others -= {labels.suffix: int(labels.parent == folder)}  # itself; and without what is 0
        if unknown := set(names) - set(self.folders):
            raise UserError(f"{folder} has the class {min(unknown)!r}, which the training images lack; move it")
        if others:
            self.notes.append(f"{folder}: left out {count_others(others)}")
        label_of = {name: label for label, name in enumerate(self.folders)}
        return sorted(((file, label_of[name]) for file, name in pairs), key=lambda pair: (pair[1], pair[0]))


def shorten(names: Sequence[str], most: int = 10) -> str:
    """Names as a list, of many the first."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def find_copies(splits: dict[str, Sequence[tuple[Path, int]]]) -> list[str]:
    """A line for every two splits that have images in common, byte for byte. Many files are not compared: almost all
    of them would be read."""
    if sum(map(len, splits.values())) > MOST_COMPARED:
        return []
    of_size = collections.defaultdict(list)
    for split, files in splits.items():
        for file, _ in files:
            with contextlib.suppress(OSError):  # who decodes it tells that it cannot be read
                of_size[file.stat().st_size].append((split, file))
    contents = {split: collections.defaultdict(list) for split in splits}
    for same_size in of_size.values():
        if len({split for split, _ in same_size}) > 1:
            for split, file in same_size:
                with contextlib.suppress(OSError):
                    contents[split][hashlib.sha256(file.read_bytes()).digest()].append(file)
    lines = []
    for earlier, later in itertools.combinations(splits, 2):
        common = contents[earlier].keys() & contents[later].keys()
        if copies := sorted(file for content in common for file in contents[later][content]):
            lines.append(
                f"{len(copies)} of {len(splits[later])} {later} images are {earlier} images too, byte for byte: "
                f"{shorten(list(map(str, copies)), 3)}"
            )
    return lines
