"""A smaller copy of a checkpoint, to publish.

python export.py /tmp/model/NAME model/NAME/best.pt           # without what only --resume needs
python export.py /tmp/model/NAME model/NAME/best.pt --half    # with half-precision weights
"""

from pathlib import Path

from vitlab.cli import Parser, run_cli


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="a .pt file, or a run folder (its best.pt)")
    parser.add_argument("target", help="the file to write")
    parser.add_argument("--half", action="store_true", help="half-precision weights; see that the accuracy stays")
    args = parser.parse_args()

    from vitlab.checkpoint import publish  # torch takes seconds to import, and --help does not need it

    publish(args.source, args.target, half=args.half)
    print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_cli(main)
