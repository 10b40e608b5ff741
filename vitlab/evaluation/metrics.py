"""Numbers in, numbers out: accuracy with its interval, F1, confusion.

Labels and predictions are int64 arrays of n class indices; shares are in 0..1.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


def wilson_interval(correct: int, n: int) -> list[float]:
    """The 95 % Wilson score interval [low, high] of `correct` successes in n (Wilson, 1927)."""
    interval = binomtest(int(correct), int(n)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def summary(labels: ArrayLike, probabilities: ArrayLike, loss: float) -> dict:
    """The result on one split, as in reports: accuracy, ci95, loss, calibration_error, f1_macro, f1_weighted, n.

    labels n, probabilities n x C, loss: the mean cross-entropy. Macro F1 is the mean over the classes of the labels.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    predictions, n = probabilities.argmax(-1), len(labels)
    right = labels == predictions
    scores = functools.partial(precision_recall_fscore_support, labels, predictions, zero_division=0)
    f1 = {average: float(scores(labels=np.unique(labels), average=average)[2]) for average in ("macro", "weighted")}
    return {
        "accuracy": int(right.sum()) / n,
        "ci95": wilson_interval(int(right.sum()), n),
        "loss": float(loss),
        "calibration_error": calibration_error(right, probabilities.max(-1)),
        "f1_macro": f1["macro"],
        "f1_weighted": f1["weighted"],
        "n": n,
    }


def calibration_error(right: ArrayLike, confidence: ArrayLike, *, bins: int = 15) -> float:
    """The expected calibration error: how far confidence is from accuracy, 0..1, on average over the images in bins
    of equal width (Guo et al., arXiv:1706.04599, equation 3).

    right: n, whether the likeliest class is the true one. confidence: n, its probability.
    """
    place = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    excess = np.bincount(place, weights=np.asarray(confidence) - np.asarray(right))  # summed over each bin's images
    return float(np.abs(excess).sum() / len(place))


def running(accuracy: float, loss: float, n: int) -> dict:
    """The result on the training images, from running averages over the epoch that best.pt is of. The weights changed
    meanwhile, so there is no more than that."""
    unknown = dict.fromkeys(("ci95", "calibration_error", "f1_macro", "f1_weighted"))
    return {"accuracy": accuracy, "loss": loss, **unknown, "n": n}


def per_class(labels: ArrayLike, predictions: ArrayLike, classes: Sequence[str]) -> list[dict]:
    """One dict for each class: class (its name), precision, recall, f1, n (images of that class)."""
    columns = precision_recall_fscore_support(labels, predictions, labels=range(len(classes)), zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for name, p, r, f, n in zip(classes, *columns)
    ]


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """The confusion matrix, C x C counts: true class by row, predicted class by column."""
    return confusion_matrix(labels, predictions, labels=range(num_classes))


def bootstrap_mean(values: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> list[float]:
    """The 95 % percentile interval [low, high] of the mean of n values, by resampling them (Efron,
    1979). For paired differences this is the paired bootstrap.

    scipy.stats.bootstrap draws the same resamples, but rounds the last bit of a mean differently."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // len(values))  # resamples at once
    sizes = [min(block, resamples - first) for first in range(0, resamples, block)]
    means = np.concatenate([values[rng.integers(len(values), size=(n, len(values)))].mean(axis=1) for n in sizes])
    return np.quantile(means, [0.025, 0.975]).tolist()


def bootstrap_seeds(values: ArrayLike, *, images_differ: bool, resamples: int = 10_000, seed: int = 0) -> list[float]:
    """The 95 % percentile interval [low, high] of the mean of values S x n (seeds x images), by
    resampling both the seeds and the images. For paired differences this is the paired bootstrap.

    If every seed was judged by the same images, one draw of images serves all seeds (the pigeonhole
    bootstrap: Owen, 2007). If the images differ from seed to seed, each seed drawn gets its own draw.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, images = values.shape
    rng = np.random.default_rng(seed)

    def resampled_mean() -> float:
        drawn = values[rng.integers(seeds, size=seeds)]
        if images_differ:
            return np.mean([row[rng.integers(images, size=images)].mean() for row in drawn])
        return drawn.mean(0)[rng.integers(images, size=images)].mean()

    return np.quantile([resampled_mean() for _ in range(resamples)], [0.025, 0.975]).tolist()


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """The exact two-sided p-value of McNemar's test (1947) that two models err equally often. `first` and
    `second` say for each of the same n images whether that model got it right."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
