"""Test a trained model.

    python test.py                                                     # the whole test split
    python test.py --mode cifar-single --index 7                       # one image of it
    python test.py --mode custom --image_path FILE-OR-FOLDER           # your own images
    python test.py --model_path model/vit-plain-cpu-32-cifar10         # of another run, or any .pt file

Architecture, classes and normalisation come from the checkpoint. Foreign files (a plain state dict
of the teaching layout, or of timm's VisionTransformer) may need --dataset, --n_attention_heads or
--pool. Writes output/NAME/test/.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vitlab.attention.attribution import grad_cam
from vitlab.attention.maps import attention_from, describe_pool, pool_weights, to_grid
from vitlab.checkpoint import DEFAULT_MODEL, load_checkpoint
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import SETTINGS, add_flags, in_groups, read_settings
from vitlab.datasets import images
from vitlab.datasets.images import image_files, open_images
from vitlab.datasets.splits import load_data, test_image
from vitlab.evaluation import metrics
from vitlab.evaluation.report import make_report, predict_all
from vitlab.files import writable_folder, write_json
from vitlab.hardware import find_device, pick_amp
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures


def parse_args():
    """(this script's own arguments, settings of where and how to run, what the checkpoint should be)"""
    parser = Parser(description=__doc__)
    parser.add_argument("--mode", default="cifar", help="cifar (default: the whole test split), cifar-single or custom")
    parser.add_argument("--index", help="cifar-single: which test image, from 0 (default: 1)")
    parser.add_argument("--image_path", metavar="PATH", help="custom: an image, or a folder of images")
    parser.add_argument("--model_path", default=DEFAULT_MODEL, help="a checkpoint or run folder (default: %(default)s)")
    parser.add_argument("--no_image", action="store_true", help="do not open the picture (it is saved all the same)")
    where_and_how = ("output_path", "data_path", "batch_size", "num_workers", "num_test_images", "device")
    add_flags(parser, where_and_how)
    add_flags(parser, ("dataset", *in_groups("model")))
    args = parser.parse_args()

    settings = read_settings({name: value for name, value in vars(args).items() if name in SETTINGS})
    expected = {name: settings[name] for name in ("dataset", *in_groups("model")) if name in settings}
    settings = {name: settings.get(name, SETTINGS[name].default) for name in where_and_how}
    if args.mode not in ("cifar", "cifar-single", "custom"):
        raise UserError(f"--mode {args.mode!r}: choose cifar, cifar-single or custom")
    for name, mode in (("index", "cifar-single"), ("image_path", "custom")):
        if getattr(args, name) is not None and args.mode != mode:
            raise UserError(f"--{name} is of --mode {mode}, not {args.mode}; give that, or leave it out")
    args.index = "1" if args.index is None else args.index
    if not args.index.removeprefix("-").isdecimal():
        raise UserError(f"--index {args.index!r}: give a whole number")
    if args.mode == "custom" and not args.image_path:
        raise UserError("--mode custom needs --image_path FILE-OR-FOLDER")
    if args.mode == "custom":
        image_files(args.image_path)  # refused before anything is loaded
    return args, settings, expected


def test_split(found, config, folder):
    """--mode cifar: every number of the test split."""
    began = time.perf_counter()
    batches = load_data(config, splits=("test",), mean=found.mean, std=found.std).test
    device = batches.labels.device
    amp = pick_amp(device, "off" if config.amp == "off" else "auto")  # the device may be another one
    labels, logits = predict_all(found.model, batches, amp, "test")
    seconds = time.perf_counter() - began
    predictions = logits.argmax(-1)
    result = metrics.summary(labels, predictions, F.cross_entropy(logits, labels))
    rows = metrics.per_class(labels, predictions, found.classes)
    counts = metrics.confusion(labels, predictions, len(found.classes))

    width = max(map(len, found.classes))
    print(f"{'class':>{width}}  precision  recall      f1      n")
    for row in rows:
        print(f"{row['class']:>{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:.4f}  {row['n']:5d}")
    if len(found.classes) <= 20:
        print("\nconfusion matrix (row: true, column: predicted)")
        for name, line in zip(found.classes, counts):
            print(f"{name:>{width}}  " + " ".join(f"{count:5d}" for count in line))
    else:
        off_diagonal = counts - np.diag(counts.diagonal())
        print("\nmost frequent confusions (the whole matrix is in the report and the picture)")
        for flat in np.argsort(-off_diagonal, axis=None, kind="stable")[:10]:
            true, predicted = np.unravel_index(flat, counts.shape)
            print(f"{counts[true, predicted]:5d}  {found.classes[true]} taken for {found.classes[predicted]}")
    low, high = result["ci95"]
    print(
        f"\ntest accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), loss {result['loss']:.4f}, "
        f"F1 macro {result['f1_macro']:.4f}, weighted {result['f1_weighted']:.4f}, {result['n']} images"
    )
    print(figures.plot_confusion_matrix(counts, found.classes, folder / "confusion_matrix.png"))
    report = make_report(
        name=folder.parent.name,
        dataset=config.dataset,
        checkpoint=found.path,
        seed=config.seed,
        device=device,
        model=found.model,
        seconds=seconds,
        test=result,
    )
    print(write_json(folder / "report.json", {**report, "per_class": rows, "confusion": counts.tolist()}))


def test_one(found, image, name, picture, label=None):
    """Print one image's likeliest classes, draw it beside its attention (of a CNN: Grad-CAM), and return the
    numbers."""
    batch = found.batch(image)
    if hasattr(found.model, "blocks"):
        with torch.no_grad():
            logits, attention, hidden = found.model(batch, return_attention=True, return_hidden=True)
            seen = attention_from(attention[:, -1:], pool_weights(found.model, hidden))
        shown = to_grid(seen)[0, 0].mean(0).cpu()
        words = f"last block, attention from {describe_pool(found.model)}"
    else:
        with torch.no_grad():
            logits = found.model(batch)
        layer = cam_layer(found.config.model, found.model)
        shown = grad_cam(found.model, batch, layer=layer)[0].cpu() if layer else None
        words = "Grad-CAM"
    likeliest = found.name(logits[0])
    print(f"{name}: {', '.join(f'{guess} {share:.4f}' for guess, share in likeliest)}")
    if label is not None:
        print(f"true class: {label}")
    title = f"{likeliest[0][0]} {likeliest[0][1]:.1%}" + (f" (true: {label})" if label is not None else "")
    square = images.square(image, found.model.img_size if label is not None else max(224, found.model.img_size))
    figures.plot_prediction(square, shown, title, picture, label=words)
    print(picture)
    return {"image": str(name), "true": label, "top": [{"class": c, "probability": p} for c, p in likeliest]}


def test_index(found, config, folder, index):
    """--mode cifar-single: one image of the test split, by its place in the official order."""
    image, label = test_image(config, index)
    picture = folder / f"index-{index}.png"
    numbers = test_one(found, image, f"index {index}", picture, found.classes[label])
    print(write_json(picture.with_suffix(".json"), numbers))
    return [picture]


def test_custom(found, folder, path):
    """--mode custom: an image file, or those in a folder. Returns (pictures, how many were bad)."""
    pictures, numbers, bad = [], [], []
    for file, image in open_images(path, bad):
        pictures.append(folder / "custom" / f"{file.name}.png")
        numbers.append(test_one(found, image, file, pictures[-1]))
    if numbers:
        print(write_json(folder / "custom" / "predictions.json", numbers))
    for line in bad:
        print(f"test.py: {line}", file=sys.stderr)
    return pictures, len(bad)


def main():
    args, settings, expected = parse_args()
    found = load_checkpoint(args.model_path, **expected)
    for note in found.notes:
        print(note)
    custom = args.mode == "custom"
    config = dataclasses.replace(found.config, **settings) if custom else found.data_config(**settings)
    found.model.to(find_device(config.device))
    folder = writable_folder(Path(config.output_path) / found.run_name / "test", "--output_path")

    bad = 0
    if args.mode == "cifar":
        test_split(found, config, folder)
        pictures = []
    elif args.mode == "cifar-single":
        pictures = test_index(found, config, folder, int(args.index))
    else:
        pictures, bad = test_custom(found, folder, args.image_path)
    if not args.no_image:
        for picture in pictures[:1]:
            canvas.show(picture)
    return 1 if bad else 0


if __name__ == "__main__":
    run_cli(main)
