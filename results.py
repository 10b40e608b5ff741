"""The tables in README.md and docs/, from what the runs left behind.

    python results.py                          # every table of README.md and docs/*.md again, with the rows it has
    python results.py output/A output/B        # rows for these runs in output/results.md, which is made if need be
    python results.py output/A --file x.md     # the same in another file

A table of runs stands between <!-- made by results.py --> and <!-- end -->. Each row is made from
output/NAME/report.json, metrics.csv and config.yaml. If model/NAME/best.pt exists, its size and checksum follow below
the table. Tables of settings, faithfulness and comparisons are made again from what their marks name.
"""

import csv
import hashlib
import json
import os
import re
from pathlib import Path

import yaml

from vitlab.catalog import TITLES
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import GROUPS, SETTINGS, in_groups
from vitlab.files import write_text
from vitlab.study import tables
from vitlab.study.tables import duration, percent, portable_command

START, END = "<!-- made by results.py -->", "<!-- end -->"


def command_of(name: str, report: dict) -> str:
    """What to type: the run's config if it was made with that, else its command."""
    config = f"configs/{name}.yaml"
    return f"[`{config}`]({config})" if config in report["command"] else f"`{portable_command(report['command'])}`"


def result_cells(folder: Path) -> dict[str, str]:
    """One row of the table, of a run's folder: column title -> cell."""
    try:
        report = json.loads((folder / "report.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        history = list(csv.DictReader((folder / "metrics.csv").open()))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder} holds no finished run ({error}); name folders that train.py wrote") from None
    test = report["test"]
    if test is None:
        raise UserError(f"{folder} has no test result: it was trained with --no_test, or without test images")
    low, high = test["ci95"]
    model = config.get("model", "vit")
    stem = {"linear": "patches", "conv": "conv stem", "whitened": "whitened conv stem"}[config["stem"]]
    vit = f"{stem}, {config['depth']} blocks {config['embed_dim']} wide, {config['pool']}"
    return {
        "run in `output/`": f"`{folder.name}`",
        "model": vit if model == "vit" else TITLES[model],
        "config or command": command_of(folder.name, report),
        "parameters": f"{report['parameters'] / 1e6:.2f} M",
        "epochs": str(len(history)),
        "seed": str(report["seed"]),
        "test accuracy": f"{percent(test['accuracy'], 2)} %",
        "95 % interval": f"{percent(low)} to {percent(high)}",
        "loss": f"{test['loss']:.3f}",
        "calibration error": f"{percent(test['calibration_error'])} %" if "calibration_error" in test else "",
        "train PFLOP": f"{report['train_pflop']:.3g}" if report["train_pflop"] is not None else "",
        "hardware": report["hardware"],
        "images/s": f"{report['images_per_second']:.0f}",
        "time": duration(report["seconds"]),
    }


def weights_cells(file: Path) -> tuple[str, str, str]:
    """Path, size and checksum of a weights file."""
    contents = file.read_bytes()
    return f"`{file.as_posix()}`", f"{len(contents) / 1e6:.1f} MB", f"`{hashlib.sha256(contents).hexdigest()}`"


def results_tables(folders: list[Path], models: Path = Path("model")) -> str:
    """The table of the runs in these folders, and one of those of their best.pt that are in `models`."""
    rows = [result_cells(folder) for folder in folders]
    text = tables.markdown([tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    files = [file for folder in folders if (file := models / folder.name / "best.pt").exists()]
    return text + ("\n" + tables.markdown([("weights", "size", "sha256"), *map(weights_cells, files)]) if files else "")


def make_faithfulness(file: str) -> str:
    """The table of a report of visualize.py faithfulness."""
    return tables.faithfulness_table(read_json(file, "visualize.py faithfulness"))


def make_comparison(file: str) -> str:
    """A study of compare.py in short."""
    return tables.study_summary(read_json(file, "compare.py"), file)


def make_settings(chosen: str) -> str:
    """The table of some of TrainConfig's settings: groups, or settings by name."""
    names = []
    for name in chosen.split():
        if name not in (*GROUPS, *SETTINGS):
            raise UserError(
                f"settings: {name} is no group of settings and no setting; the groups are {', '.join(GROUPS)}"
            )
        names += in_groups(name) if name in GROUPS else [name]
    return tables.settings_table(names)


MADE = {"faithfulness": make_faithfulness, "comparison": make_comparison, "settings": make_settings}


def read_json(file: str, script: str) -> dict:
    """The contents of a JSON file; UserError, naming the script that writes it, if it cannot be read."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); make it with {script}") from None


def refill_tables(text: str, page: Path = Path("README.md")) -> str:
    """The text with everything made anew that stands between a mark and its end:

    <!-- faithfulness: FILE --> ... <!-- /faithfulness -->
    <!-- comparison: FILE --> ... <!-- /comparison -->
    <!-- settings: GROUP-OR-NAME [GROUP-OR-NAME ...] --> ... <!-- /settings -->

    `page` is the file that the text is of: links are relative to its folder.
    """

    def refill(mark: re.Match) -> str:
        table = relative_links(MADE[mark["kind"]](mark["source"]), page)
        return f"{mark['start']}\n\n{table.strip()}\n\n{mark['end']}"

    kinds = "|".join(MADE)
    marks = rf"(?P<start><!-- (?P<kind>{kinds}): (?P<source>[^\n>]+?) -->).*?(?P<end><!-- /(?P=kind) -->)"
    return re.sub(marks, refill, text, flags=re.S)


def relative_links(text: str, page: Path) -> str:
    """The text with links from the top of the repository turned into links from the page's folder."""
    top = Path(os.path.relpath(".", page.parent)).as_posix()
    return text if top == "." else re.sub(r"\]\((?=\w)", f"]({top}/", text)


def split_at_marks(file: Path) -> tuple[str, str, str]:
    """(what comes before the tables, the tables, what comes after)."""
    try:
        text = file.read_text(encoding="utf-8")
        before, rest = text.split(START)
        inside, after = rest.split(END)
    except (OSError, ValueError) as error:
        raise UserError(f"--file {file}: it needs one {START} and then one {END} ({error})") from None
    return before + START + "\n\n", inside.strip("\n") + "\n", "\n" + END + after


def update(page: Path, folders: list[Path]) -> None:
    """Make the tables of a page again; `folders` are added to the rows of its table of runs. A page that is not there
    is made for them."""
    if folders and not page.exists():
        write_text(page, f"# Results\n\n{START}\n{END}\n")
    if not folders and page.is_file() and START not in page.read_text(encoding="utf-8"):
        before, made, after = "", "", page.read_text(encoding="utf-8")
    else:
        before, inside, after = split_at_marks(page)
        names = re.findall(r"^\| `([^`/|]+)` \|", inside, flags=re.M)
        named = {folder.resolve().name: folder for folder in folders}
        beside = {name: page.parent / name for name in names if (page.parent / name / "report.json").is_file()}
        folders = list(({name: Path("output") / name for name in names} | beside | named).values())
        if not folders:
            raise UserError(f"{page} has no rows yet; name run folders: python results.py output/NAME ...")
        made = relative_links(results_tables(folders), page)
    write_text(page, refill_tables(before + made + after, page))
    print(made + str(page))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="run folders, to add to the file's table of runs")
    parser.add_argument(
        "--file",
        type=Path,
        help="the page to write (default: results.md beside the first run; without runs README.md and docs/*.md)",
    )
    args = parser.parse_args()
    if args.file:
        pages = [args.file]
    elif args.folders:
        pages = [args.folders[0].parent / "results.md"]
    else:
        pages = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    for page in pages:
        update(page, args.folders)


if __name__ == "__main__":
    run_cli(main)
