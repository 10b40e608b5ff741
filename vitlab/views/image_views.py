"""The commands of visualize.py that draw one image at a time: each writes pictures and returns their paths."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from vitlab.attention.attribution import attention_gradients, attention_rollout, grad_cam, gradient_rollout
from vitlab.attention.maps import to_grid, token_attention
from vitlab.cli import UserError
from vitlab.files import save_npy
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import (
    OWN_SCALE,
    Tile,
    attention_frames,
    embedded_tiles,
    enlarge,
    hidden_tiles,
    mark,
    overlay,
    sheet,
)
from vitlab.views.view import Subject, View, patch_steps

GIF_FOLDER = Path("attention_map_gif")  # where draw_gif writes by default


def pick_head(values: torch.Tensor, head: int | str) -> torch.Tensor:
    """Of values ... x H x N those of one head, or with "mean" their mean: ... x N."""
    return values.mean(-2) if head == "mean" else values[..., head, :]


def head_name(head: int | str) -> str:
    """How captions call a head."""
    return "mean head" if head == "mean" else f"head {head}"


def pooled_maps(view: View, subject: Subject) -> Iterator[tuple[int, int | str, torch.Tensor]]:
    """(layer, head, attention from the pooled token G x G) for --layers and --heads, by default all."""
    attention = subject.look.from_pooled[0]  # L x H x N
    for layer, head in itertools.product(view.layers("all"), view.heads(range(view.num_heads))):
        yield layer, head, to_grid(pick_head(attention[layer], head))


def draw_gif(view: View, subject: Subject) -> list[Path]:
    """Attention from the pooled token as a GIF with one frame for each layer and head."""
    headed_maps = [
        (f"layer {layer} of 0 to {view.depth - 1}, {head_name(head)}", values)
        for layer, head, values in pooled_maps(view, subject)
    ]
    name, probability = subject.predictions[0]
    captions = (
        f"true class: {subject.label}" if subject.label else subject.name,
        f"taken for {name}, {probability:.1%}",
    )
    title = f"attention from {view.pooled}"
    frames = attention_frames(subject.image, headed_maps, title=title, captions=captions, note=view.name)
    path = view.file(subject.name, ".gif", GIF_FOLDER)
    return [canvas.save_gif(frames, path, frame_ms=view.args.frame_ms, hold=3)]


def draw_maps(view: View, subject: Subject) -> list[Path]:
    """Attention from the pooled token as one sheet, layers x heads."""
    tiles = [
        (f"layer {layer}, {head_name(head)}\nup to {values.max():.2f}", overlay(subject.image, values, 112))
        for layer, head, values in pooled_maps(view, subject)
    ]
    title = view.title(subject, f"attention from {view.pooled}")
    columns = len(tiles) // len(view.layers("all"))
    return [view.save_sheet(f"{subject.name}-maps", tiles, columns=columns, title=title)]


def class_tiles(view: View, subject: Subject, class_map: Callable[[torch.Tensor], torch.Tensor]) -> list[Tile]:
    """One tile for --target, or one for each of the likeliest three classes. class_map draws the evidence for a
    class: int64 of shape 1 -> 1 x G x G."""
    target, probabilities = view.target(), dict(subject.predictions)
    tiles = []
    for name in [target] if target else [name for name, _ in subject.predictions[:3]]:
        index = torch.tensor([view.checkpoint.classes.index(name)], device=subject.batch.device)
        caption = f"for {name}" + (f", {probabilities[name]:.1%}" if name in probabilities else "")
        tiles.append((caption, overlay(subject.image, class_map(index)[0].cpu(), 160)))
    return tiles


def draw_rollout(view: View, subject: Subject) -> list[Path]:
    """Attention rollout up to each layer, of --heads; below it gradient rollout by class, of all heads."""
    heads = [head for head in view.heads(["mean"]) if head != "mean"]
    if heads and "mean" in view.args.heads:
        chosen = " ".join(map(str, view.args.heads))
        raise UserError(f"--heads {chosen}: a rollout is of the mean of some heads; give numbers alone")
    attention = subject.look.attention[:, :, heads or slice(None)]
    heads_line = f"\nheads {', '.join(map(str, heads))}" if heads else ""
    tiles = [("image", enlarge(subject.image, 160))]
    for layer in view.layers("first middle last"):
        values = to_grid(subject.look.weights[0] @ attention_rollout(attention[:, : layer + 1])[0])
        tiles.append((f"rollout, layers 0 to {layer}{heads_line}", overlay(subject.image, values, 160)))
    tiles += [None] * (-len(tiles) % 4)  # gradient rollout starts a new row

    def relevance(target: torch.Tensor) -> torch.Tensor:
        return to_grid(gradient_rollout(*attention_gradients(view.model, subject.batch, target)))

    tiles += [(f"gradient rollout\n{caption}", pixels) for caption, pixels in class_tiles(view, subject, relevance)]
    title = view.title(subject, f"from {view.pooled} back to the patches")
    return [view.save_sheet(f"{subject.name}-rollout", tiles, columns=4, title=title)]


def draw_cls(view: View, subject: Subject) -> list[Path]:
    """Attention from and to the pooled token, as a sheet, and its values behind each layer, as a figure."""
    layers, heads = view.layers("all"), view.heads(["mean"])
    directions = {"from": subject.look.from_pooled[0], "to": subject.look.to_pooled[0]}  # L x H x N
    tiles = []
    for direction, head, layer in itertools.product(directions, heads, layers):
        values = to_grid(pick_head(directions[direction][layer], head))
        caption = f"{direction} {view.pooled}, {head_name(head)}\nlayer {layer}, up to {values.max():.2f}"
        tiles.append((caption, overlay(subject.image, values, 128)))
    title = view.title(subject, f"attention from and to {view.pooled}")
    path = view.save_sheet(f"{subject.name}-cls", tiles, columns=len(layers), title=title)
    weights, hidden = subject.look.weights[0], subject.look.hidden
    values = torch.stack([weights @ hidden[f"blocks.{layer}"][0] for layer in range(view.depth)])  # L x D
    title = view.title(subject, f"values of {view.pooled} behind each layer")
    return [path, figures.plot_token_values(values, title, path.with_name(f"{path.stem}-values.png"))]


def draw_tokens(view: View, subject: Subject) -> list[Path]:
    """Where each patch looks: a sheet, and a GIF that runs over the patches."""
    layers, heads = view.layers("last"), view.heads(["mean"])
    if len(layers) > 1 or len(heads) > 1:
        raise UserError("tokens shows one layer and one head; give one number to --layers and to --heads")
    (layer,), (head,) = layers, heads
    side = view.model.grid_size
    steps = patch_steps(side)
    heading = f"layer {layer}, {head_name(head)}: where the framed patch looks"
    tiles, frames = [], []
    for row, column in itertools.product(steps, steps):
        from_patch = token_attention(subject.look.attention, row * side + column)[0, layer]  # H x N
        values = to_grid(pick_head(from_patch, head))
        framed = partial(mark, row=row, column=column, grid=side)
        caption = f"up to {values.max():.2f}"
        tiles.append((caption, framed(overlay(subject.image, values, 96))))
        pair = [
            (f"row {row}, column {column}", framed(enlarge(subject.image, 224))),
            (caption, framed(overlay(subject.image, values, 224))),
        ]
        frames.append(sheet(pair, columns=2, title=f"{subject.name}, {heading}", note=view.name))
    stem = f"{subject.name}-tokens"
    path = view.save_sheet(stem, tiles, columns=len(steps), title=view.title(subject, heading))
    return [path, canvas.save_gif(frames, view.file(stem, ".gif"), frame_ms=view.args.frame_ms)]


def draw_gradcam(view: View, subject: Subject) -> list[Path]:
    """Grad-CAM for --target or the likeliest classes: on the last block's tokens or those of --layers, and for a
    CNN on its last convolution."""
    convolution = cam_layer(view.checkpoint.config.model, view.model)
    if convolution and view.args.layers:
        raise UserError("--layers are blocks, and a CNN has none; leave the flag out")
    tiles = [("image", enlarge(subject.image, 160))]
    for layer in view.layers("last") if view.args.layers else [None]:
        evidence = partial(grad_cam, view.model, subject.batch, layer=convolution, block=layer)
        prefix = "" if layer is None else f"layer {layer}, "
        tiles += [(prefix + caption, pixels) for caption, pixels in class_tiles(view, subject, evidence)]
    title = view.title(subject, "Grad-CAM of the last convolution" if convolution else "Grad-CAM of the tokens")
    return [view.save_sheet(f"{subject.name}-gradcam", tiles, columns=4, title=title)]


def draw_hidden(view: View, subject: Subject) -> list[Path]:
    """Norms, attention, MLP and output of the blocks, as a sheet and a GIF; with --save_npy the values too."""
    hidden = {name: values[0] for name, values in subject.look.hidden.items()}
    title = view.title(subject, "values inside the blocks: root mean square of each token over the width")
    layers, stem = view.layers("first middle last"), f"{subject.name}-hidden"
    tiles = embedded_tiles(subject.image, hidden, 112)
    for layer in layers:
        tiles += hidden_tiles(hidden, layer, 112)
    path = view.save_sheet(stem, tiles, columns=5, title=title, note=OWN_SCALE)
    frames = [
        sheet(hidden_tiles(hidden, layer, 112), columns=5, title=title, note=OWN_SCALE)
        for layer in (layers if view.args.layers else range(view.depth))
    ]
    paths = [path, canvas.save_gif(frames, view.file(stem, ".gif"), frame_ms=view.args.frame_ms)]
    if view.args.save_npy:
        tokens = {name: values for name, values in hidden.items() if values.ndim == 2}  # N x D, and no attention
        paths += [save_npy(values.numpy(), path.with_name(f"{stem}-{name}.npy")) for name, values in tokens.items()]
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
