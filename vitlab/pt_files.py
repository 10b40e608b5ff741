"""Reading and writing .pt files. They are read with weights_only=True: nothing in them is run."""

import argparse
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.cli import UserError
from vitlab.files import replacing

ROOT = Path(__file__).resolve().parent.parent  # of the repository

_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]  # what rebuilds numpy's values
HARMLESS = [  # what training scripts keep beside the weights, and torch does not know
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def write_checkpoint(path: str | Path, contents: dict) -> None:
    """Write a dict of tensors and plain values next to `path`, then rename it into place. Raises UserError if it
    cannot be written."""
    with replacing(path) as part, open(part, "wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # raised by the zip writer when the disk is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def find_checkpoint(path: str | Path) -> Path:
    """The path, or if nothing is there, the same in the repository: its models are found from any folder."""
    path = Path(path)
    return ROOT / path if not path.exists() and (ROOT / path).exists() else path


def read_checkpoint(path: str | Path, *, lazily: bool = False) -> Any:
    """What a .pt file, or a run folder's best.pt, holds: tensors and plain values, in a dict if it is one of ours.

    lazily: leave the tensors in the file until they are used; for a look at the plain values alone.
    Raises UserError if there is no such file, or if it is damaged or holds code.
    """
    path = find_checkpoint(path)
    if path.is_dir():
        path = path / "best.pt"
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; train one with train.py, or check --model_path")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds more than weights: pickled Python{f' ({name[1]})' if name else ''}, which is refused and "
            "was not run; where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except (LookupError, AttributeError, EOFError, AssertionError, struct.error):  # torch.load on other kinds of files
        raise UserError(f"{path} is not a complete checkpoint; check --model_path, or copy it again") from None
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a complete checkpoint ({reason}); copy it again") from None
