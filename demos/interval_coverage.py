"""How often compare.py's 95 % intervals hold the true difference of two models, in simulated studies.

    python -m demos.interval_coverage          # 400 studies of three seeds each: output/interval_coverage.json

An image is as hard for both models, in every seed. Both are right on 80 % of images on average; how far a seed's
difference is from zero, the true one, is drawn from a normal distribution.
"""

from pathlib import Path

import numpy as np
from scipy.stats import norm

from vitlab.cli import Parser, run_cli, whole_number
from vitlab.evaluation.metrics import bootstrap_seeds
from vitlab.files import write_json

SPREAD = 2  # of the images' difficulty, in standard deviations of what is drawn for each seed and image


def simulate_differences(points: float, seeds: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """seeds x images, each 1 where only the first model is right, -1 where only the second is, else 0.

    points: the standard deviation of the difference from seed to seed, in percentage points."""
    halves = rng.normal(0, points / 200, size=(seeds, 1)) * [[1, -1]]
    thresholds = norm.ppf(0.8 + halves) * np.hypot(1, SPREAD)
    easiness = SPREAD * rng.normal(size=images) + rng.normal(size=(2, seeds, images))
    right = thresholds.T[:, :, None] + easiness > 0
    return right[0].astype(int) - right[1]


def coverage(points: float, studies: int, seeds: int, images: int, resamples: int) -> float:
    """The share of the studies whose interval holds the true difference, zero."""
    held = 0
    for study in range(studies):
        differences = simulate_differences(points, seeds, images, np.random.default_rng(study))
        low, high = bootstrap_seeds(differences, images_differ=False, resamples=resamples)
        held += low <= 0 <= high
    return held / studies


def main():
    parser = Parser(description=__doc__)
    for name, default in dict(studies=400, seeds=3, images=10_000, resamples=1000).items():
        number = whole_number(f"--{name}", low=1)
        parser.add_argument(f"--{name}", type=number, default=default, help="default: %(default)s")
    parser.add_argument("--output_path", type=Path, default="output", metavar="DIR")
    flags = parser.parse_args()
    shares = {}
    for points in (0.3, 1, 3):
        shares[str(points)] = coverage(points, flags.studies, flags.seeds, flags.images, flags.resamples)
        print(f"standard deviation of {points} points from seed to seed: held in {shares[str(points)]:.1%}")
    about = {name: getattr(flags, name) for name in ("studies", "seeds", "images", "resamples")}
    path = flags.output_path / "interval_coverage.json"
    print(write_json(path, {**about, "held_by_standard_deviation": shares}))


if __name__ == "__main__":
    run_cli(main)
