"""CIFAR-10 and CIFAR-100: download, verify, read.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). The files are pickles, which can run
code when they are opened, so the md5 of each is compared with the published one before that.
"""

import contextlib
import http.client
import pickle
import shutil
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import check_md5, download_and_extract_archive

from vitlab.cli import UserError

DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zipfile.BadZipFile)


def cifar_class(name: str) -> type:
    """torchvision's class of "cifar10" or "cifar100": it knows the url, the files and their md5 sums."""
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def download_cifar(name: str, data_path: str | Path) -> Path:
    """Make sure that `data_path` holds the complete data set, and return its folder.

    Raises UserError if it cannot be downloaded, or if one of its files is missing or damaged.
    """
    cifar, folder = cifar_class(name), cifar_folder(name, data_path)
    verify(name, folder, [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])])
    return folder


def read_cifar(name: str, data_path: str | Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The official training or test split: images (uint8 n x 3 x 32 x 32) and labels (int64 n).

    Downloads the data set if it is missing. Only the files of this split are read, each verified once.
    Raises UserError as download_cifar does.
    """
    cifar, folder = cifar_class(name), cifar_folder(name, data_path)
    files = cifar.train_list if train else cifar.test_list
    verify(name, folder, files)
    images, labels = [], []
    for file, _ in files:
        batch = pickle.loads((folder / file).read_bytes(), encoding="latin1")
        images.append(batch["data"])  # uint8 n x 3072: the red values of each image, then green, then blue
        labels += batch["labels" if name == "cifar10" else "fine_labels"]
    return torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32), torch.tensor(labels)


def verify(name: str, folder: Path, files: list[tuple[str, str]]) -> None:
    """Raise UserError unless each of the files, pairs of name and md5, lies undamaged in the folder."""
    for file, md5 in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing; remove {folder} and run: python download.py {name}")
        if not check_md5(folder / file, md5):
            raise UserError(
                f"{folder / file} is damaged (its md5 is not the published one) and was not opened; "
                f"remove {folder} and run: python download.py {name}"
            )


def cifar_folder(name: str, data_path: str | Path) -> Path:
    """The folder of the data set in `data_path`. If it is missing, it is unpacked from the official archive, which
    lies in `data_path` or is downloaded. It appears complete or not at all; a failed download leaves nothing behind.
    """
    cifar = cifar_class(name)
    folder, archive = Path(data_path) / cifar.base_folder, Path(data_path) / cifar.filename
    if folder.exists():
        return folder
    if archive.exists() and not check_md5(archive, cifar.tgz_md5):
        raise UserError(f"{archive} is damaged (its md5 is not the published one); remove it and run again")
    with workshop_in(data_path, prefix=f".{name}-") as workshop:
        try:
            if archive.exists():
                shutil.copyfile(archive, workshop / cifar.filename)
            download_and_extract_archive(cifar.url, workshop, filename=cifar.filename, md5=cifar.tgz_md5)
            (workshop / cifar.base_folder).rename(folder)
        except DOWNLOAD_ERRORS as error:
            if not folder.exists():  # or else another process was faster
                raise UserError(
                    f"{name} could not be downloaded from {cifar.url} ({error}); put the archive by hand at {archive}, "
                    "or train without a download: --dataset digits"
                ) from None
    return folder


@contextlib.contextmanager
def workshop_in(data_path: str | Path, prefix: str) -> Iterator[Path]:
    """A temporary folder in `data_path`, for a download: a server that is silent for a minute is an error. At the end
    the folder is removed, and so are those that had to be made for it, if they are empty. Raises UserError if it
    cannot be made."""
    root, patience = Path(data_path), socket.getdefaulttimeout()
    new_folders = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        try:
            root.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True)
        except OSError as error:
            raise UserError(f"--data_path {data_path}: {error.strerror}; choose a folder that can be written") from None
        with temporary as workshop:
            socket.setdefaulttimeout(60)
            yield Path(workshop)
    finally:
        socket.setdefaulttimeout(patience)
        for folder in new_folders:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
