"""Pack a folder of images into shards, for --dataset webdataset.

python -m vitlab.datasets.shards DIR OUT                       # OUT/train-000000.tar, ..., OUT/shards.json
python -m vitlab.datasets.shards --index 'DIR/{000..099}.tar'  # shards of others: write shards.json beside them

DIR is laid out as for --dataset folder. Files are copied as they are, in random order, 1,000 to a shard. In shards of
others a sample is KEY.jpg (or another format) and KEY.cls, the number of its class; train, val and test are told by
the names of the shards, and shards without one of these words are for training.
"""

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vitlab.cli import Parser, UserError, run_cli, whole_number
from vitlab.datasets.folders import FolderIndex, stratified_order
from vitlab.files import writable_folder, write_text
from vitlab.layout import split_of
from vitlab.shards import INDEX, expand, find_samples, unreadable


def pack(folder: str | Path, out: str | Path, *, images_per_shard: int = 1000, seed: int = 0) -> list[str]:
    """Pack the splits of a folder into OUT/SPLIT-000000.tar, ..., and write OUT/shards.json. Returns the lines about
    what is not used. Files with the same contents give the same shards, byte for byte.

    Raises UserError if the folder is no data set, or OUT exists. OUT appears when all is written."""
    index, out = FolderIndex(folder), Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; choose a new folder")
    writable_folder(out.absolute().parent, str(out))
    shards, workshop = {}, Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        for split, files in index.splits.items():
            order = stratified_order([label for _, label in files or ()], seed)  # all classes in each shard
            for first in tqdm(range(0, len(order), images_per_shard), split, leave=False, disable=None, unit="shard"):
                name = f"{split}-{first // images_per_shard:06d}.tar"
                chosen = [files[place] for place in order[first : first + images_per_shard]]
                write_shard(workshop / name, chosen, first)
                shards[name] = describe_shard(workshop / name, split, [label for _, label in chosen])
        write_index(workshop, index.classes, shards)
        workshop.chmod(0o755)
        workshop.replace(out)
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise UserError(f"{out} is not written ({reason}); nothing is left of it") from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return index.notes


def write_shard(path: Path, files: Sequence[tuple[Path, int]], first: int) -> None:
    """Write image files and their labels as a tar file; their keys are numbers, from `first` on."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (file, label) in enumerate(files, start=first):
            for suffix, data in ((file.suffix.lower(), file.read_bytes()), (".cls", b"%d" % label)):
                member = tarfile.TarInfo(f"{number:08d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def describe_shard(path: Path, split: str, labels: list[int]) -> dict:
    """A shard's entry in shards.json."""
    return {"split": split, "bytes": path.stat().st_size, "images": len(labels), "labels": labels}


def write_index(folder: Path, classes: Sequence[str], shards: dict[str, dict]) -> Path:
    """Write shards.json."""
    return write_text(folder / INDEX, json.dumps({"classes": list(classes), "shards": shards}) + "\n")


def write_index_of(pattern: str, classes: Sequence[str] | None = None) -> Path:
    """Write shards.json beside shards that exist, and return its path. classes: their names in the order of their
    numbers; default: the numbers. UserError if a shard cannot be read or has no images, or if an index is there."""
    paths = expand(pattern)
    if paths is None:
        raise UserError(f"--index {pattern} is a folder; name the shards, as '{pattern}/{{000..099}}.tar'")
    if (index := paths[0].parent / INDEX).exists():
        raise UserError(f"{index} is there already; remove it first")
    shards = {}
    for path in tqdm(paths, "index", disable=None, leave=False, unit="shard"):
        if path.parent != paths[0].parent:
            raise UserError(f"--index {pattern}: shards in {paths[0].parent} and {path.parent}; index one folder")
        try:
            labels = [label for _, _, label in find_samples(str(path))]
        except (OSError, ValueError) as error:
            raise UserError(unreadable(str(path), error)) from None
        if not labels or min(labels) < 0:
            raise UserError(f"{path} has no images with a .cls from 0 on beside them; leave it out")
        words = filter(None, map(split_of, re.split("[^a-z]+", path.stem.lower())))
        shards[path.name] = describe_shard(path, next(words, "train"), labels)
    numbers = range(1 + max(max(shard["labels"]) for shard in shards.values()))
    if classes is not None and len(classes) < len(numbers):
        raise UserError(f"--classes names {len(classes)} classes, and the shards have the numbers 0 to {numbers[-1]}")
    return write_index(paths[0].parent, classes or list(map(str, numbers)), shards)


def main() -> None:
    parser = Parser(description=__doc__, prog="python -m vitlab.datasets.shards")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="a folder of images")
    parser.add_argument("out", nargs="?", metavar="OUT", help="a new folder for the shards")
    parser.add_argument("--images_per_shard", type=whole_number("--images_per_shard", low=1), default=1000)
    parser.add_argument("--seed", type=whole_number("--seed"), default=0, help="of the order (default: 0)")
    parser.add_argument("--index", metavar="SHARDS", help="only write shards.json for these")
    parser.add_argument("--classes", metavar="FILE", help="with --index: the names of the classes, one in a line")
    args = parser.parse_args()
    if bool(args.index) == bool(args.out):
        raise UserError("give DIR and OUT, or --index SHARDS")
    if args.index:
        print(write_index_of(args.index, read_lines(args.classes) if args.classes else None))
        return
    notes = pack(args.folder, args.out, images_per_shard=args.images_per_shard, seed=args.seed)
    print("\n".join([*notes, f"python train.py --dataset webdataset --data_path {args.out}"]))


def read_lines(path: str) -> list[str]:
    """The lines of a file that are not empty; UserError if it cannot be read."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"--classes {path} cannot be read ({error}); give a text file with one name a line") from None


if __name__ == "__main__":
    run_cli(main)
