"""How a folder of images is laid out: its splits and its classes, by names of folders and files beside them.

layout = find_layout("DIR")     # DIR/train/CLASS/* with DIR/test or DIR/val, or one tree DIR/CLASS/*
layout.classes, layout.names, layout.train, layout.val, layout.test, layout.notes
read_labels(layout.test)        # of ImageNet's val/ without class folders: {"ILSVRC2012_val_00000001.JPEG": ...}
"""

import csv
import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
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
TINY = "val_annotations.txt"  # Tiny ImageNet: name, tab, class, ...
KAGGLE = "LOC_val_solution.csv"  # ImageId,PredictionString, the latter begins with the class
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"  # line i: the number of the class of image i
SYNSETS = "meta.mat"  # of the same devkit: the classes by their numbers
WORDS = ("LOC_synset_mapping.txt", "words.txt")  # a class, then a space or tab and its synonyms
INSIDE = (".", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")  # where they lie in a folder


@dataclass(frozen=True)
class Layout:
    """Where the images of each split lie. test is None if it must be cut from the training images, val is None
    likewise; notes: lines about what is there and not used."""

    classes: tuple[str, ...]  # the folders, sorted
    names: tuple[str, ...]  # what they are called, see class_names
    train: Path
    val: Path | None = None
    test: Path | None = None
    notes: tuple[str, ...] = ()


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow can open, in lower case."""
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no part of a data set, by its name."""
    return name.startswith(HIDDEN)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted, without hidden ones such as .git."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)))


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
            classes = read_classes(root, root)
            return Layout(classes, class_names(root, classes), root)
        train = splits.pop("train")
        classes = read_classes(train, root)
        labelled = {split: folder for split, folder in splits.items() if is_labelled(folder, classes)}
        unused = [name for name in class_folders(root) if not split_of(name)]
    except OSError as error:
        raise UserError(f"--data_path {error.filename}: {error.strerror}; give a folder that can be read") from None
    notes = [f"{root / name} is not used: it is no split" for name in unused]
    notes += [f"{splits[split]} is not used: it has no class folders" for split in splits.keys() - labelled.keys()]
    if not labelled:
        notes.append(f"the test split is a fifth of {train}, chosen by file names")
    test = labelled.get("test", labelled.get("val"))
    return Layout(
        classes, class_names(root, classes), train, labelled["val"] if len(labelled) == 2 else None, test, tuple(notes)
    )


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
    return len(inside) > 1 or bool(set(inside) & set(classes)) or label_file(folder) is not None


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


# ------------------------------------------------- files that tell labels, and the names of classes


def find_file(folder: Path, name: str) -> Path | None:
    """A file of that name in a folder or up to four above it (Kaggle unpacks val/ to ILSVRC/Data/CLS-LOC/), each with
    the folders INSIDE it."""
    places = (place / inside / name for place in [folder, *folder.absolute().parents[:4]] for inside in INSIDE)
    return next((place for place in places if os.path.isfile(place)), None)  # False too where one may not look


def label_file(folder: Path) -> Path | None:
    """The file that labels the images of a split without class folders; None if there is none."""
    if (folder / TINY).is_file():
        return folder / TINY
    if any(folder.glob("ILSVRC2012_val_*")):
        return find_file(folder, KAGGLE) or find_file(folder, DEVKIT)
    return None


def read_labels(folder: Path) -> dict[str, str]:
    """The class of each image of such a split, by its file's name. UserError if label_file(folder) cannot be read."""
    path = label_file(folder)
    if path.name == DEVKIT:
        return read_devkit(path)
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if path.name == KAGGLE:
        rows = list(csv.DictReader(lines))
        if not rows or not {"ImageId", "PredictionString"} <= rows[0].keys():
            raise UserError(f"{path} lacks the columns ImageId and PredictionString; put the original file there")
        words = {row["ImageId"]: (row["PredictionString"] or "").split() for row in rows}
        return {f"{name}.JPEG": classes[0] for name, classes in words.items() if classes}
    return {columns[0]: columns[1] for line in lines if len(columns := line.split("\t")) > 1}


def read_devkit(path: Path) -> dict[str, str]:
    """read_labels for the ground truth of ImageNet's devkit, whose numbers meta.mat beside it explains."""
    synsets = path.with_name(SYNSETS)
    if not synsets.is_file():
        raise UserError(f"{path} needs {SYNSETS} beside it, from the same ILSVRC2012_devkit_t12; put it there")
    from scipy.io import loadmat  # takes a while to import, and few sets need it

    try:
        rows = loadmat(synsets, squeeze_me=True)["synsets"]
        name_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        numbers = map(int, path.read_text().split())
        return {f"ILSVRC2012_val_{i:08d}.JPEG": name_of[number] for i, number in enumerate(numbers, start=1)}
    except Exception as error:  # loadmat raises whatever it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} and {SYNSETS} cannot be read ({reason}); unpack ILSVRC2012_devkit_t12 again") from None


def class_names(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What classes are called in words, where a file of WORDS in or above the folder `root` knows all of them: the
    first synonym, with the class behind it where two would be called the same. Otherwise the classes themselves."""
    for file in filter(None, (find_file(root, name) for name in WORDS)):
        name_of = {name: words for name, words in read_words(file) if words}
        if all(name in name_of for name in classes):
            names = [name_of[name] for name in classes]
            counts = Counter(names)
            return tuple(word if counts[word] == 1 else f"{word} ({name})" for name, word in zip(classes, names))
    return tuple(classes)


def read_words(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of class and first synonym from a file of WORDS."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, words = line.replace("\t", " ", 1).partition(" ")
        yield name, words.split(",")[0].strip()
