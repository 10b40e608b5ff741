"""Download and verify a data set, nothing else.

python download.py cifar10                  # into ./data
python download.py cifar100 --data_path DIR
"""

from pathlib import Path

from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import TrainConfig
from vitlab.datasets.cifar import _cifar_class, download_cifar


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("name", metavar="NAME", help="cifar10 or cifar100")
    parser.add_argument("--data_path", default=TrainConfig.data_path, help="where to (default: %(default)s)")
    args = parser.parse_args()
    if args.name not in ("cifar10", "cifar100"):
        raise UserError(f"dataset {args.name!r} cannot be downloaded; choose cifar10 or cifar100")
    download_cifar(args.name, args.data_path)
    print(f"{args.name}: complete, in {Path(args.data_path) / _cifar_class(args.name).base_folder}")


if __name__ == "__main__":
    run_cli(main)
