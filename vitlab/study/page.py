"""RESULTS.md: protocol, table, and what the rows say in sentences that name them. No torch."""

from collections.abc import Sequence

from vitlab.study.rows import Difference, ResultRow, with_most_images
from vitlab.study.tables import (
    comparison_note,
    comparison_table,
    format_difference,
    p_value,
    percent,
    points,
    portable_command,
)


def results_page(
    name: str, protocol: str, command: str, rows: list[ResultRow], failed: Sequence[tuple[str, str]] = ()
) -> str:
    """The contents of a study's RESULTS.md. `protocol` is findings.protocol, `command` the command line that
    made the study, `failed` holds (cell, error)."""
    parts = [
        f"# {name}",
        f"{protocol}. Made by `python {portable_command(command)}`.",
        comparison_table(rows) + "\n" + comparison_note(rows),
        "\n".join(f"- {sentence}" for sentence in takeaways(rows)),
        "\n".join(f"- Failed, and not in the table: {cell} ({error})" for cell, error in failed),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def takeaways(rows: list[ResultRow]) -> list[str]:
    """What the rows of a comparison say, in sentences that name their rows."""
    plain = [row for row in rows if row.kind == "seeds" and row.accuracy]
    if not plain:
        return []
    full = with_most_images(plain)
    measure = "test accuracy" if plain[0].split == "test" else "validation accuracy"
    of_one = " of a single model" if any(row.kind == "ensemble" for row in rows) else ""
    return [
        highest(full, measure + of_one),
        *(versus_baseline(row) for row in full if row.vs),
        *by_train_size(plain, measure),
        *by_patch_size(full),
        *largest_gap(full, measure),
        *ensemble_gains(rows, full),
    ]


def accuracy(row: ResultRow) -> float:
    """The mean accuracy of a row."""
    return row.accuracy.mean


def highest(rows: list[ResultRow], measure: str) -> str:
    """Which row has the highest accuracy."""
    best = max(rows, key=accuracy)
    return f"Highest {measure}: {best.title}, {percent(accuracy(best))} % (row {best.number})."


def versus_baseline(row: ResultRow) -> str:
    """How a row differs from its baseline, and whether that is significant."""
    vs = row.vs
    way = "more" if vs.difference > 0 else "less"
    low, high = map(points, vs.ci95)
    return (
        f"{row.title} gets {percent(abs(vs.difference))} points {way} than {vs.title} "
        f"({low} to {high}; rows {row.number} and {vs.row}): {verdict(vs)}."
    )


def verdict(vs: Difference) -> str:
    """Whether a difference is significant: whether its interval leaves out 0."""
    low, high = vs.ci95
    if low <= 0 <= high:
        return "not significant with these seeds and images"
    return f"McNemar's {p_value(vs.mcnemar_p)}{', the largest of the seeds' * (vs.seeds > 1)}"


def by_train_size(rows: list[ResultRow], measure: str) -> list[str]:
    """For each series of rows that differ in the number of training images: from the fewest to the most."""
    sized = [row for row in rows if row.train_size]
    sizes = sorted({row.train_size for row in sized})
    series = {}
    for row in sized:
        series.setdefault(row.row.replace(f", {row.train_size:,} images", "", 1), {})[row.train_size] = row
    sentences = []
    for name, by_size in series.items():
        if len(sizes) < 2 or not {sizes[0], sizes[-1]} <= set(by_size):
            continue
        few, many = by_size[sizes[0]], by_size[sizes[-1]]
        text = (
            f"{name}: from {sizes[0]:,} to {sizes[-1]:,} training images the {measure} goes from "
            f"{percent(accuracy(few))} to {percent(accuracy(many))} %"
        )
        if few.vs and many.vs:
            text += (
                f", and the difference to {many.vs.title.split(',')[0]} from {format_difference(few.vs)} to "
                f"{format_difference(many.vs)} points"
            )
        sentences.append(f"{text} (rows {few.number} and {many.number}).")
    return sentences


def by_patch_size(rows: list[ResultRow]) -> list[str]:
    """Accuracy and cost by patch size, if it varies."""
    rows = sorted((row for row in rows if row.patch_size), key=lambda row: row.patch_size)
    if len({row.patch_size for row in rows}) < 2:
        return []
    parts = (
        f"{row.patch_size} pixels {percent(accuracy(row))} % at {row.flops / 1e6:.0f} MFLOPs (row {row.number})"
        for row in rows
    )
    return [f"By patch size: {', '.join(parts)}."]


def largest_gap(rows: list[ResultRow], measure: str) -> list[str]:
    """Which row overfits most, if one does."""

    def gap(row: ResultRow) -> float:
        return row.final_train.mean - accuracy(row)

    row = max(rows, key=gap)
    if gap(row) <= 0:
        return []
    return [
        f"The largest gap between the last epoch's training accuracy and the {measure} is "
        f"{percent(gap(row))} points: {row.title} (row {row.number})."
    ]


def ensemble_gains(rows: list[ResultRow], members: list[ResultRow]) -> list[str]:
    """What ensembles of the seeds add to the mean of their members."""
    gains = []
    for ensemble in (row for row in rows if row.kind == "ensemble"):
        single = next((row for row in members if row.cells == ensemble.cells), None)
        if single:
            gain = points(accuracy(ensemble) - accuracy(single))
            gains.append(f"{single.title} {gain} (rows {ensemble.number} and {single.number})")
    return [f"Ensembles of the seeds, in points over the mean of their members: {', '.join(gains)}."] if gains else []
