"""Numbers -> tables in markdown."""

import re


def markdown(rows):
    """Rows of cells, the first the heads."""
    heads, *others = rows
    lines = [heads, ["---"] * len(heads), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def faithfulness(report):
    """visualize.py faithfulness's report as markdown: areas, and differences to random orders."""
    kinds = ("mean_deletion", "mean_insertion", "blur_deletion", "blur_insertion")
    lines = [("map", "deletion, mean", "insertion, mean", "deletion, blur", "insertion, blur")]
    for row in report["rows"]:
        cells = [row["map"]]
        for kind in kinds:
            cell = row[kind]
            words = f"{cell['area']:.3f}"
            if "ci95" in cell:
                low, high = cell["ci95"]
                words += f" ({low:+.3f} to {high:+.3f})"
                better = high < 0 if kind.endswith("deletion") else low > 0
                words = f"**{words}**" if better else words
            cells.append(words)
        lines.append(cells)
    return markdown(lines)


def command(line):
    """A command line without what is of one machine alone."""
    return re.sub(r" --(data_path|output_path|model_path|folder_name|resume|save_every_n_steps) \S+", "", line)


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def points(share):
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def spread(found):
    """A study.spread in percent: the mean, with the standard deviation of several."""
    if found is None:
        return ""
    words = f"{100 * found['mean']:.1f}"
    return words + (f" ± {100 * found['sd']:.1f}" if found["sd"] is not None else "")


COMPARISON_NOTE = """\
Test: with the weights of the best epoch on validation, where there is a validation split, else of the last. Means ±
standard deviations over the seeds; in parentheses 95 % intervals, over images and seeds by the bootstrap, of a single
training over the images alone. Final train: running accuracy of the last epoch, on augmented images."""


def comparison(lines):
    """study.summarise's rows as markdown, without columns that are empty."""
    rows = [
        ("row", "model", "parameters", "MFLOPs", "learning rate", "best val, %", "final train, %", "test, %", "loss",
         "F1, weighted", "difference, points", "images/s", "time"),
    ]  # fmt: skip
    for found in lines:
        test, vs = found["test"], found["vs"]
        accuracy = spread(test and test["accuracy"])
        if found["ci95"]:
            low, high = found["ci95"]
            accuracy += f" ({100 * low:.1f} to {100 * high:.1f})"
        rows.append(
            (
                str(found["number"]),
                found["title"],
                f"{found['parameters'] / 1e6:.2f} M",
                f"{found['flops'] / 1e6:.1f}",
                f"{found['learning_rate']:g}",
                spread(found["best_val"]),
                spread(found["final_train"]),
                accuracy,
                f"{test['loss']['mean']:.3f}" if test else "",
                f"{test['f1_weighted']['mean']:.3f}" if test else "",
                f"{points(vs['difference'])} ({points(vs['ci95'][0])} to {points(vs['ci95'][1])}) to row {vs['row']}"
                if vs
                else "",
                f"{found['images_per_second']:.0f}" if found["images_per_second"] else "",
                duration(found["seconds"]),
            )
        )
    filled = [column for column in zip(*rows) if any(column[1:])]
    return markdown(list(zip(*filled)))


def takeaways(lines):
    """What the rows of a comparison say, in sentences that name their rows."""
    plain = [found for found in lines if found["kind"] == "seeds" and found["test"]]
    said = []
    if not plain:
        return said

    def accuracy(found):
        return found["test"]["accuracy"]["mean"]

    def verdict(vs):
        low, high = vs["ci95"]
        if low <= 0 <= high:
            return "with these seeds and images not to be told from none"
        each = " in each seed" if vs["seeds"] > 1 else ""
        if vs["mcnemar_p"] < 0.001:
            return f"McNemar's p is below 0.001{each}"
        return f"McNemar's p is {'up to ' * bool(each)}{vs['mcnemar_p']:.3f}"

    most = max((found["train_size"] or 0) for found in plain)
    full = [found for found in plain if (found["train_size"] or 0) == most]
    best = max(full, key=accuracy)
    said.append(f"Highest test accuracy: {best['title']}, {100 * accuracy(best):.1f} % (row {best['number']}).")
    for found in full:
        if found["vs"]:
            vs = found["vs"]
            way = "more" if vs["difference"] > 0 else "less"
            said.append(
                f"{found['title']} gets {abs(100 * vs['difference']):.1f} points {way} than {vs['title']} "
                f"({points(vs['ci95'][0])} to {points(vs['ci95'][1])}; rows {found['number']} and {vs['row']}): "
                f"{verdict(vs)}."
            )

    sizes = sorted({found["train_size"] for found in plain if found["train_size"]})
    if len(sizes) > 1:
        series = {}
        for found in plain:
            if found["train_size"]:
                name = found["title"].replace(f", {found['train_size']:,} images", "", 1)
                series.setdefault(name, {})[found["train_size"]] = found
        for name, by_size in series.items():
            few, many = by_size.get(sizes[0]), by_size.get(sizes[-1])
            if few is None or many is None:
                continue
            words = (
                f"{name}: from {sizes[0]:,} to {sizes[-1]:,} training images the test accuracy goes from "
                f"{100 * accuracy(few):.1f} to {100 * accuracy(many):.1f} %"
            )
            if few["vs"] and many["vs"]:
                words += (
                    f", and the difference to {many['vs']['title'].split(',')[0]} from "
                    f"{points(few['vs']['difference'])} to {points(many['vs']['difference'])} points"
                )
            said.append(f"{words} (rows {few['number']} and {many['number']}).")

    patches = [found for found in full if found["patch_size"]]
    if len({found["patch_size"] for found in patches}) > 1:
        order = sorted(patches, key=lambda found: found["patch_size"])
        words = ", ".join(
            f"{found['patch_size']} pixels {100 * accuracy(found):.1f} % at {found['flops'] / 1e6:.0f} MFLOPs "
            f"(row {found['number']})"
            for found in order
        )
        said.append(f"By patch size: {words}.")

    gap = max(full, key=lambda found: found["final_train"]["mean"] - accuracy(found))
    if gap["final_train"]["mean"] > accuracy(gap):
        said.append(
            f"The largest gap between the last epoch's training accuracy and the test is "
            f"{100 * (gap['final_train']['mean'] - accuracy(gap)):.1f} points: {gap['title']} (row {gap['number']})."
        )
    gains = []
    for found in lines:
        if found["kind"] == "ensemble" and (found["train_size"] or 0) == most:
            single = next(other for other in full if other["cells"] == found["cells"])
            gain = points(accuracy(found) - accuracy(single))
            gains.append(f"{single['title']} {gain} (rows {found['number']} and {single['number']})")
    if gains:
        said.append(f"Ensembles of the seeds, in points over the mean of their members: {', '.join(gains)}.")
    return said
