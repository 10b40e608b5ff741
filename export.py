"""A model for others: a smaller copy of a checkpoint, or a file that needs nothing of this repository.

python export.py model/NAME COPY.pt                    # without what only --resume needs; --half: 16-bit weights
python export.py model/NAME NAME.safetensors           # the same; --model_path reads it
python export.py model/NAME NAME.onnx                  # for onnxruntime: uint8 images in, logits out
python export.py model/NAME NAME.onnx --attention      # and the attention, B x L x H x N x N
python export.py model/NAME NAME.onnx --int8           # weights of 8 bits; NAME.json says what that costs
python export.py model/NAME NAME.pt2                   # for torch.export.load

docs/export.md says how each is read.
"""

from pathlib import Path

from vitlab.checkpoint_flags import add_checkpoint_flags, split_flags
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import add_flags

FORMATS = {  # suffix -> the flags that it takes
    ".pt": ("half",),
    ".safetensors": ("half",),
    ".onnx": ("attention", "int8"),
    ".pt2": ("attention",),
}
RUN_SETTINGS = ("data_path",)


def parse_args():
    """args, run_settings, expected: as in test.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="a checkpoint, or a run folder (its best.pt)")
    parser.add_argument("target", help=f"the file to write; its suffix says the format: {', '.join(FORMATS)}")
    parser.add_argument("--half", action="store_true", help="half-precision weights; see that the accuracy stays")
    parser.add_argument("--attention", action="store_true", help="the attention as a second output")
    parser.add_argument("--int8", action="store_true", help="8-bit weights; see --data_path")
    add_flags(parser, RUN_SETTINGS)
    add_checkpoint_flags(parser)
    args = parser.parse_args()
    suffix = Path(args.target).suffix
    if suffix not in FORMATS:
        raise UserError(f"{args.target}: the suffix says the format; choose {', '.join(FORMATS)}")
    for flag in ("half", "attention", "int8"):
        if getattr(args, flag) and flag not in FORMATS[suffix]:
            possible = " or ".join(name for name, flags in FORMATS.items() if flag in flags)
            raise UserError(f"--{flag}: {args.target} has none; it is of {possible}")
    return args, *split_flags(vars(args), RUN_SETTINGS)


def main():
    args, run_settings, expected = parse_args()
    suffix = Path(args.target).suffix

    from vitlab.checkpoint import load_checkpoint, publish  # torch takes seconds to import, and --help does not need it

    if suffix in (".pt", ".safetensors"):
        if expected.keys() - {"data_path"}:
            load_checkpoint(args.source, **expected)  # which says what contradicts the file
        publish(args.source, args.target, half=args.half)
    else:
        from vitlab.export.program import write_onnx, write_pt2

        checkpoint = load_checkpoint(args.source, **expected)
        for note in checkpoint.notes:
            print(note)
        if args.int8:
            from vitlab.export.int8 import write_int8

            lines = write_int8(checkpoint, args.target, run_settings["data_path"], attention=args.attention)
            print(*lines, sep="\n")
        else:
            write = write_onnx if suffix == ".onnx" else write_pt2
            write(checkpoint, args.target, attention=args.attention)
    print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_cli(main)
