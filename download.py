"""Download and verify a data set, nothing else.

python download.py cifar10                  # into ./data
python download.py cifar100 --data_path DIR
"""

from vitlab.catalog import DATASETS, NOT_DOWNLOADED
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import TrainConfig


def main():
    names = [name for name in DATASETS if name not in NOT_DOWNLOADED]
    parser = Parser(description=__doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(names))
    parser.add_argument("--data_path", default=TrainConfig.data_path, help="where to (default: %(default)s)")
    args = parser.parse_args()
    if args.name == "digits":
        print("digits: complete; it comes with scikit-learn")
        return
    if args.name not in names:
        raise UserError(f"dataset {args.name!r} cannot be downloaded; choose {', '.join(names)}")

    from vitlab.datasets.cifar import download_cifar  # after the flags: torch takes seconds to import
    from vitlab.datasets.torchvision_sets import READERS, check_set

    fetch = check_set if args.name in READERS else download_cifar
    print(f"{args.name}: complete, in {fetch(args.name, args.data_path)}")


if __name__ == "__main__":
    run_cli(main)
