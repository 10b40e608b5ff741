"""Numbers in, numbers out: accuracy with its interval, F1, confusion.

Labels and predictions are int64 arrays of n class indices; every share is in 0..1.
"""

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


def wilson_interval(correct, n):
    """The 95 % Wilson score interval [low, high] of `correct` successes in n (Wilson, 1927)."""
    interval = binomtest(int(correct), int(n)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def summary(labels, predictions, loss):
    """One split's result, as reports hold it: accuracy, ci95, loss, f1_macro, f1_weighted, n.
    Macro F1 is over the classes that occur."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    correct, n = int((labels == predictions).sum()), len(labels)
    f1 = {
        average: float(precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)[2])
        for average in ("macro", "weighted")
    }
    return {
        "accuracy": correct / n,
        "ci95": wilson_interval(correct, n),
        "loss": float(loss),
        "f1_macro": f1["macro"],
        "f1_weighted": f1["weighted"],
        "n": n,
    }


def running(accuracy, loss, n):
    """A result of which only running averages are known, as of the training images: of weights that
    changed meanwhile, and so without an interval."""
    return {"accuracy": accuracy, "ci95": None, "loss": loss, "f1_macro": None, "f1_weighted": None, "n": n}


def per_class(labels, predictions, classes):
    """A dict for each class: name, precision, recall, f1, n (images of that class)."""
    columns = precision_recall_fscore_support(labels, predictions, labels=range(len(classes)), zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for name, p, r, f, n in zip(classes, *columns)
    ]


def confusion(labels, predictions, num_classes):
    """C x C counts: row the true class, column the predicted one."""
    return confusion_matrix(labels, predictions, labels=range(num_classes))


def bootstrap_mean(values, *, resamples=10_000, seed=0):
    """The 95 % percentile interval [low, high] of the mean of n values, by resampling them (Efron,
    1979). Of paired differences it is the paired bootstrap."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975]).tolist()


def bootstrap_crossed(values, *, resamples=10_000, seed=0):
    """The 95 % percentile interval [low, high] of the mean of values seeds x images, by resampling both
    the seeds and the images (the pigeonhole bootstrap: Owen, 2007). Of paired differences it is the
    paired bootstrap."""
    values = np.asarray(values, dtype=np.float64)
    seeds, images = values.shape
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(images, size=images)].mean()
        for _ in range(resamples)
    ]
    return np.quantile(means, [0.025, 0.975]).tolist()


def bootstrap_nested(values, *, resamples=10_000, seed=0):
    """bootstrap_crossed of seeds that have other images each: of each seed that is drawn its own images are."""
    values = np.asarray(values, dtype=np.float64)
    seeds, images = values.shape
    rng = np.random.default_rng(seed)
    means = [
        np.mean([values[i, rng.integers(images, size=images)].mean() for i in rng.integers(seeds, size=seeds)])
        for _ in range(resamples)
    ]
    return np.quantile(means, [0.025, 0.975]).tolist()


def mcnemar(first, second):
    """The exact two-sided p-value of McNemar's test (1947) that two models err equally often, of whether
    each got each of the same n images right."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
