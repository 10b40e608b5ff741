"""The rows of a comparison's table, as final_results.json keeps them. No torch: results.py reads them too."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass
class Spread:
    """A number of several trainings: its mean, the sample's standard deviation (None of a single value)."""

    mean: float
    sd: float | None
    values: list[float]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """The spread of those values that are not None; None if there are none."""
        values = [value for value in values if value is not None]
        if not values:
            return None
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), sd, values)


@dataclass
class Difference:
    """The accuracy of a row minus that of its baseline, over the seeds that both have."""

    row: int  # the baseline's number
    title: str  # the baseline's title
    seeds: int  # how many
    difference: float
    ci95: list[float]
    mcnemar_p: float  # the largest of the seeds


@dataclass(kw_only=True)
class ResultRow:
    """One row of the table. `kind` is "seeds", "ensemble" (of the seeds) or "folds"; shares are in 0..1."""

    title: str
    row: str  # the title of the study's row, without notes
    kind: str
    model: str
    train_size: int | None  # None: all training images
    patch_size: int | None  # None unless the study varies it
    cells: list[str]  # names
    epochs: int
    learning_rate: float
    parameters: int
    flops: int
    images_per_second: float | None
    seconds: float
    hardware: str
    best_val: Spread | None  # accuracy of the best epoch on validation
    final_train: Spread | None  # running training accuracy of the last epoch
    test: dict[str, Spread] | None  # accuracy, loss and f1_weighted; None if the test images were not read
    split: str | None  # which images `accuracy` is of: "test" or "val"
    accuracy: Spread | None
    ci95: list[float] | None
    vs: Difference | None = None
    number: int = 0  # from 1, in the order of the table

    @classmethod
    def from_dict(cls, raw: dict) -> "ResultRow":
        """The row that dataclasses.asdict made `raw` of, as in final_results.json."""
        spreads = {name: raw[name] and Spread(**raw[name]) for name in ("best_val", "final_train", "accuracy")}
        test = raw["test"] and {name: Spread(**spread) for name, spread in raw["test"].items()}
        return cls(**{**raw, **spreads, "test": test, "vs": raw["vs"] and Difference(**raw["vs"])})


def with_most_images(rows: list[ResultRow]) -> list[ResultRow]:
    """Those rows that have the most training images."""
    sizes = [row.train_size or math.inf for row in rows]
    return [row for row, size in zip(rows, sizes) if size == max(sizes)]
