"""Image-classification sets of the Hugging Face hub, or in local parquet files, by the `datasets` library.

hub = open_hub("uoft-cs/cifar100,label=fine_label")
hub.classes                      # names of the labels
hub.read_splits()["train"]       # [(HubImage, label), ...]

The text is what --data_path gives: OWNER/NAME, a parquet file or a folder, then what the set does not say itself:
config=NAME (of a set with several), image=COLUMN and label=COLUMN (where several come into question).
"""

import functools
import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.cli import UserError
from vitlab.layout import split_of

OPTIONS = ("config", "image", "label")
UNLABELLED = (None, -1)  # in place of a label
LABEL_COLUMNS = ("label", "labels", "class", "target")  # taken for the labels where no column is of the type ClassLabel


@dataclass(frozen=True, eq=False, slots=True)
class HubImage:
    """An image in a row of a table, in the place of a file's path. str() says where it is."""

    table: Any  # datasets.Dataset
    column: str
    row: int
    name: str

    def open(self) -> io.BytesIO:
        """Its encoded bytes, as a file that is open for reading. UserError if there are none."""
        image = self.table[self.row][self.column] or {}
        if image.get("bytes") is None and not image.get("path"):
            raise UserError(f"{self} has no image; remove the row")
        try:
            return io.BytesIO(Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"])
        except OSError as error:
            raise UserError(f"{self}: {image['path']} cannot be read ({error.strerror}); put it there") from None

    @property
    def place(self) -> str:
        """The same within its set, wherever that lies."""
        return f"row {self.row}"

    def __str__(self) -> str:
        return f"{self.name}, {self.place}"


@dataclass(frozen=True)
class HubSet:
    """A set that is opened; its images are not read yet.

    tables: split -> datasets.Dataset; the splits are called "train", "val" and "test", the latter two if they exist.
    classes: names of the labels. notes: lines about what is there and not used."""

    name: str
    tables: dict[str, Any]
    image: str  # the column
    label: str  # the column
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def read_splits(self) -> dict[str, list[tuple[HubImage, int]]]:
        """The images and labels (indices into `classes`) of each split; rows without a label are left out."""
        from datasets import Image

        splits = {}
        for split, table in self.tables.items():
            images = table.select_columns([self.image]).cast_column(self.image, Image(decode=False))
            labels = read_labels(table, self.label, self.classes)
            if unknown := [label for label in labels if isinstance(label, str)]:
                raise UserError(f"--data_path {self.name}: {split} has the class {unknown[0]!r}, which train lacks")
            name = f"{self.name} {split}"
            places = [HubImage(images, self.image, row, name) for row in range(len(images))]
            splits[split] = [(place, label) for place, label in zip(places, labels) if label is not None]
        return splits


@functools.lru_cache(maxsize=4)
def open_hub(data_path: str) -> HubSet:
    """Open the set that a text names (see above). It is downloaded, or converted from parquet, once, to the cache of
    the `datasets` library.

    Raises UserError if that library is not installed, if the set cannot be read or has no training images, or if its
    image and label columns are not clear."""
    source, options = parse(data_path)
    tables = load(source, options.get("config"))
    tables, notes = name_splits(source, tables)
    features = tables["train"].features
    image = pick(features, source, "image", options.get("image"), image_columns(features))
    label = pick(features, source, "label", options.get("label"), label_columns(features))
    classes = tuple(getattr(features[label], "names", ()) or ())
    if not classes:
        values = {str(value) for value in tables["train"].select_columns([label])[:][label] if value not in UNLABELLED}
        classes = tuple(sorted(values, key=lambda text: (len(text), text) if text.isdecimal() else (0, text)))
    if len(classes) < 2:
        raise UserError(f"--data_path {source}: the column {label!r} has fewer than two classes; choose another")
    for split in ("val", "test"):
        if split in tables and all(value is None for value in read_labels(tables[split], label, classes)):
            notes.append(f"{source}: {split} is not used: it has no labels")
            del tables[split]
    if "val" in tables and "test" not in tables:
        tables["test"] = tables.pop("val")  # as in a folder: val alone is the test split
    return HubSet(source, tables, image, label, classes, tuple(notes))


def parse(data_path: str) -> tuple[str, dict[str, str]]:
    """NAME,option=value,... as (NAME, options); UserError if an option is unknown. A path may contain commas."""
    if Path(data_path).exists():
        return data_path, {}
    source, *parts = data_path.split(",")
    options = dict(part.partition("=")[::2] for part in parts)
    for option, value in options.items():
        if option not in OPTIONS or not value:
            raise UserError(
                f"--data_path {data_path}: {option!r} is no option; there are {', '.join(OPTIONS)}, each =NAME"
            )
    return source, options


def load(source: str, config: str | None) -> dict[str, Any]:
    """The tables of a set by the names of its splits; UserError if it cannot be read."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError("--dataset hf needs datasets: pip install datasets")
    import datasets  # optional
    import huggingface_hub

    for logger in (datasets.logging, huggingface_hub.logging):
        logger.set_verbosity_error()  # without a network it warns before each of five tries
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(source)
    try:
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            tables = datasets.load_from_disk(source)
        elif path.is_file():
            tables = datasets.load_dataset("parquet", data_files=source)
        else:
            tables = datasets.load_dataset(source, config)
    except Exception as error:  # its readers and the hub's client raise whatever they like
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(
            f"--data_path {source} cannot be read as a set of images ({reason[:300]}); give OWNER/NAME of the Hugging "
            "Face hub (append ,config=NAME if it has several), or a folder of complete parquet files"
        ) from None
    return dict(tables) if isinstance(tables, dict) else {"train": tables}


def name_splits(source: str, tables: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tables as "train", "val" and "test", and a line for each that is none of these. One table alone is train."""
    if len(tables) == 1:
        return {"train": next(iter(tables.values()))}, []
    named = {}
    for name, table in tables.items():
        if (split := split_of(name)) in named and split:
            raise UserError(f"--data_path {source} has two {split} splits, {', '.join(tables)}; make one of them")
        named[split] = table
    if "train" not in named:
        raise UserError(f"--data_path {source} has the splits {', '.join(tables)}, but no train; choose another set")
    notes = [f"{source}: {name} is not used: it is no split" for name in tables if not split_of(name)]
    named.pop(None, None)
    return named, notes


def image_columns(features: dict[str, Any]) -> list[str]:
    """The columns that hold images: those of that type, or else those with encoded files (pandas writes no types)."""
    from datasets import Image

    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    return typed or [
        name
        for name, feature in features.items()
        if (isinstance(feature, dict) and "bytes" in feature) or str(getattr(feature, "dtype", "")).endswith("binary")
    ]


def label_columns(features: dict[str, Any]) -> list[str]:
    """The columns that hold classes: those of the type ClassLabel, or else those that are called like labels."""
    from datasets import ClassLabel

    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return typed or [name for name in features if name in LABEL_COLUMNS]


def pick(features: dict[str, Any], source: str, kind: str, given: str | None, candidates: Sequence[str]) -> str:
    """The one column that is given or comes into question; UserError otherwise."""
    if given in features:
        return given
    if given is None and len(candidates) == 1:
        return candidates[0]
    which = f"{kind}={given} is no column" if given else f"{len(candidates)} columns may be the {kind}"
    among = ", ".join(candidates or features)
    raise UserError(f"--data_path {source}: {which}; append ,{kind}=COLUMN with one of {among}")


def read_labels(table: Any, column: str, classes: Sequence[str]) -> list[int | str | None]:
    """Of each row the index of its class; None if it has no label (None or -1), the text of a class that is unknown."""
    values = table.select_columns([column])[:][column]
    if hasattr(table.features[column], "names"):
        return [None if value in UNLABELLED else value for value in values]
    index = {name: label for label, name in enumerate(classes)}
    return [None if value in UNLABELLED else index.get(str(value), str(value)) for value in values]
