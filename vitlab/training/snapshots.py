"""Pictures of the same few images while a model learns: the --visualizers of train.py.

token_attn_maps: where four patches of the first image look; cls_heatmap: where the CLS token looks
(or what the model pools instead, describe_pool); hidden: values inside the blocks, of the first
image; cls_dim_reduction: what the head reads of up to 1,000 images, in two dimensions, by class, with
axes of each epoch's own. The images are from the validation split, or, without one, from the training
images, not augmented.
"""

import re

import torch
from PIL import Image

from vitlab.attention.maps import attention_from, describe_pool, features, pool_weights, to_grid
from vitlab.cli import UserError
from vitlab.datasets.images import to_image
from vitlab.files import save_npy
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import (
    HIDDEN,
    OWN_SCALE,
    SCALE,
    embedded_tiles,
    enlarge,
    hidden_name,
    hidden_tiles,
    mark,
    overlay,
    sheet,
)

IMAGES, POINTS = 4, 1000


class Snapshots:
    """Writes OUTPUT/visualizers/KIND-epoch-001.png for each of config.visualizers when asked to, and
    at the end OUTPUT/KIND.gif over the epochs.

    epoch: the finished epochs; pictures of later ones, of a run that is begun again there, are removed.
    Raises UserError where the model has no attention to show, or the data set cannot be sampled.
    """

    def __init__(self, config, sets, model, epoch=0):
        self.config, self.classes = config, sets.classes
        self.folder = config.output_folder / "visualizers"
        for path in self.folder.glob("*-epoch-*"):
            if int(re.search(r"-epoch-(\d+)", path.name)[1]) > epoch:
                path.unlink()
        if not config.visualizers:
            return
        batches = sets.val or sets.train
        if not hasattr(model, "blocks") or not hasattr(batches, "sample"):
            raise UserError("--visualizers need a VisionTransformer and a data set of data.py; leave the flag out")
        self.images, self.labels = batches.sample(IMAGES)
        self.points = batches.sample(POINTS) if "cls_dim_reduction" in config.visualizers else None
        self.pictures = [to_image(image, sets.mean, sets.std) for image in self.images]

    @torch.no_grad()
    def take(self, model, epoch):
        """Write the pictures of a model after an epoch; a dict kind -> path."""
        if not self.config.visualizers:
            return {}
        was_training = model.training
        model.eval()
        _, attention, hidden = model(self.images, return_attention=True, return_hidden=True)
        seen = attention_from(attention, pool_weights(model, hidden)).cpu()
        self.attention, self.seen = attention.cpu(), seen
        self.values = {name: values[0].cpu() for name, values in hidden.items()}
        self.pooled = describe_pool(model)
        written = {}
        for kind in self.config.visualizers:
            path = self.folder / f"{kind}-epoch-{epoch:03d}.png"
            values = getattr(self, kind)(model, f"{self.config.folder_name}, epoch {epoch}", path)
            written[kind] = path
            if self.config.save_npy:
                save_npy(values, path.with_suffix(".npy"))
        model.train(was_training)
        return written

    def finish(self):
        """Write a GIF over the epochs for each kind; their paths."""
        written = []
        for kind in self.config.visualizers:
            frames = [Image.open(path).convert("RGB") for path in sorted(self.folder.glob(f"{kind}-epoch-*.png"))]
            if frames:
                path = self.config.output_folder / f"{kind}.gif"
                written.append(canvas.save_gif(frames, path, frame_ms=500, hold=3))
        return written

    # Each writes its picture to `path` and returns the numbers in it

    def token_attn_maps(self, model, title, path):  # layers x N x N
        side, maps = model.grid_size, self.attention[0, list(self.config.visualize_layers)].mean(1)
        tiles = []
        for layer, rows in zip(self.config.visualize_layers, maps):
            for row, column in [(r * side // 4, c * side // 4) for r in (1, 3) for c in (1, 3)]:
                values = to_grid(rows[len(rows) - side**2 + row * side + column])
                picture = mark(overlay(self.pictures[0], values, 128), row, column, side)
                tiles.append((f"layer {layer}, up to {values.max():.2f}", picture))
        words = f"{title}: where the framed patch looks, mean of the heads"
        canvas.save_image(sheet(tiles, columns=4, title=words, note=SCALE), path)
        return maps

    def cls_heatmap(self, model, title, path):  # images x layers x heads x N
        seen, tiles = self.seen[:, list(self.config.visualize_layers)], []
        for picture, label, maps in zip(self.pictures, self.labels.tolist(), seen):
            tiles.append((self.classes[label], enlarge(picture, 128)))
            for layer, heads in zip(self.config.visualize_layers, maps):
                values = to_grid(heads.mean(0))
                words = f"layer {layer}, up to {values.max():.2f}"
                tiles.append((words, overlay(picture, values, 128)))
        words = f"{title}: attention from {self.pooled}, mean of the heads"
        canvas.save_image(sheet(tiles, columns=1 + seen.shape[1], title=words, note=SCALE), path)
        return seen

    def hidden(self, model, title, path):  # layers x len(HIDDEN) x N x D
        tiles = embedded_tiles(self.pictures[0], self.values, 112)
        for layer in self.config.visualize_layers:
            tiles += hidden_tiles(self.values, layer, 112)
        words = f"{title}: root mean square of each token over the width"
        canvas.save_image(sheet(tiles, columns=len(HIDDEN), title=words, note=OWN_SCALE), path)
        return [
            [self.values[hidden_name(layer, part)].numpy() for part in HIDDEN] for layer in self.config.visualize_layers
        ]

    def cls_dim_reduction(self, model, title, path):  # images x D
        from sklearn.decomposition import PCA

        images, labels = self.points
        read = torch.cat([features(model, batch) for batch in images.split(250)]).cpu().numpy()
        pca = PCA(2, random_state=0)
        points = pca.fit_transform(read)
        words = f"PCA of this epoch, {pca.explained_variance_ratio_.sum():.0%} of the variance"
        labels = labels.cpu().numpy()
        figures.plot_embeddings([(words, points)], labels, self.classes, f"{title}: {self.pooled} by class", path)
        return read
