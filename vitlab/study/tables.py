"""Numbers -> tables in markdown: of comparisons, of the faithfulness of attention maps, of settings. No torch."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import PurePosixPath

from vitlab.config import SETTINGS
from vitlab.settings import Setting
from vitlab.study.rows import Difference, ResultRow, Spread


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table of rows of cells; the first row holds the column titles."""
    titles, *others = rows
    lines = [titles, ["---"] * len(titles), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def portable_command(line: str) -> str:
    """A command line without the flags that belong to one machine."""
    return re.sub(r" --(data_path|output_path|model_path|resume|save_every_n_steps) \S+", "", line)


def duration(seconds: float) -> str:
    """Seconds, or minutes from two on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def percent(share: float, digits: int = 1) -> str:
    """A share of 0..1 in percent, without the sign."""
    return f"{100 * share:.{digits}f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def p_value(p: float) -> str:
    """The p-value of McNemar's test."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_spread(spread: Spread | None) -> str:
    """Shares in percent: the mean, and the standard deviation of several."""
    if spread is None:
        return ""
    return percent(spread.mean) + (f" ± {percent(spread.sd)}" if spread.sd is not None else "")


def format_difference(vs: Difference, *more: str) -> str:
    """A difference in points, with its interval and `more` in parentheses."""
    low, high = map(points, vs.ci95)
    return f"{points(vs.difference)} ({'; '.join([f'{low} to {high}', *more])})"


def comparison_table(rows: list[ResultRow], brief: bool = False) -> str:
    """A comparison as markdown, without empty columns; epochs only if they differ. Brief: without ensembles and
    cross-validations, and if the test images were read with test accuracy as the only measure."""
    if brief:
        rows = [row for row in rows if row.kind == "seeds"]
    cells = [comparison_cells(row, brief) for row in rows]
    columns = {title: [row[title] for row in cells] for title in cells[0]}
    if len({row.epochs for row in rows}) == 1:
        del columns["epochs"]
    filled = {title: column for title, column in columns.items() if any(column)}
    return markdown([tuple(filled), *zip(*filled.values())])


def comparison_cells(row: ResultRow, brief: bool) -> dict[str, str]:
    """One row of comparison_table: column title -> cell."""
    test = row.test
    measures = not (test and brief)
    interval = f" ({percent(row.ci95[0])} to {percent(row.ci95[1])})" if row.ci95 else ""
    return {
        "row": str(row.number),
        "model": row.title,
        "parameters": f"{row.parameters / 1e6:.2f} M",
        "MFLOPs": f"{row.flops / 1e6:.1f}",
        "epochs": str(row.epochs),
        "learning rate": f"{row.learning_rate:g}",
        "best val, %": (format_spread(row.best_val) + interval * (row.split == "val")) * measures,
        "final train, %": format_spread(row.final_train) * measures,
        "test, %": format_spread(test and test["accuracy"]) + interval * (row.split == "test"),
        "loss": f"{test['loss'].mean:.3f}" if test and measures else "",
        "F1, weighted": f"{test['f1_weighted'].mean:.3f}" if test and measures else "",
        "difference, points": f"{format_difference(row.vs, p_value(row.vs.mcnemar_p))} to row {row.vs.row}"
        if row.vs
        else "",
        "images/s": f"{row.images_per_second:.0f}" if row.images_per_second else "",
        "time": duration(row.seconds),
    }


def comparison_note(rows: list[ResultRow]) -> str:
    """What the columns of comparison_table are."""
    tested = any(row.split == "test" for row in rows)
    note = (
        "Test: with the weights of the best epoch on validation, where there is a validation split, else of the last."
        if tested
        else "The test images were not read; validation: the best epoch, chosen and judged by the same images."
    )
    note += " In parentheses 95 % intervals, of a single training over the images"
    if any(len(row.cells) > 1 for row in rows):
        note += (
            ", of several over images and seeds by the bootstrap, too narrow for two or three seeds that differ by "
            "more than a point; ± standard deviations over the trainings"
        )
    seeds = [row.vs.seeds for row in rows if row.vs]
    if seeds:
        note += "; p by McNemar's test" + ", the largest of the seeds" * (max(seeds) > 1)
    if any(row.kind == "folds" for row in rows):
        note += "; folds: the best epoch on the part that was held out"
    return textwrap.fill(
        f"{note}. Final train: running accuracy of the last epoch, on augmented images.", 118, break_on_hyphens=False
    )


def study_summary(contents: dict, file: str) -> str:
    """A comparison in short: protocol, brief table, and where the rest is. `contents` is its
    final_results.json, `file` the path of that."""
    page = f"{PurePosixPath(file).parent}/RESULTS.md"
    rows = [ResultRow.from_dict(row) for row in contents["rows"]]
    return (
        f"{contents['protocol']}. By `python {portable_command(contents['command'])}`; every measure and what the "
        f"rows say: [`{page}`]({page}).\n\n{comparison_table(rows, brief=True)}"
    )


def faithfulness_table(report: dict) -> str:
    """The report of visualize.py faithfulness as markdown: areas, and differences to random orders."""
    kinds = ("mean_deletion", "mean_insertion", "blur_deletion", "blur_insertion")
    rows = [("map", "deletion, mean", "insertion, mean", "deletion, blur", "insertion, blur")]
    for row in report["rows"]:
        rows.append([row["map"], *(area_cell(row[kind], lower=kind.endswith("deletion")) for kind in kinds)])
    return markdown(rows)


def area_cell(curve: dict, *, lower: bool) -> str:
    """An area with its difference to random orders; in bold if that is significantly better (`lower`: below 0)."""
    text = f"{curve['area']:.3f}"
    if "ci95" not in curve:
        return text
    low, high = curve["ci95"]
    text += f" ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if (high < 0 if lower else low > 0) else text


def settings_table(names: list[str]) -> str:
    """Settings of TrainConfig as markdown: every spelling of the flag, default, help."""
    return markdown([("flag", "default", "meaning"), *(setting_cells(SETTINGS[name]) for name in names)])


def setting_cells(setting: Setting) -> tuple[str, str, str]:
    """One row of settings_table. A default that depends on other settings is told in the help: "(default: all)"."""
    spellings = [*setting.spellings, *([f"--no-{setting.name}"] if setting.default is True else [])]
    default, meaning = format_default(setting.default), setting.help
    if told := re.search(r" ?\(default: (.*?)\)", meaning):
        default, meaning = told[1], meaning.replace(told[0], "")
    meaning = re.sub(r"--\w+", r"`\g<0>`", meaning)
    if setting.choices:
        meaning = f"{', '.join(f'`{choice}`' for choice in setting.choices)}: {meaning}"
    return ", ".join(f"`{spelling}`" for spelling in spellings), default, meaning


def format_default(value: object) -> str:
    """A default as one types it: 5e-4, 512 256, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
    return "" if value is None else str(value)
