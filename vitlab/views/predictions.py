"""What a model says about single images: printed, drawn next to what it looked at, and as numbers for a JSON file."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from vitlab.attention.attribution import grad_cam
from vitlab.attention.maps import describe_pool, look, to_grid
from vitlab.checkpoint import Checkpoint
from vitlab.datasets import images
from vitlab.files import write_json
from vitlab.models.registry import cam_layer
from vitlab.pictures import figures

# (checkpoint, normalised batch of one) -> (logits 1 x C, map G x G or None, the map's title)
Explain = Callable[[Checkpoint, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None, str]]


def explain_by_attention(checkpoint: Checkpoint, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
    """A VisionTransformer's logits, and its attention from the pooled token: last block, mean of the heads."""
    inside = look(checkpoint.model, batch)
    attention = to_grid(inside.from_pooled[0, -1].mean(0)).cpu()
    return inside.logits, attention, f"last block, attention from {describe_pool(checkpoint.model)}"


def explain_by_grad_cam(checkpoint: Checkpoint, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    """Another model's logits, and Grad-CAM of a CNN for the likeliest class; an MLP has no map."""
    with torch.no_grad():
        logits = checkpoint.model(batch)
    layer = cam_layer(checkpoint.config.model, checkpoint.model)
    evidence = grad_cam(checkpoint.model, batch, layer=layer)[0].cpu() if layer else None
    return logits, evidence, "Grad-CAM"


def predict_image(
    checkpoint: Checkpoint, image: Image.Image, name: str, picture: Path, explain: Explain, *, label: str | None = None
) -> dict:
    """Print the likeliest classes of an image, and write `picture`: the image next to its map. Returns the numbers.

    label: the true class of a test image; such an image is drawn in the size that the model sees.
    """
    logits, values, map_title = explain(checkpoint, checkpoint.batch(image))
    likeliest = checkpoint.name(logits[0])
    print(f"{name}: {', '.join(f'{guess} {probability:.4f}' for guess, probability in likeliest)}")
    title, side = f"{likeliest[0][0]} {likeliest[0][1]:.1%}", max(224, checkpoint.model.img_size)
    if label is not None:
        print(f"true class: {label}")
        title, side = f"{title} (true: {label})", checkpoint.model.img_size
    figures.plot_prediction(images.square(image, side), values, title, picture, label=map_title)
    print(picture)
    top = [{"class": guess, "probability": probability} for guess, probability in likeliest]
    return {"image": name, "true": label, "top": top}


def predict_test_image(
    checkpoint: Checkpoint, image: Image.Image, label: str, index: int, folder: Path, explain: Explain
) -> Path:
    """Predict test image number `index`, of the true class `label`, and write index-N.png and index-N.json into
    `folder`. Returns the picture."""
    picture = folder / f"index-{index}.png"
    prediction = predict_image(checkpoint, image, f"index {index}", picture, explain, label=label)
    print(write_json(picture.with_suffix(".json"), prediction))
    return picture


def predict_files(checkpoint: Checkpoint, path: str, folder: Path, explain: Explain) -> tuple[list[Path], list[str]]:
    """Predict an image file, or all images in a folder, and write pictures and predictions.json into `folder`.

    Returns the pictures, and a line about each file of a folder that could not be read. If the path is a single file
    that cannot be read, raises UserError.
    """
    pictures, predictions, unreadable = [], [], []
    for file, image in images.open_images(path, unreadable):
        pictures.append(folder / f"{file.name}.png")
        predictions.append(predict_image(checkpoint, image, str(file), pictures[-1], explain))
    if predictions:
        print(write_json(folder / "predictions.json", predictions))
    return pictures, unreadable
