"""Files of weights: .pt, read with weights_only=True, so that nothing in them is run, and .safetensors."""

import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from vitlab.cli import UserError
from vitlab.files import replacing

ROOT = Path(__file__).resolve().parent.parent  # of the repository


class Dropped:
    """What stands for an object whose value nobody reads. A file's bytes never reach numpy, which trusts them."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


HARMLESS = [  # what training scripts keep beside the weights, and torch does not know
    (Dropped, name)
    for name in (
        "argparse.Namespace",
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray.{make}" for core in ("core", "_core") for make in ("scalar", "_reconstruct")),
    )
]
FORMAT = "vit-small-images"  # the key by which our files are known, and under which they keep their facts
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a model's folder as transformers and timm save it
HUB_CONFIGS = ("config.json", "preprocessor_config.json")  # what lies beside them


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
    """What a file of weights holds: tensors and plain values, in a dict if it is one of ours. Of a folder it is a run's
    best.pt, or the file of a model of transformers or timm: then a dict of "weights" and, by their names, of the
    contents of HUB_CONFIGS.

    lazily: leave the tensors in the file until they are used; for a look at the plain values alone.
    Raises UserError if there is no such file, or if it is damaged or holds code.
    """
    path = find_checkpoint(path)
    if path.is_dir():
        path = next((path / name for name in ("best.pt", *HUB_FILES) if (path / name).is_file()), path / "best.pt")
    if not path.is_file() and any(path.parent.glob("*.index.json")):
        raise UserError(
            f"{path.parent} is saved in several files; save it in one: save_pretrained(max_shard_size='99GB')"
        )
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check the path, or train one with train.py")
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(f"{path} is a program that was exported (docs/export.md); give the checkpoint it was made of")
    contents = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path, lazily=lazily)
    if path.name in HUB_FILES and (path.parent / "config.json").is_file():
        contents = {"weights": contents, **read_hub_configs(path.parent)}
    return contents


def read_pt(path: Path, *, lazily: bool) -> Any:
    """What a .pt file holds. Raises UserError if it is damaged or holds code."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            for words in ("Detected pickle protocol", ".* TorchScript archive"):  # what follows is said in a line
                warnings.filterwarnings("ignore", message=words)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds more than weights: pickled Python{f' ({name[1]})' if name else ''}, which is refused and "
            "was not run; where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except (LookupError, AttributeError, EOFError, AssertionError, struct.error):  # torch.load on other kinds of files
        raise UserError(f"{path} is not a complete checkpoint; copy it again, or give another") from None
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        if "TorchScript" in reason:
            remedy = (
                "where you trust it, save its state dict: torch.save(torch.jit.load(...).state_dict(), 'weights.pt')"
            )
            raise UserError(f"{path} is a TorchScript program, which is not run; {remedy}") from None
        raise UserError(f"{path} is not a complete checkpoint ({reason}); copy it again") from None


def read_safetensors(path: Path) -> dict:
    """What a .safetensors file holds: of one of ours the contents of the .pt file that it was made of, otherwise its
    tensors by name. Raises UserError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a complete .safetensors file ({error}); copy it again") from None
    if facts is None:
        return tensors
    contents = json.loads(facts)
    lists = {name: tuple(value) for name, value in contents["config"].items() if isinstance(value, list)}
    return {**contents, "config": {**contents["config"], **lists}, "model": tensors}


def write_safetensors(path: str | Path, contents: dict) -> None:
    """Write a checkpoint of ours: `contents` as in a .pt file, its "model" a state dict, the rest plain values, which
    go to the metadata as JSON. Raises UserError if the file cannot be written."""
    from safetensors.torch import save

    plain = {name: value for name, value in contents.items() if name != "model"}
    tensors = {name: value.contiguous() for name, value in contents["model"].items()}
    with replacing(path) as part:
        part.write_bytes(save(tensors, metadata={FORMAT: json.dumps(plain)}))  # save_file makes it private to its owner


def read_hub_configs(folder: Path) -> dict[str, dict]:
    """The contents of the JSON files of HUB_CONFIGS that are in a folder. Raises UserError if one is damaged."""
    configs = {}
    for file in (folder / name for name in HUB_CONFIGS if (folder / name).is_file()):
        try:
            configs[file.name] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not complete JSON ({error}); copy it again, or remove it") from None
        if not isinstance(configs[file.name], dict):
            raise UserError(f"{file} is not a model's config; copy it again, or remove it")
    return configs
