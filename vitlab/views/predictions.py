"""What a model says about single images: printed, drawn next to what it looked at, and as numbers for a JSON file."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from vitlab.attention.attribution import grad_cam
from vitlab.attention.maps import describe_pool, look, times_mean, times_uniform
from vitlab.checkpoint import BATCH_SIZE, Checkpoint
from vitlab.datasets import images
from vitlab.files import new_folder, write_csv, write_json
from vitlab.hardware import float32_as
from vitlab.models.registry import cam_layer
from vitlab.pictures import figures

# (checkpoint, normalised batch of one) -> (logits 1 x C, map G x G or None, the map's title)
Explain = Callable[[Checkpoint, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None, str]]


def explain_by_attention(checkpoint: Checkpoint, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
    """A VisionTransformer's logits, and its attention from the pooled token: last block, mean of the heads."""
    inside = look(checkpoint.model, batch)
    attention = times_uniform(inside.from_pooled[0, -1].mean(0)).cpu()
    return inside.logits, attention, f"last layer, attention from {describe_pool(checkpoint.model)}"


def explain_by_grad_cam(checkpoint: Checkpoint, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    """Another model's logits, and Grad-CAM of a CNN for the likeliest class; an MLP has no map."""
    with torch.no_grad():
        logits = checkpoint.model(batch)
    layer = cam_layer(checkpoint.config.model, checkpoint.model)
    evidence = times_mean(grad_cam(checkpoint.model, batch, layer=layer)[0]).cpu() if layer else None
    return logits, evidence, "Grad-CAM"


def draw_prediction(
    checkpoint: Checkpoint, batch: torch.Tensor, image: Image.Image, title: str, picture: Path, explain: Explain
) -> None:
    """Write `picture`: the square image next to its map."""
    _, values, map_title = explain(checkpoint, batch)
    figures.plot_prediction(image, values, title, picture, label=map_title)
    print(picture)


def row_of(name: str, guesses: Sequence[tuple[str, float]], label: str | None = None) -> dict:
    """Print an image's likeliest classes; returns them for a JSON file. label: the true class of a test image."""
    print(f"{name}: {', '.join(f'{guess} {probability:.4f}' for guess, probability in guesses)}")
    top = [{"class": guess, "probability": probability} for guess, probability in guesses]
    return {"image": name, "true": label, "top": top}


@float32_as("ieee")
def predict_test_image(
    checkpoint: Checkpoint, image: Image.Image, label: str, index: int, folder: Path, explain: Explain | None
) -> list[Path]:
    """Predict test image number `index`, of the true class `label`, and write index-N.png (unless explain is None) and
    index-N.json into `folder`. Returns the picture in a list."""
    batch, pictures = checkpoint.batch(image), []
    with torch.inference_mode():
        guesses = checkpoint.name(checkpoint.model(batch)[0])
    row = row_of(f"index {index}", guesses, label)
    print(f"true class: {label}")
    if explain:
        pictures = [folder / f"index-{index}.png"]
        title = f"{guesses[0][0]} {guesses[0][1]:.1%} (true: {label})"
        seen = images.square(image, checkpoint.model.img_size, checkpoint.crop_pct)
        draw_prediction(checkpoint, batch, seen, title, pictures[0], explain)
    print(write_json(folder / f"index-{index}.json", row))
    return pictures


@float32_as("ieee")
def predict_files(
    checkpoint: Checkpoint, path: str, folder: Path, explain: Explain | None
) -> tuple[list[Path], list[str]]:
    """Predict an image file, or all images in a folder, in batches. Writes predictions.csv, predictions.json and
    (unless explain is None) a picture of each image into a new folder: `folder`, or if it is there FOLDER-2, ...

    Returns the pictures, and a line about each file of a folder that could not be read. If the path is a single file
    that cannot be read, raises UserError.
    """
    root = Path(path) if Path(path).is_dir() else Path(path).parent
    side = max(224, checkpoint.model.img_size)
    rows, pictures, unreadable = [], [], []
    prepared = (  # an image of many pixels is not kept
        (file, checkpoint.batch(image), images.square(image, side, checkpoint.crop_pct) if explain else None)
        for file, image in images.open_images(path, unreadable)
    )
    while chunk := list(itertools.islice(prepared, BATCH_SIZE)):
        folder = folder if rows else new_folder(folder)
        with torch.inference_mode():
            logits = checkpoint.model(torch.cat([batch for _, batch, _ in chunk])).cpu()
        for (file, batch, image), values in zip(chunk, logits):
            guesses = checkpoint.name(values)
            rows.append(row_of(str(file), guesses))
            if explain:
                pictures.append(folder / f"{file.relative_to(root)}.png")
                title = f"{guesses[0][0]} {guesses[0][1]:.1%}"
                draw_prediction(checkpoint, batch, image, title, pictures[-1], explain)
    if rows:
        print(write_csv(folder / "predictions.csv", table(rows)))
        print(write_json(folder / "predictions.json", rows))
    return pictures, unreadable


def table(rows: Sequence[dict]) -> list[dict]:
    """Rows of predictions.csv: path, class, probability, and the next likeliest as class_2, probability_2, ..."""
    return [
        {"path": row["image"]}
        | {
            f"{name}_{place}" if place > 1 else name: guess[name]
            for place, guess in enumerate(row["top"], 1)
            for name in ("class", "probability")
        }
        for row in rows
    ]
