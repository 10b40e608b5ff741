"""Every picture of a trained model from one command each.

    python visualize.py gif --index 21               # attention, a frame for each layer and head
    python visualize.py maps --image_path cat.jpg    # the same as one sheet
    python visualize.py rollout --index 21           # attention through all layers, and by class
    python visualize.py cls --index 21               # from and to the CLS token, and its values
    python visualize.py tokens --index 21            # where each patch looks
    python visualize.py gradcam --index 21           # evidence for the likeliest classes
    python visualize.py hidden --index 21            # inside the blocks
    python visualize.py embeddings                   # the test set in two dimensions, by class
    python visualize.py positions                    # similarity of the position embeddings
    python visualize.py filters                      # what the patch embedding looks for
    python visualize.py training                     # the run's curves, animated
    python visualize.py faithfulness                 # which of the maps can be trusted
    python visualize.py explorer                     # one interactive HTML page

--layers and --heads count from 0, as the code does, captions from 1: --layers 0 draws "layer 1 of 12".
Architecture, classes and normalisation come from the checkpoint. A GIF of `gif` goes to attention_map_gif/,
everything else to output/NAME/visualize/, or to --output_path. File names tell the model and the flags given.
"""

import argparse
import contextlib
import sys

from vitlab.catalog import DEFAULT_MODEL
from vitlab.checkpoint_flags import add_checkpoint_flags, split_flags
from vitlab.cli import Parser, UserError, run_cli, whole_number
from vitlab.config import add_flags

IMAGE_COMMANDS = {  # name -> help; vitlab/views/image_views.py draws them
    "gif": "Attention from CLS, a frame for each layer and head",
    "maps": "Attention from CLS, layers x heads, as one sheet",
    "rollout": "Attention rollout up to each layer, of --heads, and gradient rollout by class, of all heads",
    "cls": "Attention from and to CLS, and its values behind each layer",
    "tokens": "Where each patch looks",
    "gradcam": "Grad-CAM on the last block's tokens, for the likeliest classes or --target",
    "hidden": "Inside the blocks",
}
MODEL_COMMANDS = {  # name -> help; vitlab/views/model_views.py draws them
    "embeddings": "What the head reads of the test images, in two dimensions, by class",
    "positions": "Cosine similarity of each position embedding with all others",
    "filters": "What the patch embedding looks for",
    "training": "The run's curves, animated",
    "faithfulness": "Which of the maps can be trusted",
}
PAGE_COMMANDS = {  # name -> help; vitlab/views/explorer makes it
    "explorer": "One HTML page with the model inside; it needs no server and no network",
}
DEFAULT_LAYERS = {
    **dict.fromkeys(("gif", "maps", "cls"), "all"),
    **dict.fromkeys(("rollout", "hidden"), "first, middle and last"),
    **dict.fromkeys(("tokens", "gradcam"), "the last"),
}
DEFAULT_HEADS = {**dict.fromkeys(("gif", "maps"), "each"), **dict.fromkeys(("rollout", "cls", "tokens"), "mean")}
NUM_IMAGES = {"embeddings": 2000, "faithfulness": 300}
RUN_SETTINGS = ("data_path", "device", "threads")


def number_or_mean(text: str) -> int | str:
    """One value of --heads."""
    return text if text == "mean" else whole_number("--heads")(text)


def add_command(commands: argparse._SubParsersAction, name: str, help_text: str) -> None:
    """Give the parser a command with its flags."""
    command = commands.add_parser(name, help=help_text)
    command.add_argument(
        "--model_path", default=DEFAULT_MODEL, help="a checkpoint or run folder (default: %(default)s)"
    )
    command.add_argument("--output_path", help="a folder, or the file to write")
    add_flags(command, RUN_SETTINGS)
    add_checkpoint_flags(command)
    if name == "explorer":
        number = whole_number("--images", low=1, high=1000)
        command.add_argument("--images", type=number, dest="num_images", help="test images (default: 10)")
    if name in (*IMAGE_COMMANDS, "explorer"):
        command.add_argument("--image_path", metavar="PATH", help="an image, or a folder of images, instead")
    if name in IMAGE_COMMANDS:
        index = whole_number("--index")
        command.add_argument("--index", type=index, help="which test image, from 0 (default: 21)")
        layer, default = whole_number("--layers"), f"counted from 0 (default: {DEFAULT_LAYERS[name]})"
        command.add_argument("--layers", type=layer, nargs="+", metavar="I", help=default)
    if name in DEFAULT_HEADS:
        default = f"counted from 0 (default: {DEFAULT_HEADS[name]})"
        command.add_argument("--heads", type=number_or_mean, nargs="+", metavar="I|mean", help=default)
    if name in ("rollout", "gradcam"):
        command.add_argument("--target", metavar="CLASS", help="by name or number (default: the likeliest three)")
    if name in ("gif", "tokens", "hidden", "training"):
        frame_ms = whole_number("--frame_ms", low=20, high=60_000)
        command.add_argument(
            "--frame_ms", type=frame_ms, default=400, help="duration of a frame (default: %(default)s)"
        )
    if name == "hidden":
        command.add_argument("--save_npy", action="store_true", help="also the values, as .npy")
    if name == "embeddings":
        command.add_argument("--method", help="pca, tsne or both (default: both)")
    if name in NUM_IMAGES:
        num_images, default = whole_number("--num_images"), f"test images (default: up to {NUM_IMAGES[name]})"
        command.add_argument("--num_images", type=num_images, help=default)


def parse_args() -> tuple[argparse.Namespace, dict, dict]:
    """args, run_settings, expected: this script's own flags, where to run, and what the user says that the checkpoint
    is."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in {**IMAGE_COMMANDS, **MODEL_COMMANDS, **PAGE_COMMANDS}.items():
        add_command(commands, name, help_text)
    args = parser.parse_args()
    if getattr(args, "index", None) is not None and args.image_path:
        raise UserError("--index and --image_path both name an image; keep one")
    if getattr(args, "num_images", None) is not None and getattr(args, "image_path", None):
        raise UserError("--images is a number of test images, and --image_path names others; keep one")
    if args.command == "embeddings" and args.method not in (None, "pca", "tsne", "both"):
        raise UserError(f"--method {args.method}: choose pca, tsne or both")
    return args, *split_flags(vars(args), RUN_SETTINGS)


def main() -> int:
    args, run_settings, expected = parse_args()

    # Here and not at the top: torch takes seconds to import, and --help should not wait for it
    from vitlab.checkpoint import load_checkpoint
    from vitlab.hardware import float32_as, use_threads
    from vitlab.views.view import View

    if args.command == "explorer":
        from vitlab.views.explorer.page import draw_explorer
    elif args.command in IMAGE_COMMANDS:
        from vitlab.views.image_views import IMAGE_VIEWS
    else:
        from vitlab.views.model_views import MODEL_VIEWS

    use_threads(run_settings["threads"])
    checkpoint = load_checkpoint(args.model_path, **expected)
    for note in checkpoint.notes:
        print(note)
    view = View(checkpoint, args, run_settings)
    is_explorer = args.command == "explorer"  # on the CPU, and torch's exporter does not work within float32_as
    with contextlib.nullcontext() if is_explorer else float32_as("ieee"):
        if is_explorer:
            print(*draw_explorer(view), sep="\n")
        elif args.command in MODEL_COMMANDS:
            print(*MODEL_VIEWS[args.command](view), sep="\n")
        else:
            for subject in view.subjects():
                print(f"{subject.name}: {subject.verdict}")
                print(*IMAGE_VIEWS[args.command](view, subject), sep="\n")
    for line in view.unreadable:
        print(f"visualize.py: {line}", file=sys.stderr)
    return 1 if view.unreadable else 0


if __name__ == "__main__":
    run_cli(main)
