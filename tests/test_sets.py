"""Tiny copies of the raw files of torchvision's data sets, read through our interface; no network."""

import dataclasses
import functools
import gzip
import json
import re
import struct
import tarfile
import urllib.request

import numpy as np
import pytest
import scipy.io
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from vitlab.catalog import DATASETS, NOT_DOWNLOADED
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.official import test_image as official_image
from vitlab.datasets.splits import load_data
from vitlab.datasets.torchvision_sets import READERS, LabelledSTL10, check_set, download_set, fetch_folder, read_arrays

ARRAYS = ("mnist", "fashion_mnist", "kmnist", "emnist", "svhn", "stl10")
FILES = ("eurosat", "flowers102", "pets", "food101", "gtsrb", "tiny_imagenet", "cinic10")


def draw(labels, side, chans, seed):
    """Random images (uint8 n x C x S x S) for those labels."""
    return np.random.RandomState(seed).randint(0, 256, (len(labels), chans, side, side), dtype=np.uint8)


def save(image, path):
    """An image C x S x S in a file, without loss, whatever its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path, format="PPM" if path.suffix == ".ppm" else "PNG")


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


def write_arrays(name, root, monkeypatch, **splits):
    """The raw files of a set that is an array; splits: train and test, pairs of images and labels."""
    for split, (images, labels) in splits.items():
        if name == "svhn":
            file = root / f"{split}_32x32.mat"
            labels = np.where(labels == 0, 10, labels)[:, None]
            scipy.io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels})
            entry = [*datasets.SVHN.split_list[split][:2], calculate_md5(file)]
            monkeypatch.setitem(datasets.SVHN.split_list, split, entry)
        elif name == "stl10":
            folder, md5s = root / "stl10_binary", []
            folder.mkdir(exist_ok=True)
            for kind, values in (("X", images.transpose(0, 1, 3, 2)), ("y", (labels + 1).astype(np.uint8))):
                file = folder / f"{split}_{kind}.bin"
                file.write_bytes(values.tobytes())
                md5s.append([file.name, calculate_md5(file)])
            monkeypatch.setattr(LabelledSTL10, f"{split}_list", md5s)
        else:
            prefix = {"train": "train", "test": "t10k"}[split]
            if name == "emnist":
                images, prefix = images.transpose(0, 1, 3, 2), f"emnist-balanced-{split}"
            folder = (root / READERS[name].parts[0]).parent
            write_idx(folder / f"{prefix}-images-idx3-ubyte", np.ascontiguousarray(images[:, 0]))
            write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def write_files(name, root, monkeypatch, **splits):
    """The raw files of a set that consists of files; splits: train and test, perhaps val."""
    classes, lines, number = DATASETS[name].classes, {split: [] for split in splits}, 0
    for split, (images, labels) in splits.items():
        for image, label in zip(images, labels):
            number += 1
            if name == "flowers102":
                file = root / f"flowers-102/jpg/image_{number:05d}.jpg"
                lines[split].append((number, label + 1))
            elif name == "pets":
                stem = f"{classes[label].replace(' ', '_')}_{number}"
                file = root / f"oxford-iiit-pet/images/{stem}.jpg"
                lines[split].append(f"{stem} {label + 1} 1 1\n")
            elif name == "food101":
                file = root / f"food-101/images/{classes[label]}/{number}.jpg"
                lines[split].append((classes[label], f"{classes[label]}/{number}"))
            elif name == "gtsrb":
                inside = f"Training/{label:05d}/{number:05d}" if split == "train" else f"Final_Test/Images/{number:05d}"
                file = root / f"gtsrb/GTSRB/{inside}.ppm"
                lines[split].append(f"{number:05d}.ppm;8;8;0;0;7;7;{label}\n")
            elif name == "tiny_imagenet":
                stem = f"n{label:08d}"
                inside = f"train/{stem}/images/{stem}" if split == "train" else "val/images/val"
                file = root / f"tiny-imagenet-200/{inside}_{number}.JPEG"
                lines[split].append(f"{file.name}\t{stem}\t0\t0\t7\t7\n")
            elif name == "cinic10":
                folder = {"val": "valid"}.get(split, split)
                file = root / f"CINIC-10/{folder}/{classes[label]}/{number:05d}.png"
            else:
                file = root / f"eurosat/2750/{classes[label]}/{classes[label]}_{number:05d}.jpg"
            save(image, file)
    write_lists(name, root, monkeypatch, lines)


def write_lists(name, root, monkeypatch, lines):
    """The file that says which image is of which class and split."""
    if name == "flowers102":
        labels = [label for split in lines.values() for _, label in split]
        scipy.io.savemat(root / "flowers-102/imagelabels.mat", {"labels": labels})
        names = {"train": "trnid", "val": "valid", "test": "tstid"}
        sets = {names[split]: [number for number, _ in pairs] for split, pairs in lines.items()}
        scipy.io.savemat(root / "flowers-102/setid.mat", sets)
        for key in ("label", "setid"):
            file = datasets.Flowers102._file_dict[key][0]
            monkeypatch.setitem(datasets.Flowers102._file_dict, key, (file, calculate_md5(root / "flowers-102" / file)))
    elif name == "pets":
        (root / "oxford-iiit-pet/annotations").mkdir()
        for split, file in (("train", "trainval"), ("test", "test")):
            (root / f"oxford-iiit-pet/annotations/{file}.txt").write_text("".join(lines[split]))
    elif name == "food101":
        (root / "food-101/meta").mkdir()
        for split in lines:
            table = {}
            for key, value in lines[split]:
                table.setdefault(key, []).append(value)
            (root / f"food-101/meta/{split}.json").write_text(json.dumps(table))
    elif name == "gtsrb":
        header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
        (root / "gtsrb/GT-final_test.csv").write_text(header + "".join(lines["test"]))
    elif name == "tiny_imagenet":
        (root / "tiny-imagenet-200/val/val_annotations.txt").write_text("".join(lines["test"]))
        save(np.zeros((3, 8, 8), np.uint8), root / "tiny-imagenet-200/test/images/test_0.JPEG")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A function that writes a tiny copy of a set into a folder: each class three times in train, once in test."""

    def write(name):
        info = DATASETS[name]
        side = info.img_size if name in ARRAYS else 8
        n = len(info.classes) or 5
        train, test = np.tile(np.arange(n), 3), np.arange(n)[::-1]
        splits = {"train": train, "test": test}
        if name == "eurosat":
            splits = {"train": np.tile(np.arange(n), 5)}
        elif name in ("flowers102", "cinic10"):
            splits["val"] = test.copy()
        pairs = {
            split: (draw(labels, side, info.in_chans, i), labels) for i, (split, labels) in enumerate(splits.items())
        }
        (write_arrays if name in ARRAYS else write_files)(name, tmp_path, monkeypatch, **pairs)
        return pairs

    return write


def settings(name, root, **more):
    """Of files, the size in which they are written, so that pixels stay what they are."""
    return TrainConfig.create(dataset=name, data_path=str(root), augment="none", num_workers=0, **more)


def pixels_of(images, labels):
    """Each image with its label, in any order."""
    return sorted((bytes(np.ascontiguousarray(image)), int(label)) for image, label in zip(images, labels))


@pytest.mark.parametrize("name", ARRAYS + FILES)
def test_every_raw_format_is_read_as_it_was_written(tiny, tmp_path, name):
    expected, info = tiny(name), DATASETS[name]
    config = settings(name, tmp_path, val_split=0.34, **({} if name in ARRAYS else dict(img_size=8, patch_size=4)))
    sets = load_data(config)
    assert config.num_classes == len(sets.classes) == len(info.classes or range(5))
    parts = [sets.train, sets.val] + ([sets.test] if "test" not in expected else [])
    if "val" in expected:
        assert pixels_of(sets.val.images, sets.val.labels) == pixels_of(*expected["val"])
        parts = [sets.train]
    images, labels = (
        np.concatenate([np.asarray(getattr(part, key)) for part in parts]) for key in ("images", "labels")
    )
    assert pixels_of(images, labels) == pixels_of(*expected["train"])
    if "test" in expected:
        assert pixels_of(sets.test.images, sets.test.labels) == pixels_of(*expected["test"])
    else:  # EuroSAT: a fifth, stratified, always the same
        assert sets.test.labels.bincount().tolist() == 10 * [1]
        assert torch.equal(sets.test.images, load_data(settings(name, tmp_path, img_size=8, seed=5)).test.images)

    image, label = official_image(config, 1)
    picture = np.asarray(image).transpose(2, 0, 1)[: info.in_chans]
    assert (bytes(np.ascontiguousarray(picture)), label) in pixels_of(*expected.get("test", expected["train"]))
    if name in ARRAYS or name in ("flowers102", "pets"):  # in the official order
        assert label == expected["test"][1][1] and (picture == expected["test"][0][1]).all()
    normalised = torch.cat([images for images, _ in sets.train])
    if not info.mean:
        torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(info.in_chans), atol=1e-3, rtol=0)
        torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(info.in_chans), atol=1e-2, rtol=0)


def test_grey_images_may_be_shown_as_colour_and_back(tiny, tmp_path):
    tiny("kmnist")
    sets = load_data(settings("kmnist", tmp_path, in_chans=3, img_size=32))
    assert next(iter(sets.train))[0].shape[1:] == (3, 32, 32) and len(sets.mean) == 3


def test_the_sets_of_signs_and_letters_are_never_mirrored():
    mirrored = {name for name in READERS if DATASETS[name].augment not in ("affine", "crop")}
    assert {"mnist", "kmnist", "emnist", "svhn", "gtsrb"} == READERS.keys() - mirrored
    assert set(READERS) == set(DATASETS) - {*NOT_DOWNLOADED, "cifar10", "cifar100"}


def test_class_names_are_torchvisions():
    known = {
        "fashion_mnist": datasets.FashionMNIST.classes,
        "kmnist": datasets.KMNIST.classes,
        "emnist": datasets.EMNIST.classes_split_dict["balanced"],
        "flowers102": datasets.Flowers102.classes,
    }
    for name, classes in known.items():
        assert DATASETS[name].classes == tuple(classes)
    counts = {"food101": 101, "pets": 37, "gtsrb": 43, "eurosat": 10, "stl10": 10}
    assert {name: len(set(DATASETS[name].classes)) for name in counts} == counts


def test_names_of_pets_and_food_are_what_torchvision_derives(tiny, tmp_path):
    tiny("pets"), tiny("food101")
    assert tuple(datasets.OxfordIIITPet(tmp_path).classes) == DATASETS["pets"].classes
    assert tuple(datasets.Food101(tmp_path).classes) == DATASETS["food101"].classes


# ---------------------------------------------------------------------------------- download, errors


@pytest.fixture
def offline(monkeypatch):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read the environment already


@pytest.mark.parametrize("name", READERS)
def test_without_a_network_one_line_says_what_to_do(offline, tmp_path, name):
    with pytest.raises(
        UserError, match=f"{name} could not be downloaded .*; put .* by hand into .*--dataset digits"
    ) as error:
        download_set(name, tmp_path / "new" / "data")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def pack(tiny, root, monkeypatch):
    """MNIST as its four official archives, whose md5 torchvision then knows."""
    tiny("mnist")
    raw, resources = root / "MNIST/raw", []
    for file in sorted(raw.iterdir()):
        archive = raw / f"{file.name}.gz"
        archive.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        resources.append((archive.name, calculate_md5(archive)))
        file.unlink()
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return raw


def test_archives_are_verified_and_used_where_they_were_put_by_hand(tiny, offline, tmp_path, monkeypatch):
    raw = pack(tiny, tmp_path, monkeypatch)
    first = next(raw.glob("*.gz"))
    good = first.read_bytes()
    first.write_bytes(good[:-1] + b"?")
    with pytest.raises(UserError, match="mnist could not be downloaded"):
        download_set("mnist", tmp_path)
    assert len(list(raw.iterdir())) == 4 and [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    first.write_bytes(good)
    assert check_set("mnist", tmp_path) == raw
    assert len(list(raw.iterdir())) == 8 and [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_a_mirror_is_downloaded_whole_or_not_at_all(tiny, server, tmp_path, monkeypatch):
    address, served = server
    raw, target = pack(tiny, tmp_path, monkeypatch).rename(served / "raw"), tmp_path / "target"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{address}/raw/"])
    download_set("mnist", target)
    assert len(read_arrays("mnist", target, train=True)[1]) == 30
    assert [path.name for path in target.iterdir()] == ["MNIST"] and len(list((target / "MNIST/raw").iterdir())) == 4
    next(raw.glob("t10k-labels*")).unlink()  # the last one
    with pytest.raises(UserError, match="t10k-labels"):
        download_set("mnist", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_set_of_folders_is_downloaded_into_its_own_folder(tiny, server, tmp_path, monkeypatch):
    address, served = server
    tiny("cinic10")
    with tarfile.open(served / "CINIC-10.tar.gz", "w:gz") as archive:
        for split in ("train", "valid", "test"):  # without a folder around them, as the real one
            archive.add(tmp_path / "CINIC-10" / split, split)
    url, md5 = f"{address}/CINIC-10.tar.gz", calculate_md5(served / "CINIC-10.tar.gz")
    make = functools.partial(fetch_folder, **{**READERS["cinic10"].make.keywords, "url": url, "md5": md5})
    monkeypatch.setitem(READERS, "cinic10", dataclasses.replace(READERS["cinic10"], make=make))
    check_set("cinic10", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["CINIC-10"]
    sets = load_data(settings("cinic10", tmp_path / "new", img_size=8, patch_size=4))
    assert [len(part.labels) for part in (sets.train, sets.val, sets.test)] == [30, 10, 10]


def damage(name, root):
    """Damage a tiny copy; returns what the error must say."""
    if name == "mnist":
        file = root / "MNIST/raw/train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-5])
        return "remove .*MNIST and run: python download.py mnist"
    if name == "kmnist":
        write_idx(root / "KMNIST/raw/train-labels-idx1-ubyte", np.full(30, 77, np.uint8))
        return "labels from 77 to 77"
    if name == "emnist":
        write_idx(root / "EMNIST/raw/emnist-balanced-train-labels-idx1-ubyte", np.zeros(3, np.uint8))
        return "141 images and 3 labels"
    if name == "svhn":
        file = root / "train_32x32.mat"
        file.write_bytes(file.read_bytes()[:-5])
        return "corrupted.*remove .*train_32x32.mat and .*test_32x32.mat"
    if name == "stl10":
        (root / "stl10_binary/test_X.bin").write_bytes(b"")
        return "corrupted.*stl10_binary"
    if name == "flowers102":
        (root / "flowers-102/setid.mat").write_bytes(b"none")
        return "corrupted.*flowers-102"
    if name == "pets":
        next((root / "oxford-iiit-pet/images").iterdir()).unlink()
        return "1 of [0-9]+ files, the first .*jpg.*oxford-iiit-pet"
    if name == "food101":
        (root / "food-101/meta/test.json").write_text("{")
        return "remove .*food-101 and"
    if name == "gtsrb":
        (root / "gtsrb/GTSRB/Training/00007").rename(root / "aside")
        return "no training image of"
    if name == "cinic10":
        (root / "CINIC-10/train/ship").rename(root / "aside")
        return "'ship', which the training images lack"
    (root / "eurosat/2750/River").rename(root / "aside")
    return "no training image of"


@pytest.mark.parametrize("name", [*ARRAYS[:1], *ARRAYS[2:], *FILES[:5], "cinic10"])
def test_damaged_files_are_named_with_the_remedy(tiny, tmp_path, name):
    tiny(name)
    message = damage(name, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_data(settings(name, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tiny_imagenet", "cinic10"])
def test_a_set_of_folders_may_lie_at_the_path_or_inside_it(tiny, tmp_path, name):
    with pytest.raises(UserError, match=f"no {name} there.*python download.py {name}"):
        load_data(settings(name, tmp_path))
    tiny(name)
    inside = next(tmp_path.iterdir())
    both = [load_data(settings(name, folder, img_size=8, patch_size=4)) for folder in (tmp_path, inside)]
    assert torch.equal(both[0].test.images, both[1].test.images)


def test_a_name_that_cannot_be_downloaded_is_refused():
    assert_refused(run("download.py", "folder"), "folder", "emnist", "cinic10")
    done = run("download.py", "digits")
    assert done.returncode == 0 and "comes with scikit-learn" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emnist", "gtsrb"])
def test_scripts_work_as_with_cifar(tiny, tmp_path, name):
    tiny(name)
    data = ("--data_path", tmp_path)
    small = ("--epochs", 1, "--embed_dim", 16, "--depth", 1, "--num_workers", 0)
    done = run("train.py", "--dataset", name, *data, *small, "--folder_name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for argv in (
        ("test.py", "--model_path", "model/run", *data),
        ("test.py", "--model_path", "model/run", *data, "--mode", "cifar-single", "--index", 3, "--no_image"),
        ("visualize.py", "maps", "--model_path", "model/run", *data, "--index", 2),
    ):
        done = run(*argv, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "output/run/test/report.json").read_text())["dataset"] == name


def test_the_page_tells_the_facts():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| " + 6 * r"(.*?) \| " + r"(.*?) \|$", page, flags=re.M)
    rows = {name.strip("`"): row for name, *row in found}
    for name, info in DATASETS.items():
        classes, size, channels, _, statistics, augmentation = rows[name]
        assert classes == str(len(info.classes)) if info.classes else classes.startswith("its ")
        assert (int(size), int(channels)) == (info.img_size, info.in_chans)
        assert augmentation == info.augment + ("" if "flip" in info.augment else ", no flip")
        assert (statistics == "measured") == (not info.mean)
    told = page[page.index("| archives |") :]
    archives = {archive for reader in READERS.values() for archive in reader.archives}
    assert not {archive for archive in archives if archive not in told and not archive.endswith("-ubyte.gz")}
