"""The data sets of torchvision, and two that are folders: download, verify, read.

They lie in the folder --data_path exactly as torchvision's classes unpack them there, so that what is there already is
used. Archives are verified by their published md5 when they are downloaded.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from vitlab.catalog import DATASETS
from vitlab.cli import UserError
from vitlab.datasets.cifar import DOWNLOAD_ERRORS, workshop_in
from vitlab.datasets.folders import FileIndex, cut_test
from vitlab.layout import FOLDERS

BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}


class LabelledSTL10(datasets.STL10):
    """STL-10 without its 100,000 unlabelled images, of which torchvision would hash 2.6 GB."""

    train_list = datasets.STL10.train_list[:2]


@dataclass(frozen=True)
class Reader:
    """How a data set is read.

    make: torchvision's class, called with the root folder, `download` and the keywords of a split.
    parts: the files and folders below the root that the set consists of.
    archives: what is downloaded; put by hand into the folder of parts[0], it is used without a network.
    in_files: whether its images are files (of various sizes), rather than one array.
    transposed: whether rows and columns of its images are exchanged."""

    make: Callable[..., Any]
    parts: tuple[str, ...]
    archives: tuple[str, ...]
    splits: dict[str, dict] = field(default_factory=lambda: BY_SPLIT)
    in_files: bool = False
    transposed: bool = False


def idx_reader(make: type, folder: str, pattern: str = "{}-{}", names: tuple = ("train", "t10k"), **options) -> Reader:
    """The reader of a set in MNIST's format, four files."""
    files = [pattern.format(name, kind) for name in names for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    options = {"archives": tuple(f"{file}.gz" for file in files), **options}
    return Reader(make, tuple(f"{folder}/raw/{file}" for file in files), splits=BY_TRAIN, **options)


def fetch_folder(root: Path, download: bool, *, url: str, md5: str, inside: str) -> None:
    """Download and unpack a set of FOLDERS; `inside` is the folder into which its archive is unpacked."""
    if download:
        download_and_extract_archive(url, root, extract_root=Path(root, inside), md5=md5)


READERS = {
    "mnist": idx_reader(datasets.MNIST, "MNIST"),
    "fashion_mnist": idx_reader(datasets.FashionMNIST, "FashionMNIST"),
    "kmnist": idx_reader(datasets.KMNIST, "KMNIST"),
    "emnist": idx_reader(
        functools.partial(datasets.EMNIST, split="balanced"),
        "EMNIST",
        "emnist-balanced-{}-{}",
        names=("train", "test"),
        archives=("gzip.zip",),
        transposed=True,
    ),
    "svhn": Reader(datasets.SVHN, ("train_32x32.mat", "test_32x32.mat"), ("train_32x32.mat", "test_32x32.mat")),
    "stl10": Reader(LabelledSTL10, ("stl10_binary",), ("stl10_binary.tar.gz",)),
    "eurosat": Reader(datasets.EuroSAT, ("eurosat/2750",), ("EuroSAT.zip",), splits={"train": {}}, in_files=True),
    "flowers102": Reader(
        datasets.Flowers102,
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        splits={**BY_SPLIT, "val": {"split": "val"}},
        in_files=True,
    ),
    "pets": Reader(
        datasets.OxfordIIITPet,
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        ("images.tar.gz", "annotations.tar.gz"),
        splits={**BY_SPLIT, "train": {"split": "trainval"}},
        in_files=True,
    ),
    "food101": Reader(datasets.Food101, ("food-101",), ("food-101.tar.gz",), in_files=True),
    "gtsrb": Reader(
        datasets.GTSRB,
        ("gtsrb/GT-final_test.csv", "gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test"),
        ("GTSRB-Training_fixed.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"),
        in_files=True,
    ),
    "tiny_imagenet": Reader(
        functools.partial(
            fetch_folder,
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
            inside="",
        ),
        (FOLDERS["tiny_imagenet"],),
        ("tiny-imagenet-200.zip",),
        splits={"train": {}},
    ),
    "cinic10": Reader(
        functools.partial(
            fetch_folder,
            url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
            md5="6ee4d0c996905fe93221de577967a372",
            inside=FOLDERS["cinic10"],
        ),
        (FOLDERS["cinic10"],),
        ("CINIC-10.tar.gz",),
        splits={"train": {}},
    ),
}


# ----------------------------------------------------------------------------------------- download


def download_set(name: str, data_path: str | Path) -> Path:
    """Make sure that the parts of a set of READERS lie in `data_path`, and return the folder that holds them. Those
    that are missing are downloaded; a failed download leaves nothing behind.

    Raises UserError if they cannot be downloaded."""
    reader, root = READERS[name], Path(data_path)
    place = (root / reader.parts[0]).parent
    if not missing_parts(name, root):
        return place
    with workshop_in(root, prefix=f".{name}-") as workshop:
        try:
            for archive in filter(Path.is_file, (place / file for file in reader.archives)):
                copy = workshop / archive.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, copy)
            for split in reader.splits.values():
                reader.make(workshop, download=True, **split)
            for part in missing_parts(name, root):
                (root / part).parent.mkdir(parents=True, exist_ok=True)
                (workshop / part).rename(root / part)
        except DOWNLOAD_ERRORS as error:
            if missing_parts(name, root):  # or else another process was faster
                raise UserError(
                    f"{name} could not be downloaded ({' '.join(str(error).split())[:300]}); put "
                    f"{', '.join(reader.archives)} by hand into {place}, or train without a download: --dataset digits"
                ) from None
    return place


def missing_parts(name: str, root: Path) -> list[str]:
    """The parts of a set that are not in the folder `root`."""
    return [part for part in READERS[name].parts if not (root / part).exists()]


def check_set(name: str, data_path: str | Path) -> Path:
    """Download a set if it is missing, read all of it, and return its folder. Raises UserError as the readers do."""
    place = download_set(name, data_path)
    if READERS[name].in_files:
        file_index(name, data_path)
    elif name not in FOLDERS:
        for train in (True, False):
            read_arrays(name, data_path, train)
    return place


# --------------------------------------------------------------------------------------------- read


def open_split(name: str, data_path: str | Path, split: str) -> Any:
    """torchvision's data set of a split, which is downloaded if it is missing; UserError if it cannot be read."""
    download_set(name, data_path)
    try:
        return READERS[name].make(str(data_path), download=False, **READERS[name].splits[split])
    except Exception as error:  # its readers raise whatever they like
        raise damaged(name, data_path, error) from None


def damaged(name: str, data_path: str | Path, reason: object) -> UserError:
    """The error for a set whose files are not what they should be."""
    places = dict.fromkeys(str(Path(data_path, Path(part).parts[0])) for part in READERS[name].parts)
    reason = " ".join(str(reason).replace("You can use download=True to download it", "").split())[:300].rstrip(".")
    return UserError(
        f"{name} is damaged or incomplete ({reason}); remove {' and '.join(places)} and run: python download.py {name}"
    )


def read_arrays(name: str, data_path: str | Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The official training or test split of a set that is one array: images (uint8 n x C x H x W), labels (int64 n).

    Raises UserError as open_split does."""
    dataset = open_split(name, data_path, "train" if train else "test")
    images = torch.as_tensor(np.asarray(dataset.data))
    images = images[:, None] if images.ndim == 3 else images  # grey
    images = (images.mT if READERS[name].transposed else images).contiguous()
    labels = torch.as_tensor(np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))).long()
    if len(images) != len(labels):
        raise damaged(name, data_path, f"{len(images)} images and {len(labels)} labels")
    check_labels(name, data_path, set(labels.tolist()))
    return images, labels


def file_index(name: str, data_path: str | Path) -> FileIndex:
    """The image files of a set that consists of files, in torchvision's order. EuroSAT has no official split: of it, a
    stratified fifth is the test split (cut_test).

    Raises UserError as open_split does, and if a file is missing."""
    splits: dict[str, Any] = {"val": None}
    for split in READERS[name].splits:
        splits[split] = list(labelled_files(open_split(name, data_path, split)))
        absent = [file for file, _ in splits[split] if not file.is_file()]
        if absent:
            raise damaged(name, data_path, f"{len(absent)} of {len(splits[split])} files, the first {absent[0]}")
        check_labels(name, data_path, {label for _, label in splits[split]})
    if "test" not in splits:
        splits["train"], splits["test"] = cut_test(splits["train"])
    index = FileIndex(DATASETS[name].classes, splits)
    if missing := index.missing(splits["train"]):
        raise damaged(name, data_path, f"no training image of {missing[0]!r}")
    return index


def labelled_files(dataset: Any) -> Iterator[tuple[Path, int]]:
    """Pairs of path and label, by whatever name torchvision's class keeps them."""
    samples = getattr(dataset, "samples", getattr(dataset, "_samples", None))
    if samples is None:
        samples = zip(getattr(dataset, "_image_files", None) or dataset._images, dataset._labels)
    yield from ((Path(file), int(label)) for file, label in samples)


def check_labels(name: str, data_path: str | Path, labels: set[int]) -> None:
    """UserError if there are no labels, or one that is no class."""
    n = len(DATASETS[name].classes)
    if not labels or not 0 <= min(labels) <= max(labels) < n:
        raise damaged(name, data_path, f"labels from {min(labels)} to {max(labels)}" if labels else "it has no images")
