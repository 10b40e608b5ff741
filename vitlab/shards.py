"""Shards: image sets packed in tar files, in the format of the webdataset library.

shards = open_shards("DIR")                             # all that DIR/shards.json lists
shards = open_shards("DIR/train-{000000..000009}.tar")  # some of them
shards.classes
shards.splits["train"]                                  # [(ShardImage, label), ...]

In a shard, files that follow each other and differ in their suffix alone are a sample: KEY.jpg (or another format) is
the image and KEY.cls the number of its class. shards.json beside the shards says what is in them, so that nothing need
be read before the training; `python -m vitlab.datasets.shards` writes both.
"""

import functools
import glob
import importlib.util
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitlab.cli import UserError
from vitlab.layout import image_suffixes

INDEX = "shards.json"
MODULE = "python -m vitlab.datasets.shards"
AGAIN = f"{MODULE} --index"
KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # how webdataset divides a name
SKIPPED = re.compile(r"__[^/]*__($|/)")  # what webdataset does not read


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file: its path, and how many images are in it."""

    path: str
    images: int

    def check(self, found: int) -> None:
        """Raise UserError unless so many images were found."""
        if found != self.images:
            different = f"has {found} images, not {self.images} as in {INDEX}"
            raise UserError(f"shard {self.path} {different}; copy it again, or pack it again")


@dataclass(frozen=True, eq=False, slots=True)
class ShardImage:
    """An image of a shard, by its number there, in the place of a file's path. str() says where it is."""

    shard: Shard
    number: int

    def open(self) -> io.BytesIO:
        """Its encoded bytes, as a file that is open for reading. UserError if the shard is damaged."""
        try:
            samples = find_samples(self.shard.path)
            self.shard.check(len(samples))
            start, size, _ = samples[self.number]
            with open(self.shard.path, "rb") as file:
                file.seek(start)
                return io.BytesIO(file.read(size))
        except (OSError, ValueError) as error:
            raise UserError(unreadable(self.shard.path, error)) from None

    @property
    def place(self) -> str:
        """The same within its set, wherever that lies."""
        return f"{Path(self.shard.path).name}, image {self.number}"

    def __str__(self) -> str:
        return f"{self.shard.path}, image {self.number}"


@dataclass(frozen=True, eq=False, slots=True)
class ReadImage:
    """The same when its bytes have been read."""

    shard: Shard
    number: int
    data: bytes

    def open(self) -> io.BytesIO:
        """Its encoded bytes, as a file that is open for reading."""
        return io.BytesIO(self.data)

    place, __str__ = ShardImage.place, ShardImage.__str__


@dataclass(frozen=True)
class ShardSet:
    """The images and labels of each split, "train", "val" and "test"; the latter two if they exist. classes: names of
    the labels."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[ShardImage, int]]]


def open_shards(data_path: str) -> ShardSet:
    """The shards that a folder or a pattern with braces names; their images are not read yet.

    Raises UserError if webdataset is not installed, if there is no index, or if a shard is missing, is not in the
    index, or has another size than there."""
    paths = expand(data_path)
    folder = Path(data_path) if paths is None else paths[0].parent
    index = read_index(folder, data_path if paths else f"{folder}/*.tar")
    paths = [folder / name for name in index["shards"]] if paths is None else paths
    splits = {}
    for path in paths:
        entry = index["shards"].get(path.name) if path.parent == folder else None
        if entry is None:
            raise UserError(
                f"--data_path {data_path}: {path} is not in {folder / INDEX}; remove that file and run: "
                f"{AGAIN} '{data_path}', with --classes FILE for the names of the classes"
            )
        check_size(path, entry["bytes"])
        shard = Shard(str(path), len(entry["labels"]))
        images = [(ShardImage(shard, number), label) for number, label in enumerate(entry["labels"])]
        splits.setdefault(entry["split"], []).extend(images)
    if "train" not in splits:
        raise UserError(f"--data_path {data_path}: no shard of training images; add those of the split train")
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")  # as in a folder: val alone is the test split
    return ShardSet(tuple(index["classes"]), splits)


def expand(data_path: str) -> list[Path] | None:
    """The paths that a pattern names, with braces or *; None if it names a folder. UserError if it is neither, or of
    another machine."""
    if importlib.util.find_spec("webdataset") is None:
        raise UserError("--dataset webdataset needs webdataset: pip install webdataset")
    from braceexpand import UnbalancedBracesError, braceexpand  # which webdataset brings

    if re.match(r"\w\w+:", data_path):
        raise UserError(f"--data_path {data_path}: shards are read from a disk; copy them and shards.json to one")
    if Path(data_path).is_dir():
        return None
    try:
        texts = list(braceexpand(data_path, escape=False))  # a backslash divides folders on Windows
    except (UnbalancedBracesError, ValueError) as error:
        raise UserError(f"--data_path {data_path} is no pattern ({error}); as 'DIR/{{000..099}}.tar'") from None
    if other := next((text for text in texts if not text.endswith(".tar")), None):
        raise UserError(f"--data_path {other} is neither a folder nor a .tar file; give one of them, or a pattern")
    found = [sorted(glob.glob(text)) if glob.has_magic(text) else [text] for text in texts]
    paths = [Path(path) for paths in found for path in paths]
    if not paths or not paths[0].parent.is_dir():
        place = paths[0].parent if paths else Path(texts[0])
        raise UserError(f"--data_path {place} is not there; give a folder with shards, or 'DIR/{{000..099}}.tar'")
    return paths


def read_index(folder: Path, pattern: str) -> dict:
    """The contents of shards.json in a folder; UserError if it is missing or damaged."""
    path = folder / INDEX
    if not path.is_file():
        again = f"{AGAIN} '{pattern}'" if any(folder.glob("*.tar")) else f"{MODULE} DIR {folder}, which packs a folder"
        raise UserError(f"--data_path {folder}: there is no {INDEX}; run: {again}")
    try:
        return parse_index(str(path), path.stat().st_mtime_ns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged ({reason}); remove it and run: {AGAIN} '{pattern}'") from None


@functools.lru_cache(maxsize=4)
def parse_index(path: str, _changed: int) -> dict:
    """The contents of shards.json at a path, checked: {"classes": [...], "shards": {name: {"split", "bytes",
    "labels"}}}."""
    index = json.loads(Path(path).read_text(encoding="utf-8"))
    number = len(index["classes"])
    for name, shard in index["shards"].items():
        if shard["split"] not in ("train", "val", "test") or not isinstance(shard["bytes"], int):
            raise ValueError(f"{name} has no split or size")
        if not all(label in range(number) for label in set(shard["labels"])):
            raise ValueError(f"{name} has labels beyond the {number} classes")
    if not index["shards"]:
        raise ValueError("it lists no shards")
    return index


def check_size(path: Path, expected: int) -> None:
    """Raise UserError if a shard is missing, or is not as long as it was when it was written."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"shard {path}: {error.strerror}; copy it there again, or leave it out") from None
    if found != expected:
        raise UserError(f"shard {path} has {found:,} bytes, not {expected:,} as in {INDEX}; copy it there again")


# -------------------------------------------------------------------------------------- one tar file


def unreadable(path: str, error: Exception) -> str:
    """What is said of a shard for which a reader raised that error."""
    said = getattr(error, "strerror", None) or (error.args[0] if error.args else "")  # webdataset adds more arguments
    reason = " ".join(str(said).split()) or type(error).__name__
    return f"shard {path} cannot be read ({reason}); copy it again, or pack it again"


def image_of(suffixes: list[str]) -> str | None:
    """Which of a sample's suffixes is the image's; None if it has no image or no class."""
    known = image_suffixes()
    return next((suffix for suffix in suffixes if f".{suffix}" in known and "cls" in suffixes), None)


@functools.cache
def find_samples(path: str) -> list[tuple[int, int, int]]:
    """(where its bytes begin, how many there are, label) of each image of a shard, in order. ValueError if the file is
    no complete tar file."""
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            samples = list(read_samples(tar, file))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(f"no complete tar file: {error}") from None
    return samples


def read_samples(tar: tarfile.TarFile, file: io.BufferedReader) -> Iterator[tuple[int, int, int]]:
    """find_samples of an opened file."""
    named = []
    for member in tar:
        parts = KEY_AND_SUFFIX.fullmatch(member.name)
        if member.isreg() and parts and not SKIPPED.match(member.name):
            named.append((parts[1], parts[2].lower(), member.offset_data, member.size))
    for _, sample in itertools.groupby(named, key=lambda entry: entry[0]):
        found = {suffix: (start, size) for _, suffix, start, size in sample}
        if image := image_of(list(found)):
            start, size = found["cls"]
            file.seek(start)
            yield *found[image], int(file.read(size))
