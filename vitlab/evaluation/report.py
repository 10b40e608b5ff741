"""Predictions of a split, and the report of a run."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from vitlab.evaluation import metrics
from vitlab.hardware import autocast, describe_hardware
from vitlab.models.registry import count_parameters


@torch.inference_mode()
def predict_all(model, batches, amp=None, title="evaluate"):
    """(labels n, logits n x C) of every image, on the CPU; the model is left as it was found."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    labels, logits = [], []
    for images, targets in tqdm(batches, desc=title, leave=False, disable=None, unit="batch"):
        with autocast(device, amp):
            out = model(images.to(device))
        labels.append(targets)
        logits.append(out.float())
    model.train(was_training)
    return torch.cat(labels).cpu(), torch.cat(logits).cpu()


def evaluate(model, batches, amp=None, title="evaluate"):
    """A split's result (metrics.summary)."""
    labels, logits = predict_all(model, batches, amp, title)
    return metrics.summary(labels, logits.argmax(-1), F.cross_entropy(logits, labels))


def git_commit():
    """The commit of this code, with "+" where it was changed since; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


def command_line():
    """What was typed."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def make_report(*, name, dataset, checkpoint, seed, device, model, seconds, images_per_second=None, **results):
    """The contents of report.json: one shape for train.py and test.py. Seconds of the whole run;
    results are train, val and test, each metrics.summary or None."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
    return {
        "name": name,
        "dataset": dataset,
        "command": command_line(),
        "checkpoint": str(checkpoint),
        "seed": seed,
        "hardware": describe_hardware(device),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "git_commit": git_commit(),
        "parameters": count_parameters(model),
        "seconds": round(seconds, 2),
        "images_per_second": images_per_second and round(images_per_second, 1),
        **{split: results.get(split) for split in ("train", "val", "test")},
    }
