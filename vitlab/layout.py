"""How a folder of images is laid out: its splits and its classes, by the names of folders alone.

layout = find_layout("DIR")     # DIR/train/CLASS/* with DIR/test or DIR/val, or one tree DIR/CLASS/*
layout.classes, layout.train, layout.val, layout.test, layout.notes
"""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from vitlab.cli import UserError

SPLIT_NAMES = {  # in any case, and before "set", "_data", "_images", ...
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval"),
    "test": ("test", "testing"),
}
FOLDERS = {"tiny_imagenet": "tiny-imagenet-200", "cinic10": "CINIC-10"}  # named sets that are folders of images
HIDDEN = (".", "__MACOSX", "@eaDir")  # how hidden names begin; the others are copies made by macOS and Synology


@dataclass(frozen=True)
class Layout:
    """Where the images of each split lie. test is None if it must be cut from the training images, val is None
    likewise; notes: lines about what is there and not used."""

    classes: tuple[str, ...]  # sorted
    train: Path
    val: Path | None = None
    test: Path | None = None
    notes: tuple[str, ...] = ()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no part of a data set, by its name."""
    return name.startswith(HIDDEN)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted, without hidden ones such as .git."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)))


def annotations(folder: Path) -> Path:
    """The file in which a split without class folders says which image is of which class, as Tiny ImageNet's val/."""
    return folder / "val_annotations.txt"


def data_folder(dataset: str, data_path: str | Path) -> Path:
    """The folder of a data set of folders: `data_path`, or the folder of a set of FOLDERS in it.

    Raises UserError if a set of FOLDERS is in neither."""
    root = Path(data_path)
    if dataset not in FOLDERS:
        return root
    for folder in (root / FOLDERS[dataset], root):
        if (folder / "train").is_dir():
            return folder
    raise UserError(
        f"--data_path {root}: no {dataset} there, neither {FOLDERS[dataset]}/train/ nor train/; run: "
        f"python download.py {dataset} --data_path {root}"
    )


def find_layout(data_path: str | Path) -> Layout:
    """The layout of a data set of folders.

    Without train/ the data set is one tree. If there is only val/ or only test/, that is the test split. A split
    without labels is not used.

    Raises UserError if there is no folder, fewer than two classes, or if the data set seems to begin elsewhere.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise UserError(f"--data_path {root} is not a folder; give one with a folder of images for each class")
    try:
        splits = split_folders(root)
        if "train" not in splits or not class_folders(splits["train"]):
            check_one_tree(root, splits)
            return Layout(read_classes(root, root), root)
        train = splits.pop("train")
        classes = read_classes(train, root)
        labelled = {split: folder for split, folder in splits.items() if is_labelled(folder, classes)}
        unused = [name for name in class_folders(root) if not split_of(name)]
    except OSError as error:
        raise UserError(f"--data_path {error.filename}: {error.strerror}; give a folder that can be read") from None
    notes = [f"{root / name} is not used: it is no split" for name in unused]
    notes += [f"{splits[split]} is not used: it has no class folders" for split in splits.keys() - labelled.keys()]
    if not labelled:
        notes.append(f"the test split is a fifth of {train}, always the same")
    test = labelled.get("test", labelled.get("val"))
    return Layout(classes, train, labelled["val"] if len(labelled) == 2 else None, test, tuple(notes))


def split_of(name: str) -> str | None:
    """The split that a folder of that name holds: "train", "val" or "test", or None."""
    word = re.sub(r"[-_ ]?(set|data|dataset|images|split)$", "", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of a data set that hold a split, by its name; UserError if two hold the same."""
    splits = {}
    for name in class_folders(root):
        split = split_of(name)
        if split in splits:
            raise UserError(f"--data_path {root} has {splits[split].name}/ and {name}/ for one split; keep one")
        if split:
            splits[split] = root / name
    return splits


def is_labelled(folder: Path, classes: tuple[str, ...]) -> bool:
    """Whether a split says of which class its images are. One folder that is no class, as test/images, does not."""
    inside = class_folders(folder)
    return len(inside) > 1 or bool(set(inside) & set(classes)) or annotations(folder).is_file()


def check_one_tree(root: Path, splits: dict[str, Path]) -> None:
    """UserError if a folder without a complete train/ has splits rather than classes. A class may be called train or
    valid, if its images lie in it and no second folder is called like a split."""
    names = class_folders(root)
    if "test" in splits or len(splits) > 1 or any(map(class_folders, splits.values())):
        given = " and ".join(f"{folder.name}/" for folder in splits.values())
        raise UserError(
            f"--data_path {root} has {given}, but no train/ with a folder for each class; add it, or rename {given} "
            "if these are classes"
        )
    for name in names:
        others = [other for other in names if re.search("test|val", other.lower())]
        if "train" in name.lower() and others and class_folders(root / name):
            raise UserError(
                f"--data_path {root}: {name}/ and {others[0]}/ look like splits; call them train/ and test/"
            )


def read_classes(folder: Path, root: Path) -> tuple[str, ...]:
    """The class folders in `folder`, which is `root` or its train/; UserError if these are no classes."""
    names = class_folders(folder)
    if not names:
        among = class_folders(folder.absolute().parent)
        parent = f", or give the folder above, {folder.absolute().parent}" if len(among) > 1 else ""
        raise UserError(f"--data_path {root}: no folders in {folder}; put the images of each class into one{parent}")
    below = data_set_below(folder)
    if below:
        remedy = f"did you mean --data_path {below}?" if folder == root else f"move what is in {below} to {folder}"
        raise UserError(f"--data_path {root}: the classes lie deeper, in {below}; {remedy}")
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):  # control; bytes that are not UTF-8
            raise UserError(f"--data_path {root}: the name of the class {name!r} cannot be printed; rename the folder")
    if len(names) == 1:
        raise UserError(f"--data_path {root}: {folder} has one class, {names[0]!r}; add a second one")
    return names


def data_set_below(folder: Path) -> Path | None:
    """The folder inside `folder` in which the data set seems to begin: one that has train/, or the only one if it has
    several folders. None if there is none."""
    inside = [folder / name for name in class_folders(folder)]
    for child in inside:
        spellings = [spell(name) for name in SPLIT_NAMES["train"] for spell in (str.lower, str.capitalize, str.upper)]
        if any((child / name).is_dir() and class_folders(child / name) for name in spellings):
            return child
    if len(inside) == 1:
        return data_set_below(inside[0]) or (inside[0] if len(class_folders(inside[0])) > 1 else None)
    return None
