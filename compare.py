"""Several models under one protocol, with error bars.

    python compare.py --dataset digits --epochs 10                    # ViT and CNN, three seeds each
    python compare.py --folder_name sizes --patch_sizes 4 8 --train_sizes 1000 5000 50000 --epochs 12 --min_steps 1000
    python compare.py --folder_name widths --models vit --grid embed_dim=64,128 --grid dropout=0,0.1 --no_test
    python compare.py --config configs/compare-cpu.yaml               # a whole study, for two CPU cores

All rows share data order, augmentation, schedule and epochs (--min_steps: more of few images); each model gets the
best of --learning_rates on validation, or --learning_rate. Any other flag of train.py goes to every row that has
such a setting. What is finished is not run again: the same command goes on. Writes output/NAME/ (RESULTS.md,
final_results.json, figures) and model/NAME/ (each training's best weights).
"""

import argparse
import sys

from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import add_flags, in_groups
from vitlab.evaluation.report import command_line
from vitlab.files import replacing
from vitlab.settings import read_yaml
from vitlab.study import figures, findings, running, tables
from vitlab.study.design import NOT_SHARED, Study
from vitlab.training.stopping import Stopped


def parse_args():
    parser = Parser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from, these flags' too")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="(default: vit simple_cnn)")
    parser.add_argument("--patch_sizes", nargs="+", metavar="SIZE", help="of vit")
    parser.add_argument("--train_sizes", nargs="+", metavar="N", help="numbers of training images")
    parser.add_argument("--grid", action="append", metavar="FLAG=V1,V2", help="any other setting's values")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", help="(default: 0 1 2)")
    parser.add_argument("--folds", metavar="K", help="cross-validation of each row too, of so many parts")
    parser.add_argument("--reference", metavar="MODEL", help="what the others are compared with (default: the CNN)")
    parser.add_argument(
        "--learning_rates", nargs="+", metavar="RATE", help="tried on validation (default: 3e-4 1e-3 3e-3)"
    )
    parser.add_argument("--lr_epochs", metavar="N", help="of these trials (default: a quarter of --epochs)")
    parser.add_argument("--min_steps", metavar="N", help="more epochs for few training images, to make so many steps")
    parser.add_argument("--jobs", metavar="N", help="trainings side by side (default: 1)")
    for group in ("data", "model", "recipe", "run"):
        names = [name for name in in_groups(group) if name not in NOT_SHARED]
        add_flags(parser.add_argument_group(group), names)
    parser.add_argument("--folder_name", metavar="NAME", help="(default: comparison)")
    parser.add_argument("--no_test", action="store_true", help="leave the test set alone")
    return vars(parser.parse_args())


def main():
    flags = parse_args()
    file = flags.pop("config", None)
    asked = Study.create(read_yaml(file) if file else {}, flags)
    try:
        cells, failed = running.run(asked)
    except Stopped as stopped:
        print("compare.py: interrupted; the same command goes on", file=sys.stderr)
        return 128 + stopped.signal
    if not cells:
        raise UserError(f"no training succeeded; the first: {failed[0][0]}: {failed[0][1]}")

    lines = findings.summarise(asked, cells)
    parts = [
        f"# {asked.name}",
        f"{findings.protocol(asked, cells)}. Made by `python {tables.command(command_line())}`.",
        tables.comparison(lines) + "\n" + tables.comparison_note(lines),
        "\n".join(f"- {text}" for text in tables.takeaways(lines)),
        "\n".join(f"- Failed, and not in the table: {name} ({error})" for name, error in failed),
    ]
    words = "\n\n".join(part for part in parts if part) + "\n"
    with replacing(asked.folder / "RESULTS.md") as part:
        part.write_text(words, encoding="utf-8")
    written = findings.write_results(asked, cells, lines, failed)
    for path in (*figures.draw_all(asked, cells, lines), *written, asked.folder / "RESULTS.md"):
        print(path)
    print(f"\n{words}")
    for name, error in failed:
        print(f"compare.py: {name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
