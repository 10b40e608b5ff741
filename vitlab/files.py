"""Files are written next to their place and then renamed into it, so that an error never leaves half a file."""

import contextlib
import csv
import itertools
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitlab.cli import UserError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path next to `path` to write to, which is renamed to `path` at the end, or removed after an error.

    Raises UserError if the disk is full or the folder cannot be written; what was at `path` is then intact.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # unique on all machines that share a folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}); what was there is intact") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def writable_folder(folder: Path, flag: str) -> Path:
    """Make the folder if it is missing, and return it. Raises UserError, naming the flag that it came from, if
    nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{flag}: {folder} cannot be written ({error.strerror or error}); choose another folder"
        ) from None
    return folder


def new_folder(folder: Path) -> Path:
    """Make a folder that was not there, FOLDER or else FOLDER-2, FOLDER-3, ..., and return it. Of several processes
    each gets one of its own. Raises UserError if none can be made."""
    for number in itertools.count(1):
        made = folder.with_name(f"{folder.name}-{number}") if number > 1 else folder
        try:
            made.mkdir(parents=True)
            return made
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{made} cannot be made ({error.strerror or error}); choose another --output_path"
            ) from None


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8 and return its path. Raises UserError as replacing does."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_csv(path: str | Path, rows: list[dict]) -> Path:
    """Write a CSV file in UTF-8, its columns the keys of the first row, and return its path. Raises UserError as
    replacing does."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def write_json(path: str | Path, contents: object) -> Path:
    """Write a JSON file and return its path. Raises UserError as replacing does, and if a number is nan or infinite,
    which JSON does not have."""
    try:
        text = json.dumps(contents, indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not written: a number for it is nan or infinite ({error})") from None
    return write_text(path, text + "\n")


def save_npy(values: object, path: str | Path) -> Path:
    """Write an array as .npy and return its path. Raises UserError as replacing does."""
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, np.asarray(values))
    return Path(path)
