"""Numbers -> tables in markdown."""

import math
import re
import textwrap
from pathlib import PurePosixPath

from vitlab.config import SETTINGS
from vitlab.settings import Setting


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
    return re.sub(r" --(data_path|output_path|model_path|resume|save_every_n_steps) \S+", "", line)


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def points(share):
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def spread(found):
    """A findings.spread in percent: the mean, with the standard deviation of several."""
    if found is None:
        return ""
    words = f"{100 * found['mean']:.1f}"
    return words + (f" ± {100 * found['sd']:.1f}" if found["sd"] is not None else "")


def p_value(p):
    """McNemar's in words."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def difference(vs, *more):
    """The "vs" of a row in points, with its interval."""
    low, high = map(points, vs["ci95"])
    return f"{points(vs['difference'])} ({'; '.join([f'{low} to {high}', *more])})"


def of_most_images(lines):
    """Those of findings.summarise's rows that have the most training images."""
    sizes = [found["train_size"] or math.inf for found in lines]  # None: all there are
    return [found for found, size in zip(lines, sizes) if size == max(sizes)]


def comparison_note(lines):
    """What the columns of `comparison` are, in words."""
    tested = any(found["split"] == "test" for found in lines)
    words = (
        "Test: with the weights of the best epoch on validation, where there is a validation split, else of the last."
        if tested
        else "The test images were not read; validation: the best epoch, chosen and judged by the same images."
    )
    words += " In parentheses 95 % intervals, of a single training over the images"
    if any(len(found["cells"]) > 1 for found in lines):
        words += (
            ", of several over images and seeds by the bootstrap, which makes them too narrow where the seeds are as "
            "few as two or three; ± standard deviations over the trainings"
        )
    gaps = [found["vs"]["seeds"] for found in lines if found["vs"]]
    if gaps:
        words += "; p by McNemar's test" + ", the largest of the seeds" * (max(gaps) > 1)
    if any(found["kind"] == "folds" for found in lines):
        words += "; folds: the best epoch on the part that was held out"
    return textwrap.fill(
        f"{words}. Final train: running accuracy of the last epoch, on augmented images.", 118, break_on_hyphens=False
    )


def comparison(lines, brief=False):
    """findings.summarise's rows as markdown, without columns that are empty; epochs where they differ. Brief: without
    ensembles and cross-validation, and of the measures the test accuracy alone, where there is one."""
    rows = [
        ("row", "model", "parameters", "MFLOPs", "epochs", "learning rate", "best val, %", "final train, %", "test, %",
         "loss", "F1, weighted", "difference, points", "images/s", "time"),
    ]  # fmt: skip
    if brief:
        lines = [found for found in lines if found["kind"] == "seeds"]
    epochs_differ = len({found["epochs"] for found in lines}) > 1
    for found in lines:
        test, vs, interval = found["test"], found["vs"], ""
        full = not (test and brief)
        if found["ci95"]:
            low, high = found["ci95"]
            interval = f" ({100 * low:.1f} to {100 * high:.1f})"
        gap = ""
        if vs:
            gap = f"{difference(vs, p_value(vs['mcnemar_p']))} to row {vs['row']}"
        rows.append(
            (
                str(found["number"]),
                found["title"],
                f"{found['parameters'] / 1e6:.2f} M",
                f"{found['flops'] / 1e6:.1f}",
                str(found["epochs"]) * epochs_differ,
                f"{found['learning_rate']:g}",
                (spread(found["best_val"]) + interval * (found["split"] == "val")) * full,
                spread(found["final_train"]) * full,
                spread(test and test["accuracy"]) + interval * (found["split"] == "test"),
                f"{test['loss']['mean']:.3f}" if test and full else "",
                f"{test['f1_weighted']['mean']:.3f}" if test and full else "",
                gap,
                f"{found['images_per_second']:.0f}" if found["images_per_second"] else "",
                duration(found["seconds"]),
            )
        )
    filled = [column for column in zip(*rows) if any(column[1:])]
    return markdown(list(zip(*filled)))


def study(contents, file):
    """A study's final_results.json, which lies in `file`, in short: protocol, brief table and where the rest is."""
    rest = f"{PurePosixPath(file).parent}/RESULTS.md"
    return (
        f"{contents['protocol']}. By `python {command(contents['command'])}`; every measure and what the "
        f"rows say: [`{rest}`]({rest}).\n\n{comparison(contents['rows'], brief=True)}"
    )


def settings(names: list[str]) -> str:
    """Settings of TrainConfig as markdown: every spelling of the flag, default, help."""
    return markdown([("flag", "default", "meaning"), *(setting_cells(SETTINGS[name]) for name in names)])


def setting_cells(setting: Setting) -> tuple[str, str, str]:
    """One row of `settings`. A default that depends on other settings is told in the help: "(default: all)"."""
    spellings = [*setting.spellings, *([f"--no-{setting.name}"] if setting.default is True else [])]
    told = re.search(r" ?\(default: (.*?)\)", setting.help)
    meaning = setting.help.replace(told[0], "") if told else setting.help
    meaning = re.sub(r"--\w+", r"`\g<0>`", meaning)
    if setting.choices:
        meaning = f"{', '.join(f'`{choice}`' for choice in setting.choices)}: {meaning}"
    return ", ".join(f"`{spelling}`" for spelling in spellings), told[1] if told else default(setting.default), meaning


def default(value: object) -> str:
    """A default as one types it: 5e-4, 512 256, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
    return "" if value is None else str(value)


def takeaways(lines):
    """What the rows of a comparison say, in sentences that name their rows."""
    plain = [found for found in lines if found["kind"] == "seeds" and found["accuracy"]]
    said = []
    if not plain:
        return said
    words = "test accuracy" if plain[0]["split"] == "test" else "validation accuracy"

    def accuracy(found):
        return found["accuracy"]["mean"]

    def verdict(vs):
        low, high = vs["ci95"]
        if low <= 0 <= high:
            return "with these seeds and images not to be told from none"
        return f"McNemar's {p_value(vs['mcnemar_p'])}{', the largest of the seeds' * (vs['seeds'] > 1)}"

    full = of_most_images(plain)
    best = max(full, key=accuracy)
    said.append(f"Highest {words}: {best['title']}, {100 * accuracy(best):.1f} % (row {best['number']}).")
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
                name = found["row"].replace(f", {found['train_size']:,} images", "", 1)
                series.setdefault(name, {})[found["train_size"]] = found
        for name, by_size in series.items():
            few, many = by_size.get(sizes[0]), by_size.get(sizes[-1])
            if few is None or many is None:
                continue
            text = (
                f"{name}: from {sizes[0]:,} to {sizes[-1]:,} training images the {words} goes from "
                f"{100 * accuracy(few):.1f} to {100 * accuracy(many):.1f} %"
            )
            if few["vs"] and many["vs"]:
                text += (
                    f", and the difference to {many['vs']['title'].split(',')[0]} from {difference(few['vs'])} to "
                    f"{difference(many['vs'])} points"
                )
            said.append(f"{text} (rows {few['number']} and {many['number']}).")

    patches = [found for found in full if found["patch_size"]]
    if len({found["patch_size"] for found in patches}) > 1:
        order = sorted(patches, key=lambda found: found["patch_size"])
        text = ", ".join(
            f"{found['patch_size']} pixels {100 * accuracy(found):.1f} % at {found['flops'] / 1e6:.0f} MFLOPs "
            f"(row {found['number']})"
            for found in order
        )
        said.append(f"By patch size: {text}.")

    gap = max(full, key=lambda found: found["final_train"]["mean"] - accuracy(found))
    if gap["final_train"]["mean"] > accuracy(gap):
        said.append(
            f"The largest gap between the last epoch's training accuracy and the {words} is "
            f"{100 * (gap['final_train']['mean'] - accuracy(gap)):.1f} points: {gap['title']} (row {gap['number']})."
        )
    gains = []
    for found in lines:
        single = next((other for other in full if other["cells"] == found["cells"]), None)
        if found["kind"] == "ensemble" and single:
            gain = points(accuracy(found) - accuracy(single))
            gains.append(f"{single['title']} {gain} (rows {found['number']} and {single['number']})")
    if gains:
        said.append(f"Ensembles of the seeds, in points over the mean of their members: {', '.join(gains)}.")
    return said
