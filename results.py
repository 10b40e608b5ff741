"""The table of results, from what the runs left behind.

    python results.py                          # README's table anew, from the reports of the rows it has
    python results.py output/A output/B        # ... with these rows instead
    python results.py output/A --file x.md     # in another file, between the same two marks

Each row is output/NAME/report.json, metrics.csv and config.yaml; where model/NAME/best.pt is there too, its size
and checksum follow below the table. Tables of faithfulness and of comparisons are made anew from the files that their
marks name.
"""

import csv
import hashlib
import json
import re
from pathlib import Path

import yaml

from vitlab.catalog import TITLES
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import GROUPS
from vitlab.files import write_text
from vitlab.study import tables

START, END = "<!-- made by results.py -->", "<!-- end -->"
HEADS = (
    "run in `output/`", "model", "config or command", "parameters", "epochs", "seed", "test accuracy",
    "95 % interval", "loss", "hardware", "images/s", "time",
)  # fmt: skip


def percent(share, digits=2):
    return f"{100 * share:.{digits}f}"


def command_of(name, report):
    """What to type: the run's config where it was made with that, else its command."""
    config = Path("configs") / f"{name}.yaml"
    if f"configs/{name}.yaml" in report["command"]:
        return f"[`{config}`]({config})"
    return f"`{tables.command(report['command'])}`"


def row(folder):
    """The cells of one run, in the order of HEADS."""
    try:
        report = json.loads((folder / "report.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        history = list(csv.DictReader((folder / "metrics.csv").open()))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder} holds no finished run ({error}); name folders that train.py wrote") from None
    test = report["test"]
    if test is None:
        raise UserError(f"{folder} has no test result: it was trained with --no_test")
    low, high = test["ci95"]
    name = config.get("model", "vit")
    stem = {"linear": "patches", "conv": "conv stem"}[config["stem"]]
    words = f"{stem}, {config['depth']} blocks {config['embed_dim']} wide, {config['pool']}"
    return (
        f"`{folder.name}`",
        words if name == "vit" else TITLES[name],
        command_of(folder.name, report),
        f"{report['parameters'] / 1e6:.2f} M",
        str(len(history)),
        str(report["seed"]),
        f"{percent(test['accuracy'])} %",
        f"{percent(low, 1)} to {percent(high, 1)}",
        f"{test['loss']:.3f}",
        report["hardware"],
        f"{report['images_per_second']:.0f}",
        tables.duration(report["seconds"]),
    )


def weights(folder, models):
    """A line on the run's best.pt, or nothing."""
    file = models / folder.name / "best.pt"
    if not file.exists():
        return []
    contents = file.read_bytes()
    return [(f"`{file.as_posix()}`", f"{len(contents) / 1e6:.1f} MB", f"`{hashlib.sha256(contents).hexdigest()}`")]


def table(folders, models=Path("model")):
    """Both tables as markdown."""
    text = tables.markdown([HEADS, *(row(folder) for folder in folders)])
    files = [line for folder in folders for line in weights(folder, models)]
    return text + ("\n" + tables.markdown([("weights", "size", "sha256"), *files]) if files else "")


def make_faithfulness(file: str) -> str:
    """The table of a report of visualize.py faithfulness."""
    return tables.faithfulness(read_json(file, "visualize.py faithfulness"))


def make_comparison(file: str) -> str:
    """A study of compare.py in short."""
    return tables.study(read_json(file, "compare.py"), file)


def make_settings(groups: str) -> str:
    """The table of the settings in one or more of TrainConfig's groups."""
    for group in groups.split():
        if group not in GROUPS:
            raise UserError(f"settings: {group} is no group of settings; choose {', '.join(GROUPS)}")
    return tables.settings(groups.split())


MADE = {"faithfulness": make_faithfulness, "comparison": make_comparison, "settings": make_settings}


def read_json(file: str, script: str) -> dict:
    """The contents of a JSON file; UserError, naming the script that writes it, if it cannot be read."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); make it with {script}") from None


def refill_tables(text: str) -> str:
    """The text with everything made anew that stands between a mark and its end:

    <!-- faithfulness: FILE --> ... <!-- /faithfulness -->
    <!-- comparison: FILE --> ... <!-- /comparison -->
    <!-- settings: GROUP [GROUP ...] --> ... <!-- /settings -->
    """

    def refill(mark: re.Match) -> str:
        return f"{mark['start']}\n\n{MADE[mark['kind']](mark['source']).strip()}\n\n{mark['end']}"

    kinds = "|".join(MADE)
    marks = rf"(?P<start><!-- (?P<kind>{kinds}): (?P<source>[^\n>]+?) -->).*?(?P<end><!-- /(?P=kind) -->)"
    return re.sub(marks, refill, text, flags=re.S)


def split_at_marks(file: Path) -> tuple[str, str, str]:
    """(what comes before the tables, the tables, what comes after)."""
    try:
        text = file.read_text(encoding="utf-8")
        before, rest = text.split(START)
        inside, after = rest.split(END)
    except (OSError, ValueError) as error:
        raise UserError(f"--file {file}: it needs one {START} and then one {END} ({error})") from None
    return before + START + "\n\n", inside.strip("\n") + "\n", "\n" + END + after


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="run folders; without any: those of the file's table")
    parser.add_argument(
        "--file", type=Path, default=Path("README.md"), help="where the table goes (default: README.md)"
    )
    args = parser.parse_args()
    before, inside, after = split_at_marks(args.file)
    folders = args.folders or [Path("output") / name for name in re.findall(r"^\| `([\w.-]+)` \|", inside, flags=re.M)]
    if not folders:
        raise UserError(f"{args.file} has no rows yet; name run folders: python results.py output/NAME ...")
    made = table(folders)
    write_text(args.file, refill_tables(before + made + after))
    print(made + str(args.file))


if __name__ == "__main__":
    run_cli(main)
