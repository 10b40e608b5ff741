"""Every number of a test split: printed, as a confusion matrix, and in report.json."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from vitlab.checkpoint import Checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_split
from vitlab.evaluation import metrics
from vitlab.evaluation.report import make_report, predict_all
from vitlab.files import write_json
from vitlab.pictures import figures

MANY_CLASSES = 20  # of more the confusion matrix is not printed


def report_split(checkpoint: Checkpoint, config: TrainConfig, folder: Path) -> None:
    """Predict the test split of `config`, print the results, and write confusion_matrix.png and report.json."""
    began = time.perf_counter()
    batches = load_split(config, "test", mean=checkpoint.mean, std=checkpoint.std)
    device = batches.labels.device
    labels, logits = predict_all(checkpoint.model, batches, "test")
    seconds = time.perf_counter() - began

    predictions, classes = logits.argmax(-1), checkpoint.classes
    result = metrics.summary(labels, logits.softmax(-1), F.cross_entropy(logits, labels))
    per_class = metrics.per_class(labels, predictions, classes)
    counts = metrics.confusion(labels, predictions, len(classes))
    print_per_class(per_class)
    print_confusion(counts, classes)
    low, high = result["ci95"]
    print(
        f"\ntest accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), loss {result['loss']:.4f}, "
        f"calibration error {result['calibration_error']:.4f}, F1 macro {result['f1_macro']:.4f}, "
        f"weighted {result['f1_weighted']:.4f}, {result['n']} images"
    )
    print(figures.plot_confusion_matrix(counts, classes, folder / "confusion_matrix.png"))
    report = make_report(
        name=folder.parent.name,
        dataset=config.dataset,
        checkpoint=checkpoint.path,
        seed=config.seed,
        device=device,
        model=checkpoint.model,
        seconds=seconds,
        test=result,
    )
    print(write_json(folder / "report.json", {**report, "per_class": per_class, "confusion": counts.tolist()}))


def print_per_class(rows: Sequence[dict]) -> None:
    """Print precision, recall, F1 and the number of images of each class."""
    width = max(len(row["class"]) for row in rows)
    print(f"{'class':>{width}}  precision  recall      f1      n")
    for row in rows:
        print(f"{row['class']:>{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:.4f}  {row['n']:5d}")


def print_confusion(counts: np.ndarray, classes: Sequence[str]) -> None:
    """Print the confusion matrix C x C, or of many classes the ten most frequent confusions."""
    if len(classes) <= MANY_CLASSES:
        print("\nconfusion matrix (row: true, column: predicted)")
        width = max(map(len, classes))
        for name, row in zip(classes, counts):
            print(f"{name:>{width}}  " + " ".join(f"{count:5d}" for count in row))
        return
    off_diagonal = counts - np.diag(counts.diagonal())
    print("\nmost frequent confusions (the whole matrix is in the report and the picture)")
    for place in np.argsort(-off_diagonal, axis=None, kind="stable")[:10]:
        true, predicted = np.unravel_index(place, counts.shape)
        if not off_diagonal[true, predicted]:
            break
        print(f"{counts[true, predicted]:5d}  {classes[true]} taken for {classes[predicted]}")
