"""Test a trained model.

    python test.py                                                     # the whole test split
    python test.py --mode cifar-single --index 7                       # one image of it
    python test.py --image_path FILE-OR-FOLDER                         # your own images
    python test.py --model_path model/vit-conv-cpu-32-cifar10          # another run, or any .pt file

Architecture, classes and normalisation come from the checkpoint. Foreign files (of timm, torchvision,
transformers, ...) may need --pool, --n_attention_heads, --mean and --std, and --dataset or --classes.
Writes output/NAME/test/.
"""

import argparse
import sys
from pathlib import Path

from vitlab.catalog import DEFAULT_MODEL
from vitlab.checkpoint_flags import add_checkpoint_flags, split_flags
from vitlab.cli import Parser, UserError, run_cli, whole_number
from vitlab.config import add_flags
from vitlab.files import writable_folder

RUN_SETTINGS = ("output_path", "data_path", "batch_size", "num_workers", "num_test_images", "device", "threads")


def parse_args() -> tuple[argparse.Namespace, dict, dict]:
    """args, run_settings, expected: this script's own flags, where and how to run, and what the user says that the
    checkpoint is."""
    parser = Parser(description=__doc__)
    parser.add_argument("--mode", help="cifar (default: the whole test split), cifar-single or custom")
    parser.add_argument(
        "--index", type=whole_number("--index"), help="cifar-single: which test image, from 0 (default: 1)"
    )
    parser.add_argument("--image_path", metavar="PATH", help="an image, or a folder of images: --mode custom")
    parser.add_argument("--model_path", default=DEFAULT_MODEL, help="a checkpoint or run folder (default: %(default)s)")
    parser.add_argument("--no_image", action="store_true", help="do not open the picture (it is saved all the same)")
    parser.add_argument("--no_pictures", action="store_true", help="write no picture of each image, only the numbers")
    add_flags(parser, RUN_SETTINGS)
    add_checkpoint_flags(parser)
    args = parser.parse_args()

    args.mode = args.mode or ("custom" if args.image_path else "cifar")
    if args.mode not in ("cifar", "cifar-single", "custom"):
        raise UserError(f"--mode {args.mode!r}: choose cifar, cifar-single or custom")
    for name, mode in (("index", "cifar-single"), ("image_path", "custom")):
        if getattr(args, name) is not None and args.mode != mode:
            raise UserError(f"--{name} is of --mode {mode}, not {args.mode}; give that, or leave it out")
    if args.no_pictures and args.mode == "cifar":
        raise UserError("--no_pictures is of --mode custom and cifar-single, not cifar; leave it out")
    if args.mode == "custom" and not args.image_path:
        raise UserError("--mode custom needs --image_path FILE-OR-FOLDER")
    if args.index is None:
        args.index = 1
    return args, *split_flags(vars(args), RUN_SETTINGS)


def main() -> int:
    args, run_settings, expected = parse_args()

    # Here and not at the top: torch takes seconds to import, and --help should not wait for it
    from model import VisionTransformer
    from vitlab.checkpoint import load_checkpoint
    from vitlab.datasets.images import image_files
    from vitlab.hardware import find_device, use_threads

    if args.mode == "cifar":
        from vitlab.views.split_report import report_split  # with scipy and scikit-learn, another second
    else:
        from vitlab.pictures.canvas import show
        from vitlab.views import predictions
    if args.mode == "cifar-single":
        from vitlab.datasets.official import test_image  # with torchvision, another second

    if args.mode == "custom":
        image_files(args.image_path)  # raises UserError before anything is loaded
    use_threads(run_settings["threads"])
    checkpoint = load_checkpoint(args.model_path, **expected)
    for note in checkpoint.notes:
        print(note)
    if args.mode != "custom":
        config = checkpoint.data_config(**run_settings)
    model = checkpoint.model.to(find_device(run_settings["device"]))
    folder = writable_folder(Path(run_settings["output_path"]) / checkpoint.run_name / "test", "--output_path")

    if args.mode == "cifar":
        report_split(checkpoint, config, folder)
        return 0
    is_vit = isinstance(model, VisionTransformer)
    explain = predictions.explain_by_attention if is_vit else predictions.explain_by_grad_cam
    explain = None if args.no_pictures else explain
    unreadable = []
    if args.mode == "cifar-single":
        image, label = test_image(config, args.index)
        label = checkpoint.classes[label]
        pictures = predictions.predict_test_image(checkpoint, image, label, args.index, folder, explain)
    else:
        pictures, unreadable = predictions.predict_files(checkpoint, args.image_path, folder / "custom", explain)
    for line in unreadable:
        print(f"test.py: {line}", file=sys.stderr)
    if pictures and not args.no_image:
        show(pictures[0])
    return 1 if unreadable else 0


if __name__ == "__main__":
    run_cli(main)
