"""A smaller copy of a checkpoint, to publish.

python export.py /tmp/model/NAME model/NAME/best.pt           # without what only --resume needs
python export.py /tmp/model/NAME model/NAME/best.pt --half    # with half-precision weights
"""

from pathlib import Path

from vitlab.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from vitlab.cli import Parser, UserError, run_cli


def publish(source, target, *, half=False):
    """Copy one of our checkpoints without what only --resume needs; `half`: in half precision."""
    contents = read_checkpoint(source)
    if not isinstance(contents, dict) or FORMAT not in contents:
        raise UserError(f"{source} is not a checkpoint of this repository; load() reads foreign files as they are")
    contents.pop("training", None)
    if half:
        contents["model"] = {k: v.half() if v.is_floating_point() else v for k, v in contents["model"].items()}
    write_checkpoint(target, contents)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="a .pt file, or a run folder (its best.pt)")
    parser.add_argument("target", help="the file to write")
    parser.add_argument("--half", action="store_true", help="half-precision weights; see that the accuracy stays")
    args = parser.parse_args()
    publish(args.source, args.target, half=args.half)
    print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_cli(main)
