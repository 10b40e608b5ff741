"""The commands of visualize.py that draw one image at a time: each writes pictures and returns their paths."""

import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from vitlab.attention.attribution import attention_gradients, attention_rollout, grad_cam, gradient_rollout
from vitlab.attention.maps import times_mean, times_uniform, to_grid, token_attention
from vitlab.cli import UserError
from vitlab.files import save_npy
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import (
    OVERLAY,
    TIMES_MEAN,
    TIMES_MEAN_SIZE,
    TIMES_UNIFORM,
    Scale,
    Tile,
    attention_frames,
    colours,
    enlarge,
    head_name,
    hidden_rows,
    layer_name,
    map_over_image,
    mark,
    sheet,
    side_by_side,
    tile_side,
)
from vitlab.views.view import Subject, View, patch_steps

ROLLOUT = Scale("times uniform, or times the mean", TIMES_UNIFORM.limit, "1")  # of a sheet with both
GIF_FOLDER = Path("attention_map_gif")  # where draw_gif writes by default


def pick_head(values: torch.Tensor, head: int | str) -> torch.Tensor:
    """Of values ... x H x N those of one head, or with "mean" their mean: ... x N."""
    return values.mean(-2) if head == "mean" else values[..., head, :]


def image_tile(subject: Subject, side: int) -> Tile:
    """The image by itself, with its true class if that is known."""
    return f"true class: {subject.label}" if subject.label else "image", enlarge(subject.image, side)


def map_tile(values: torch.Tensor, caption: str, side: int) -> Tile:
    """A map G x G, times uniform, by itself."""
    return f"{caption}\n{TIMES_UNIFORM.span(values)}", colours(values, side)


def pooled_maps(view: View, subject: Subject) -> Iterator[tuple[int, int | str, torch.Tensor]]:
    """(layer, head, attention from the pooled token G x G, times uniform) for --layers and --heads, by default all."""
    attention = subject.look.from_pooled[0]  # L x H x N
    for layer, head in itertools.product(view.layers("all"), view.heads(range(view.num_heads))):
        yield layer, head, times_uniform(pick_head(attention[layer], head))


def draw_gif(view: View, subject: Subject) -> list[Path]:
    """Attention from the pooled token as a GIF with one frame for each layer and head."""
    headed_maps = [
        (f"{layer_name(layer, view.depth)}, {head_name(head, view.num_heads)}", values)
        for layer, head, values in pooled_maps(view, subject)
    ]
    name, probability = subject.predictions[0]
    truth = f"true class: {subject.label}" if subject.label else subject.name
    caption, title = f"{truth}\ntaken for {name}, {probability:.1%}", f"{view.name}, attention from {view.pooled}"
    frames = attention_frames(subject.image, headed_maps, title=title, caption=caption)
    path = view.file(subject.name, ".gif", GIF_FOLDER)
    return [canvas.save_gif(frames, path, frame_ms=view.args.frame_ms)]


def draw_maps(view: View, subject: Subject) -> list[Path]:
    """Attention from the pooled token as one sheet, layers x heads."""
    side, rows = tile_side(subject.image.width), []
    for _, maps in itertools.groupby(pooled_maps(view, subject), key=lambda found: found[0]):
        tiles = [
            map_tile(values, f"{layer_name(layer, view.depth)}, {head_name(head, view.num_heads)}", side)
            for layer, head, values in maps
        ]
        rows.append([image_tile(subject, side), *tiles])
    title = view.title(subject, f"attention from {view.pooled}")
    return [view.save_sheet(f"{subject.name}-maps", rows, title=title)]


def class_tiles(
    view: View, subject: Subject, class_map: Callable[[torch.Tensor], torch.Tensor], heading: str
) -> list[Tile]:
    """One tile for --target, or one for each of the likeliest three classes. class_map draws the evidence for a
    class: int64 of shape 1 -> 1 x G x G."""
    target, probabilities = view.target(), dict(subject.predictions)
    tiles, side = [], tile_side(subject.image.width)
    for name in [target] if target else [name for name, _ in subject.predictions[:3]]:
        index = torch.tensor([view.checkpoint.classes.index(name)], device=subject.batch.device)
        caption = f"{heading}\nfor {name}" + (f", {probabilities[name]:.1%}" if name in probabilities else "")
        values = times_mean(class_map(index)[0].cpu())
        tiles.append(map_over_image(subject.image, values, side, caption, TIMES_MEAN))
    return tiles


def draw_rollout(view: View, subject: Subject) -> list[Path]:
    """Attention rollout up to each layer, of --heads; below it gradient rollout by class, of all heads."""
    heads = [head for head in view.heads(["mean"]) if head != "mean"]
    if heads and "mean" in view.args.heads:
        chosen = " ".join(map(str, view.args.heads))
        raise UserError(f"--heads {chosen}: a rollout is of the mean of some heads; give numbers alone")
    attention = subject.look.attention[:, :, heads or slice(None)]
    of_heads = f"heads {', '.join(str(head + 1) for head in heads)} of {view.num_heads}" if heads else "all heads"
    side = tile_side(subject.image.width)
    tiles = [image_tile(subject, side)]
    for layer in view.layers("first middle last"):
        values = times_uniform(subject.look.weights[0] @ attention_rollout(attention[:, : layer + 1])[0])
        through = f"layer 1 of {view.depth}" if layer == 0 else f"layers 1 to {layer + 1} of {view.depth}"
        tiles.append(map_over_image(subject.image, values, side, f"rollout, {through}\n{of_heads}"))

    def relevance(target: torch.Tensor) -> torch.Tensor:
        gradients = attention_gradients(view.model, subject.batch, target)
        return to_grid(gradient_rollout(*gradients))

    tiles += class_tiles(view, subject, relevance, "gradient rollout")
    title = view.title(subject, f"from {view.pooled} back to the patches")
    return [view.save_sheet(f"{subject.name}-rollout", [tiles], title=title, note=OVERLAY, scale=ROLLOUT)]


def draw_cls(view: View, subject: Subject) -> list[Path]:
    """Attention from and to the pooled token, as a sheet, and its values after each layer, as a figure."""
    layers, heads = view.layers("all"), view.heads(["mean"])
    directions = {"from": subject.look.from_pooled[0], "to": subject.look.to_pooled[0]}  # L x H x N
    side, rows = tile_side(subject.image.width), []
    for direction, head in itertools.product(directions, heads):
        tiles = [image_tile(subject, side)]
        for layer in layers:
            values = times_uniform(pick_head(directions[direction][layer], head))
            caption = f"{direction} {view.pooled}, {head_name(head, view.num_heads)}\n{layer_name(layer, view.depth)}"
            tiles.append(map_tile(values, caption, side))
        rows.append(tiles)
    path = view.save_sheet(
        f"{subject.name}-cls", rows, title=view.title(subject, f"attention from and to {view.pooled}")
    )
    weights, hidden = subject.look.weights[0], subject.look.hidden
    values = torch.stack([weights @ hidden[f"blocks.{layer}"][0] for layer in range(view.depth)])  # L x D
    title = view.title(subject, f"values of {view.pooled} after each layer")
    return [path, figures.plot_token_values(values, title, path.with_name(f"{path.stem}-values.png"))]


def draw_tokens(view: View, subject: Subject) -> list[Path]:
    """Where each patch looks: a sheet, and a GIF that runs over the patches."""
    layers, heads = view.layers("last"), view.heads(["mean"])
    if len(layers) > 1 or len(heads) > 1:
        raise UserError("tokens shows one layer and one head; give one number to --layers and to --heads")
    (layer,), (head,) = layers, heads
    grid, side = view.model.grid_size, tile_side(subject.image.width)
    steps = patch_steps(grid)
    of = f"{layer_name(layer, view.depth)}, {head_name(head, view.num_heads)}"
    heading = f"where the framed patch looks, {of}"
    rows, frames = [], []
    for row in steps:
        framed_row = enlarge(subject.image, side)
        for column in steps:
            framed_row = mark(framed_row, row, column, grid)
        rows.append([(f"row {row + 1}", framed_row)])
        for column in steps:
            from_patch = token_attention(subject.look.attention, row * grid + column)[0, layer]  # H x N
            values = times_uniform(pick_head(from_patch, head))
            framed = partial(mark, row=row, column=column, grid=grid)
            place = f"row {row + 1}, column {column + 1}"
            caption, pixels = map_tile(values, place, side)
            rows[-1].append((caption, framed(pixels)))
            captions = (subject.label or subject.name, place)
            tiles = side_by_side(subject.image, values, side, captions)
            frames.append(sheet([[(text, framed(pixels)) for text, pixels in tiles]], title=f"{view.name}, {heading}"))
    stem = f"{subject.name}-tokens"
    path = view.save_sheet(stem, rows, title=view.title(subject, heading))
    return [path, canvas.save_gif(frames, view.file(stem, ".gif"), frame_ms=view.args.frame_ms)]


def draw_gradcam(view: View, subject: Subject) -> list[Path]:
    """Grad-CAM for --target or the likeliest classes: on the last block's tokens or those of --layers, and for a
    CNN on its last convolution."""
    convolution = cam_layer(view.checkpoint.config.model, view.model)
    if convolution and view.args.layers:
        raise UserError("--layers are blocks, and a CNN has none; leave the flag out")
    rows = []
    for layer in view.layers("last") if view.args.layers else [None]:
        evidence = partial(grad_cam, view.model, subject.batch, layer=convolution, block=layer)
        heading = "Grad-CAM" if layer is None else f"Grad-CAM, {layer_name(layer, view.depth)}"
        tiles = class_tiles(view, subject, evidence, heading)
        rows.append([image_tile(subject, tile_side(subject.image.width)), *tiles])
    title = view.title(subject, "Grad-CAM of the last feature map" if convolution else "Grad-CAM of the tokens")
    return [view.save_sheet(f"{subject.name}-gradcam", rows, title=title, note=OVERLAY, scale=TIMES_MEAN)]


def draw_hidden(view: View, subject: Subject) -> list[Path]:
    """Norms, attention, MLP and output of the blocks, as a sheet and a GIF; with --save_npy the values too."""
    hidden = {name: values[0] for name, values in subject.look.hidden.items()}
    title = view.title(subject, "values inside the blocks: root mean square of each token over the width")
    stem, style = f"{subject.name}-hidden", {"title": title, "scale": TIMES_MEAN_SIZE}
    rows = hidden_rows(subject.image, hidden, view.layers("first middle last"), view.depth)
    path = view.save_sheet(stem, rows, **style)
    rows = hidden_rows(subject.image, hidden, view.layers("all"), view.depth)
    frames = [sheet([row], **style) for row in rows]
    paths = [path, canvas.save_gif(frames, view.file(stem, ".gif"), frame_ms=view.args.frame_ms)]
    if view.args.save_npy:
        blocks = re.compile(rf"blocks\.({'|'.join(map(str, view.layers('all')))})(\.|$)|(?!blocks)")
        tokens = {name: values for name, values in hidden.items() if values.ndim == 2 and blocks.match(name)}
        paths += [
            save_npy(values.numpy(), path.with_name(f"{path.stem}-{name}.npy")) for name, values in tokens.items()
        ]
    return paths


IMAGE_VIEWS: dict[str, Callable[[View, Subject], list[Path]]] = {
    "gif": draw_gif,
    "maps": draw_maps,
    "rollout": draw_rollout,
    "cls": draw_cls,
    "tokens": draw_tokens,
    "gradcam": draw_gradcam,
    "hidden": draw_hidden,
}
