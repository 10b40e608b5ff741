"""Pictures of the same few images while a model learns: the --visualizers of train.py.

token_attn_maps: where four patches of the first image look. cls_heatmap: where the CLS token looks, or the
pooled token of a model without one. hidden: the values inside the blocks, of the first image.
cls_dim_reduction: what the head reads of up to 1,000 images, in two dimensions, by class; the axes are chosen
anew in each epoch. The images are from the validation split; without one, training images, not augmented.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from model import VisionTransformer
from vitlab import processes
from vitlab.attention.maps import Look, describe_pool, features, look, times_uniform
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.images import to_image
from vitlab.datasets.splits import Splits
from vitlab.files import save_npy
from vitlab.hardware import float32_as
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import (
    HIDDEN,
    TIMES_MEAN_SIZE,
    TIMES_UNIFORM,
    colours,
    enlarge,
    hidden_name,
    hidden_rows,
    layer_name,
    mark,
    sheet,
    tile_side,
)

NUM_IMAGES, NUM_POINTS = 4, 1000


def check_snapshots(config: TrainConfig, sets: Splits, model: nn.Module) -> None:
    """UserError if config.visualizers ask for what the model or the data do not have."""
    batches = sets.val or sets.train
    if config.visualizers and not (isinstance(model, VisionTransformer) and hasattr(batches, "sample")):
        raise UserError("--visualizers need a VisionTransformer and data that can be sampled; leave the flag out")
    if "cls_dim_reduction" in config.visualizers and min(len(batches.labels), config.embed_dim) < 2:
        raise UserError("--visualizers cls_dim_reduction needs two images and --embed_dim 2; leave it out")


class Snapshots:
    """Writes OUTPUT/visualizers/KIND-epoch-001.png for each of config.visualizers, and at the end OUTPUT/KIND.gif.

    epoch: the number of finished epochs. Pictures of later ones, which a run that is resumed from there left
    behind, are removed. check_snapshots tells whether they can be drawn.
    """

    def __init__(self, config: TrainConfig, sets: Splits, model: nn.Module, epoch: int = 0):
        self.config, self.classes = config, sets.classes
        self.kinds = config.visualizers if processes.is_first() else ()
        self.folder = config.output_folder / "visualizers"
        for path in self.folder.glob("*-epoch-*") if processes.is_first() else ():
            if epoch_of(path) > epoch:
                path.unlink()
        if not self.kinds:
            return
        batches = sets.val or sets.train
        self.images, self.labels = batches.sample(NUM_IMAGES)
        self.points = batches.sample(NUM_POINTS) if "cls_dim_reduction" in self.kinds else None
        self.pictures = [to_image(image, sets.mean, sets.std) for image in self.images]

    @float32_as("ieee")
    def draw(self, model: VisionTransformer, epoch: int) -> dict[str, Path]:
        """Write the pictures of a model after an epoch: kind -> path."""
        if not self.kinds:
            return {}
        was_training = model.training
        model.eval()
        snapshot = Snapshot(
            model=model,
            title=f"{self.config.folder_name}, epoch {epoch}",
            layers=list(self.config.visualize_layers),
            inside=look(model, self.images).cpu(),
            pictures=self.pictures,
            names=[self.classes[label] for label in self.labels.tolist()],
            points=self.points,
            classes=self.classes,
        )
        written = {}
        for kind in self.kinds:
            written[kind] = self.folder / f"{kind}-epoch-{epoch:03d}.png"
            values = VISUALIZERS[kind](snapshot, written[kind])
            if self.config.save_npy:
                save_npy(values, written[kind].with_suffix(".npy"))
        model.train(was_training)
        return written

    def write_gifs(self) -> list[Path]:
        """Write a GIF over the epochs for each kind; returns their paths."""
        written = []
        for kind in self.kinds:
            pictures = sorted(self.folder.glob(f"{kind}-epoch-*.png"), key=epoch_of)
            frames = [Image.open(path).convert("RGB") for path in pictures]
            if frames:
                path = self.config.output_folder / f"{kind}.gif"
                written.append(canvas.save_gif(frames, path, frame_ms=500))
        return written


def epoch_of(picture: Path) -> int:
    """The number of the epoch in a picture's name."""
    return int(re.search(r"-epoch-(\d+)", picture.name)[1])


@dataclass(frozen=True)
class Snapshot:
    """A model after an epoch, and the fixed images that it is shown. B is NUM_IMAGES."""

    model: VisionTransformer  # in evaluation mode
    title: str
    layers: list[int]  # those to show
    inside: Look  # of the B images, on the CPU
    pictures: list[Image.Image]  # the B images
    names: list[str]  # their classes
    points: tuple[torch.Tensor, torch.Tensor] | None  # more images and their labels, for cls_dim_reduction
    classes: list[str]

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return len(self.model.blocks)


# Each draw_* writes one picture and returns the numbers in it


def draw_token_attention(snapshot: Snapshot, path: Path) -> torch.Tensor:
    """Where four patches of the first image look: layers x N x N, the mean of the heads."""
    grid, picture = snapshot.model.grid_size, snapshot.pictures[0]
    side = tile_side(picture.width)
    attention = snapshot.inside.attention[0, snapshot.layers].mean(1)
    rows = []
    for layer, from_tokens in zip(snapshot.layers, attention):
        rows.append([(snapshot.names[0], enlarge(picture, side))])
        for row, column in [(r * grid // 4, c * grid // 4) for r in (1, 3) for c in (1, 3)]:
            values = times_uniform(from_tokens[len(from_tokens) - grid**2 + row * grid + column])
            caption = f"{layer_name(layer, snapshot.depth)}\n{TIMES_UNIFORM.span(values)}"
            rows[-1].append((caption, mark(colours(values, side), row, column, grid)))
    title = f"{snapshot.title}: where the framed patch looks, mean of the heads"
    canvas.save_image(sheet(rows, title=title), path)
    return attention


def draw_pooled_attention(snapshot: Snapshot, path: Path) -> torch.Tensor:
    """Where the CLS token, or the pooled one, looks in every image: B x layers x H x N."""
    attention = snapshot.inside.from_pooled[:, snapshot.layers]
    rows = []
    for picture, name, layers in zip(snapshot.pictures, snapshot.names, attention):
        side = tile_side(picture.width)
        rows.append([(name, enlarge(picture, side))])
        for layer, heads in zip(snapshot.layers, layers):
            values = times_uniform(heads.mean(0))
            caption = f"{layer_name(layer, snapshot.depth)}\n{TIMES_UNIFORM.span(values)}"
            rows[-1].append((caption, colours(values, side)))
    title = f"{snapshot.title}: attention from {describe_pool(snapshot.model)}, mean of the heads"
    canvas.save_image(sheet(rows, title=title), path)
    return attention


def draw_hidden(snapshot: Snapshot, path: Path) -> torch.Tensor:
    """The values inside the blocks, of the first image: layers x len(HIDDEN) x N x D."""
    hidden = {name: values[0] for name, values in snapshot.inside.hidden.items()}
    rows = hidden_rows(snapshot.pictures[0], hidden, snapshot.layers, snapshot.depth)
    title = f"{snapshot.title}: root mean square of each token over the width"
    canvas.save_image(sheet(rows, title=title, scale=TIMES_MEAN_SIZE), path)
    parts = [torch.stack([hidden[hidden_name(layer, part)] for part in HIDDEN]) for layer in snapshot.layers]
    return torch.stack(parts)


def draw_features(snapshot: Snapshot, path: Path) -> torch.Tensor:
    """What the head reads of many images, in two dimensions by PCA; returned before it: images x D."""
    images, labels = snapshot.points
    vectors = torch.cat([features(snapshot.model, batch) for batch in images.split(250)]).cpu()
    pca = PCA(2, random_state=0)
    points = pca.fit_transform(vectors.numpy())
    heading = f"PCA of this epoch, {pca.explained_variance_ratio_.sum():.0%} of the variance"
    title = f"{snapshot.title}: {describe_pool(snapshot.model)} by class"
    figures.plot_embeddings([(heading, points)], labels.cpu().numpy(), snapshot.classes, title, path)
    return vectors


VISUALIZERS: dict[str, Callable[[Snapshot, Path], torch.Tensor]] = {
    "token_attn_maps": draw_token_attention,
    "cls_heatmap": draw_pooled_attention,
    "hidden": draw_hidden,
    "cls_dim_reduction": draw_features,
}
