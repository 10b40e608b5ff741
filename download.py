"""Download and verify a data set, nothing else.

python download.py cifar10                  # into ./data
python download.py cifar100 --data_path DIR
"""

from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import TrainConfig


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("name", metavar="NAME", help="cifar10 or cifar100")
    parser.add_argument("--data_path", default=TrainConfig.data_path, help="where to (default: %(default)s)")
    args = parser.parse_args()
    if args.name not in ("cifar10", "cifar100"):
        raise UserError(f"dataset {args.name!r} cannot be downloaded; choose cifar10 or cifar100")

    from vitlab.datasets.cifar import download_cifar  # after the flags: torch takes seconds to import

    print(f"{args.name}: complete, in {download_cifar(args.name, args.data_path)}")


if __name__ == "__main__":
    run_cli(main)
