"""Several models under one protocol, with error bars.

    python compare.py --dataset digits --epochs 10                    # ViT and CNN, three seeds each
    python compare.py --folder_name sizes --patch_sizes 4 8 --train_sizes 1000 5000 50000 --epochs 12 --min_steps 1000
    python compare.py --folder_name widths --models vit --grid embed_dim=64,128 --grid dropout=0,0.1 --no_test
    python compare.py --config configs/compare-cpu.yaml --folder_name mine    # a whole study, for two CPU cores

All rows share data order, augmentation, schedule and epochs (--min_steps: more for few images); each model gets the
best of --learning_rates on validation, or --learning_rate. Any other flag of train.py goes to every row that has
such a setting. What is finished is not run again: the same command goes on, also on several machines at once that
share a folder (docs/cluster.md). Writes output/NAME/ (RESULTS.md, final_results.json, figures) and model/NAME/ (each
training's best weights).
"""

import argparse
import sys

from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import GROUPS, add_flags, in_groups
from vitlab.settings import read_yaml
from vitlab.study.design import DECIDED_BY_THE_STUDY, READERS, Study


def parse_args() -> dict:
    """The flags that are given, by name."""
    parser = Parser(description=__doc__, argument_default=argparse.SUPPRESS)

    def add(name: str, **options) -> None:
        parser.add_argument(f"--{name}", type=READERS[name], **options)

    parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from, these flags' too")
    add("models", nargs="+", metavar="MODEL", help="(default: vit simple_cnn)")
    add("patch_sizes", nargs="+", metavar="SIZE", help="of vit")
    add("train_sizes", nargs="+", metavar="N", help="numbers of training images")
    parser.add_argument("--grid", action="append", metavar="FLAG=V1,V2", help="any other setting's values")
    add("seeds", nargs="+", metavar="SEED", help="(default: 0 1 2)")
    add("folds", metavar="K", help="cross-validation of each row too, of so many parts")
    parser.add_argument("--reference", metavar="MODEL", help="what the others are compared with (default: the CNN)")
    add("learning_rates", nargs="+", metavar="RATE", help="tried on validation (default: 3e-4 1e-3 3e-3)")
    add("lr_epochs", metavar="N", help="of these trials (default: a quarter of --epochs)")
    add("min_steps", metavar="N", help="more epochs for few training images, to make so many steps")
    add("jobs", metavar="N", help="trainings side by side, spread over the GPUs (default: 1)")
    for group in GROUPS:
        names = [name for name in in_groups(group) if name not in DECIDED_BY_THE_STUDY]
        add_flags(parser.add_argument_group(group), names)
    parser.add_argument("--folder_name", metavar="NAME", help="(default: comparison)")
    parser.add_argument("--no_test", action="store_true", help="leave the test set alone")
    return vars(parser.parse_args())


def main() -> int:
    flags = parse_args()
    file = flags.pop("config", None)
    study = Study.create(read_yaml(file) if file else {}, flags)

    # torch takes seconds to import: --help and wrong flags need not wait for it
    from vitlab.evaluation.report import command_line
    from vitlab.files import write_text
    from vitlab.study import figures, findings, page, running
    from vitlab.training.stopping import Stopped

    try:
        cells, failed = running.run(study)
    except Stopped as stopped:
        print("compare.py: interrupted; the same command goes on", file=sys.stderr)
        return 128 + stopped.signal
    if not cells:
        raise UserError(f"no training succeeded; the first: {failed[0][0]}: {failed[0][1]}")

    rows = findings.summarise(study, cells)
    text = page.results_page(study.name, findings.protocol(study, cells), command_line(), rows, failed)
    results = write_text(study.folder / "RESULTS.md", text)
    written = findings.write_results(study, cells, rows, failed)
    for path in (*figures.draw_all(study, cells, rows), *written, results):
        print(path)
    print(f"\n{text}")
    for name, error in failed:
        print(f"compare.py: {name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
