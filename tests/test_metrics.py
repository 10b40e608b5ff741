"""metrics.py on numbers worked out by hand."""

import json

import numpy as np
import pytest
from conftest import run
from scipy.stats import binomtest

from vitlab.evaluation import metrics


def test_wilson_interval():
    # Wilson's formula with z = 1.959964 for 8 of 10
    z, p, n = 1.959964, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert metrics.wilson_interval(8, 10) == pytest.approx([middle - half, middle + half], abs=1e-6)
    low, high = metrics.wilson_interval(10, 10)
    assert 0.6 < low < 0.8 and high == 1


def test_summary_and_table_and_confusion():
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    confidence = np.array([0.9, 0.9, 0.5, 0.9, 0.5, 0.9])
    probabilities = np.full((6, 4), 0.0)
    probabilities[np.arange(6), predictions] = confidence
    probabilities[np.arange(6), 3 - np.array(predictions)] = 1 - confidence
    result = metrics.summary(labels, probabilities, 0.5)
    f1 = [2 / 3, 4 / 5, 0]
    assert result["calibration_error"] == pytest.approx((abs(4 * 0.9 - 3) + abs(2 * 0.5 - 1)) / 6)
    assert result["accuracy"] == pytest.approx(4 / 6) and result["n"] == 6 and result["loss"] == 0.5
    assert result["f1_macro"] == pytest.approx(sum(f1) / 3)
    assert result["f1_weighted"] == pytest.approx((3 * f1[0] + 2 * f1[1] + f1[2]) / 6)
    assert result["ci95"] == metrics.wilson_interval(4, 6)
    rows = metrics.per_class(labels, predictions, ["a", "b", "c", "never"])
    assert [row["f1"] for row in rows] == pytest.approx([*f1, 0])
    assert rows[1] == {"class": "b", "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "n": 2}
    assert rows[3]["n"] == 0
    assert metrics.confusion(labels, predictions, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_macro_f1_is_over_the_classes_of_the_labels():
    result = metrics.summary([0, 0, 1, 1], np.eye(3)[[0, 0, 1, 2]], 0.5)  # class 2 is predicted and never true
    assert result["f1_macro"] == pytest.approx((1 + 2 / 3) / 2)


def test_bootstrap_over_seeds_and_images_knows_both_spreads():
    rng = np.random.default_rng(0)
    seeds, images = rng.normal(0, 0.1, 8), rng.normal(0, 1, 500)
    values = seeds[:, None] + images
    low, high = metrics.bootstrap_seeds(values, images_differ=False, resamples=4000)
    spread = (seeds.var() / 8 + images.var() / 500) ** 0.5  # of a sum of two independent means
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.07)
    assert low < values.mean() < high
    flat = metrics.bootstrap_seeds(np.repeat(images[None], 8, axis=0), images_differ=False, resamples=4000)
    assert flat[1] - flat[0] < high - low


def test_bootstrap_of_seeds_with_images_of_their_own():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.1, 8)
    values = seeds[:, None] + rng.normal(0, 1, (8, 500))
    low, high = metrics.bootstrap_seeds(values, images_differ=True, resamples=4000)
    spread = (values.mean(1).var() / 8 + 1 / (8 * 500)) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.07)
    assert low < values.mean() < high


def test_with_few_seeds_the_intervals_are_too_narrow_if_seeds_differ(tmp_path):
    done = run("demos.interval_coverage", "--studies", 40, "--images", 500, "--resamples", 100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    held = json.loads((tmp_path / "output/interval_coverage.json").read_text())["held_by_standard_deviation"]
    assert held["0.3"] > 0.93 > held["3"]


def test_mcnemar():
    first = np.array([1] * 30 + [0] * 10 + [1] * 50)
    second = np.array([0] * 30 + [1] * 10 + [1] * 50)
    assert metrics.mcnemar(first, second) == pytest.approx(binomtest(10, 40).pvalue)
    assert metrics.mcnemar(first, first) == 1.0
