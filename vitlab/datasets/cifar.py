"""CIFAR-10 and CIFAR-100: download, verify, read."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch

from vitlab.cli import UserError


def _cifar_class(name):
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def download_cifar(name, data_path):
    """Make sure that `data_path` holds the set, whole: downloaded, or unpacked from the official
    archive lying there. Every file's md5 is compared with the published one before it is used.

    Raises UserError where there is no network, or where a file of the set is missing or damaged.
    """
    cifar, root = _cifar_class(name), Path(data_path)
    folder, archive = root / cifar.base_folder, root / cifar.filename
    if folder.exists():
        files = [*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]]
        for file, md5 in files:
            if not (folder / file).is_file():
                raise UserError(f"{folder / file} is missing; remove {folder} and run: python download.py {name}")
            if _md5(folder / file) != md5:
                raise UserError(
                    f"{folder / file} is damaged (its md5 is not the published one) and was not opened; "
                    f"remove {folder} and run: python download.py {name}"
                )
        return
    if archive.exists() and _md5(archive) != cifar.tgz_md5:
        raise UserError(f"{archive} is damaged (its md5 is not the published one); remove it and run again")

    try:
        root.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        raise UserError(f"--data_path {data_path}: {error.strerror}; choose a folder that can be written") from None
    try:
        if archive.exists():
            shutil.copyfile(archive, workshop / cifar.filename)
        cifar(workshop, download=True)  # downloads with a progress bar, checks the md5, unpacks
        (workshop / cifar.base_folder).rename(folder)
    except (OSError, RuntimeError) as error:
        if folder.exists():  # of another process, which was faster
            return download_cifar(name, data_path)
        raise UserError(
            f"{name} could not be had from {cifar.url} ({error}); put the archive by hand at {archive}, "
            "or train without a download: --dataset digits"
        ) from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def read_cifar(name, data_path, train):
    download_cifar(name, data_path)
    split = _cifar_class(name)(data_path, train=train)
    return torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)
