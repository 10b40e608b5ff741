"""The commands of visualize.py about the model as a whole: each writes files and returns their paths."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from vitlab.attention.faithfulness import CURVE_KINDS, area, measure_faithfulness
from vitlab.attention.maps import features
from vitlab.checkpoint import read_checkpoint
from vitlab.cli import UserError
from vitlab.evaluation import metrics
from vitlab.files import write_json
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import Scale, colours, enlarge, mark, tile_side
from vitlab.views.view import View, patch_steps

MOST_FILTERS = 128  # that are drawn


def silhouette(points: np.ndarray, labels: np.ndarray) -> float | None:
    """The silhouette score of points n x D by class, from -1 to 1; None where it is not defined: of a single class, or
    if no two images are of the same class."""
    return float(silhouette_score(points, labels)) if 1 < len(np.unique(labels)) < len(labels) else None


def draw_embeddings(view: View) -> list[Path]:
    """What the head reads of the test images, in two dimensions, by class: PCA and t-SNE, with silhouette scores."""
    images, labels = view.test_images(low=5, default=2000)
    batches = tqdm(images.split(250), leave=False, disable=None)
    points = torch.cat([features(view.model, batch) for batch in batches]).cpu().numpy()  # n x D
    labels = labels.cpu().numpy()
    panels, scores = [], {"features": silhouette(points, labels)}
    if view.args.method != "tsne":
        pca = PCA(2, random_state=0)
        projected = pca.fit_transform(points)
        panels.append((f"PCA, {pca.explained_variance_ratio_.sum():.0%} of the variance", projected))
        scores["pca"] = silhouette(projected, labels)
    if view.args.method != "pca":
        perplexity = min(30, len(points) // 3)  # it is to be well below the number of points
        projected = TSNE(2, random_state=0, init="pca", perplexity=perplexity).fit_transform(points)
        panels.append((f"t-SNE, perplexity {perplexity}", projected))
        scores["tsne"] = silhouette(projected, labels)
    title = f"{view.name}: {view.pooled} of {len(labels)} test images"
    if scores["features"] is None:
        print("no silhouette: that needs two classes, and two images of one class")
    else:
        print(", ".join(f"silhouette of {name} {score:.4f}" for name, score in scores.items()))
        title += f", silhouette {scores['features']:.3f}"
    path = view.file(f"embeddings-{len(labels)}-images", ".png")
    figures.plot_embeddings(panels, labels, view.checkpoint.classes, title, path)
    return [path, write_json(path.with_suffix(".json"), {"silhouette": scores, "n": len(labels)})]


def draw_positions(view: View) -> list[Path]:
    """Cosine similarity of each position embedding with all others (Dosovitskiy et al., figure 7). Raises UserError if
    the model has one patch."""
    side = view.model.grid_size
    if side == 1:
        raise UserError(f"{view.name} has one patch, and no other position to compare it with; choose another model")
    embeddings = view.model.pos_embed[0, -(side**2) :].detach().cpu()  # P x D
    similarity = cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)  # P x P
    others = similarity[~torch.eye(side**2, dtype=torch.bool)]  # its own is 1
    scale = Scale("cosine similarity", others.max().item(), low=others.min().item())
    steps = patch_steps(side)
    rows = []
    for row in steps:
        rows.append([])
        for column in steps:
            pixels = colours(similarity[row * side + column].view(side, side), tile_side(side, 96), scale)
            rows[-1].append((f"row {row + 1}, column {column + 1}", mark(pixels, row, column, side)))
    title = f"{view.name}: cosine similarity of the framed patch's position embedding with the others"
    return [view.save_sheet("positions", rows, title=title, scale=scale)]


def filter_pixels(values: torch.Tensor) -> np.ndarray:
    """A filter in_chans x h x w as pixels, enlarged; 0 is grey, and the largest weight black or white."""
    values = (values / values.abs().max() / 2 + 0.5).permute(1, 2, 0).expand(-1, -1, 3)
    return enlarge((values.numpy() * 255).round().astype(np.uint8), tile_side(len(values), 56))


def draw_filters(view: View) -> list[Path]:
    """The filters of the patch embedding, or of the stem's first convolution. If they are as large as patches, their
    principal components come first (Dosovitskiy et al., figure 7)."""
    name, weight = next((name, weight) for name, weight in view.model.named_parameters() if weight.ndim == 4)
    weight = weight.detach().cpu()  # D x in_chans x h x w
    filters, note = weight.flatten(1), "Grey is 0, each filter scaled by itself"
    rows = []
    if filters.shape[1] > 9 * view.model.in_chans:  # larger than 3 x 3
        _, strengths, components = torch.linalg.svd(filters - filters.mean(0), full_matrices=False)
        shares = (strengths**2 / (strengths**2).sum())[:16]
        rows.append(
            [(f"{share:.1%}", filter_pixels(part.view_as(weight[0]))) for share, part in zip(shares, components)]
        )
        note += "; first row: principal components, with their share of the variance"
    if len(weight) > MOST_FILTERS:
        note += f"; the first {MOST_FILTERS} of {len(weight)} filters"
    tiles = [(str(i), filter_pixels(values)) for i, values in enumerate(weight[:MOST_FILTERS], start=1)]
    rows += [tiles[i : i + 16] for i in range(0, len(tiles), 16)]
    title = f"{view.name}: the filters {name.removesuffix('.weight')}"
    return [view.save_sheet("filters", rows, title=title, note=note, scale=None)]


def draw_training(view: View) -> list[Path]:
    """The curves of the run, animated."""
    history, last = view.checkpoint.history, view.checkpoint.path / "last.pt"
    if last.is_file():  # the history in best.pt ends with the best epoch
        history = read_checkpoint(last)["history"]
    if not history:
        raise UserError(f"{view.args.model_path} holds no history of a training; name a run of train.py")
    frames = figures.training_frames(history, title=view.name, soft_labels=view.checkpoint.config.soft_labels)
    return [canvas.save_gif(frames, view.file("training", ".gif"), frame_ms=view.args.frame_ms, hold=5)]


def draw_faithfulness(view: View) -> list[Path]:
    """Deletion and insertion curves of all maps against random orders: a table, a figure and the numbers."""
    images, _ = view.test_images(low=2, default=300)
    batches = tqdm(images.split(50), leave=False, disable=None, unit="batch")
    curves = measure_faithfulness(view.model, batches)
    rows = faithfulness_rows(curves)
    print_faithfulness(rows)
    means = {key: {name: values.mean(0).tolist() for name, values in by_map.items()} for key, by_map in curves.items()}
    path = view.file(f"faithfulness-{len(images)}-images", ".png")
    title = f"{view.name}: probability of the predicted class, {len(images)} test images"
    figures.plot_faithfulness(means, title, path)
    report = {"name": view.name, "n": len(images), "rows": rows}
    report["curves"] = {"_".join(key): by_map for key, by_map in means.items()}
    return [path, write_json(path.with_suffix(".json"), report)]


def faithfulness_rows(curves: dict[tuple[str, str], dict[str, torch.Tensor]]) -> list[dict]:
    """One row per map, from measure_faithfulness: for each kind of curve the mean area below it, its difference to
    that of random orders, and the difference's 95 % interval over the images."""
    rows = []
    for name in curves[CURVE_KINDS[0]]:
        row = {"map": name}
        for key, by_map in curves.items():
            areas, random_areas = area(by_map[name]), area(by_map["random"])
            row["_".join(key)] = cell = {"area": areas.mean().item()}
            if name != "random":
                cell["difference"] = (areas - random_areas).mean().item()
                cell["ci95"] = metrics.bootstrap_mean(areas - random_areas)
        rows.append(row)
    return rows


def print_faithfulness(rows: list[dict]) -> None:
    """Print the rows as a table."""
    print(f"{'map':<26}" + "".join(f"{kind} {baseline}".rjust(34) for baseline, kind in CURVE_KINDS))
    for row in rows:
        line = f"{row['map']:<26}"
        for key in CURVE_KINDS:
            cell = row["_".join(key)]
            text = f"{cell['area']:.3f}"
            if "ci95" in cell:
                low, high = cell["ci95"]
                text += f" ({cell['difference']:+.3f}; {low:+.3f} to {high:+.3f})"
            line += text.rjust(34)
        print(line)
    print("area under the curve (difference to ten random orders, with its 95 % interval)")


MODEL_VIEWS: dict[str, Callable[[View], list[Path]]] = {
    "embeddings": draw_embeddings,
    "positions": draw_positions,
    "filters": draw_filters,
    "training": draw_training,
    "faithfulness": draw_faithfulness,
}
