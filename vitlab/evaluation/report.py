"""Predictions of a split, and the report of a run."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from vitlab import processes
from vitlab.evaluation import metrics
from vitlab.hardware import describe_cpu, describe_hardware, float32_as
from vitlab.models.registry import count_parameters, train_pflop


@float32_as("ieee")
@torch.inference_mode()
def predict_all(model: nn.Module, batches: Iterable, title: str = "evaluate") -> tuple[torch.Tensor, torch.Tensor]:
    """(labels n, logits n x C) of all images, on the CPU. The model runs in eval mode, then gets its mode back.

    It runs in its own dtype, float32, also where training is in bfloat16: the result must not depend on the machine.
    Of several processes each computes a share of every batch, and all get all results.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    labels, logits = [], []
    shares = processes.shares(batches)
    total = len(batches) if isinstance(batches, Sized) else None
    for images, targets, own, _ in tqdm(shares, title, total, leave=False, disable=None, unit="batch"):
        labels.append(targets[:own])
        logits.append(model(images.to(device))[:own])
    model.train(was_training)
    return in_order(labels), in_order(logits)


def in_order(shares: list[torch.Tensor]) -> torch.Tensor:
    """One tensor, on the CPU, of what all processes have of each batch."""
    if processes.count() == 1:
        return torch.cat(shares).cpu()
    everywhere = processes.gather([share.cpu() for share in shares])
    return torch.cat([share for batch in zip(*everywhere) for share in batch])


def evaluate(model: nn.Module, batches: Iterable, title: str = "evaluate") -> dict:
    """Accuracy, loss and F1 of a model on a split (metrics.summary)."""
    labels, logits = predict_all(model, batches, title)
    return metrics.summary(labels, logits.softmax(-1), F.cross_entropy(logits, labels))


def git_commit() -> str | None:
    """The commit of this code, with "+" if it was changed since; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


def command_line() -> str:
    """The command that started this process, without the path of the script."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def tells_size(model: nn.Module) -> bool:
    """Whether a module says what images it takes: square ones, of how many channels."""
    return all(isinstance(getattr(model, name, None), int) for name in ("img_size", "in_chans"))


def make_report(
    *,
    name: str,
    dataset: str,
    checkpoint: str | Path,
    seed: int,
    device: torch.device,
    model: nn.Module,
    seconds: float,
    images_per_second: float | None = None,
    images: int | None = None,
    patch_drop_rates: Sequence[float] = (0.0,),
    data: list[str] | None = None,
    train_dtype: str | None = None,
    **results: dict | None,
) -> dict:
    """The contents of report.json, the same for train.py and test.py.

    seconds: of the complete run; images_per_second: of training alone; images: how many were trained on, over all
    epochs, and patch_drop_rates: of each epoch; from these follows train_pflop (None for a module that does not say the
    size of its images). data: what was printed about the images before the training (Splits.summary). train_dtype:
    hardware.describe_precision's; evaluation has the weights' own. results: train, val and test, each metrics.summary's
    dict, or None if it was not measured.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    cuda = {"cuda": torch.version.cuda} if device.type == "cuda" else {}
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
    return {
        "name": name,
        "dataset": dataset,
        "command": command_line(),
        "checkpoint": str(checkpoint),
        "seed": seed,
        "hardware": describe_hardware(device) + (f", {processes.count()} processes" if processes.count() > 1 else ""),
        "cpu": describe_cpu(),
        "dtype": {"train": train_dtype, "evaluate": dtype},
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
            **cuda,
        },
        "git_commit": git_commit(),
        "parameters": count_parameters(model),
        "seconds": round(seconds, 2),
        "images_per_second": images_per_second and round(images_per_second, 1),
        "train_pflop": train_pflop(model, images, patch_drop_rates) if images and tells_size(model) else None,
        "data": data,
        **{split: results.get(split) for split in ("train", "val", "test")},
    }
