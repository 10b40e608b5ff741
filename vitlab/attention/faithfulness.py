"""Is a map faithful to the model? Remove the patches that it ranks first and see whether the prediction falls.
Shapes as in maps.py."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torchvision.transforms import v2

from model import VisionTransformer
from vitlab.attention.attribution import attention_gradients, attention_rollout, grad_cam, gradient_rollout
from vitlab.attention.maps import attention_from, look, to_grid
from vitlab.hardware import float32_as, send

# (what a removed patch is replaced by, kind of curve)
CURVE_KINDS = [(baseline, kind) for baseline in ("mean", "blur") for kind in ("deletion", "insertion")]


def blur(images: torch.Tensor) -> torch.Tensor:
    """Images B x channels x S x S, blurred until classes are hard to tell: by a Gaussian of S/6, cut off at 1.5 times
    that, which leaves a standard deviation of about S/8."""
    side = images.shape[-1]
    return v2.functional.gaussian_blur(images, kernel_size=2 * (side // 4) + 1, sigma=side / 6)


@torch.no_grad()
def removal_curve(
    model: nn.Module,
    images: torch.Tensor,
    baseline: torch.Tensor,
    order: torch.Tensor,
    targets: torch.Tensor,
    steps: int = 16,
) -> torch.Tensor:
    """The probability of each image's class in `targets` while its patches are replaced by those of `baseline`:
    B x (steps + 1), from none to all of them. There is never more than one step per patch.

    order: the patches in the order of their removal, int64 B x P. With the most important patch first, this
    is the deletion curve of Petsiuk et al. (arXiv:1806.07421, section 3.2); with images and baseline
    exchanged, it is the insertion curve.
    """
    B, P = order.shape
    steps = min(steps, P)
    rank = order.argsort(dim=1).view(B, 1, math.isqrt(P), -1)  # each patch's place in the order
    rank = nn.functional.interpolate(rank.float(), size=images.shape[-2:])
    curve = []
    for step in range(steps + 1):
        mixed = torch.where(rank < round(P * step / steps), baseline, images)
        curve.append(model(mixed).float().softmax(-1).gather(1, targets[:, None]).squeeze(1))
    return torch.stack(curve, dim=1)


def area(curve: torch.Tensor) -> torch.Tensor:
    """The area under curves ... x K whose points are evenly spaced over 0..1, by trapezoids."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def attention_maps(
    model: VisionTransformer, images: torch.Tensor, targets: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """All maps that are compared for faithfulness, name -> B x G x G, for a class of each image (`targets`, int64
    B; default: the predicted ones)."""
    inside = look(model, images)
    targets = inside.logits.argmax(-1) if targets is None else targets
    heads = inside.from_pooled.mean(dim=2)  # B x L x N
    return {
        "attention, last block": to_grid(heads[:, -1]),
        "attention, mean of blocks": to_grid(heads.mean(dim=1)),
        "rollout": to_grid(attention_from(attention_rollout(inside.attention), inside.weights)),
        "gradient rollout": to_grid(gradient_rollout(*attention_gradients(model, images, targets))),
        "Grad-CAM": grad_cam(model, images, targets, relu=False),
    }


@float32_as("ieee")
def measure_faithfulness(
    model: VisionTransformer,
    batches: Iterable[torch.Tensor],
    *,
    random_orders: int = 10,
) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Removal curves of the predicted class in the orders of all maps, and, as "random", the mean curve of random
    orders: for each of CURVE_KINDS a dict, name of the map -> (images x points).

    batches: normalised images, so that 0 is the mean colour of the training images.
    """
    generator = torch.Generator().manual_seed(0)
    curves = {key: {} for key in CURVE_KINDS}  # -> name -> list of B x points
    for images in batches:
        with torch.no_grad():
            targets = model(images).argmax(-1)
        maps = {name: values.flatten(1) for name, values in attention_maps(model, images, targets).items()}
        orders = {name: [values.argsort(dim=1, descending=True, stable=True)] for name, values in maps.items()}
        draws = torch.rand(random_orders, len(images), model.grid_size**2, generator=generator)
        orders["random"] = list(send(draws.argsort(dim=-1), images.device))
        for baseline, kind in CURVE_KINDS:
            removed = blur(images) if baseline == "blur" else torch.zeros_like(images)
            start, end = (images, removed) if kind == "deletion" else (removed, images)
            for name, several in orders.items():
                parts = [removal_curve(model, start, end, order, targets) for order in several]
                curves[baseline, kind].setdefault(name, []).append(torch.stack(parts).mean(0))
    return {key: {name: torch.cat(parts).cpu() for name, parts in by_map.items()} for key, by_map in curves.items()}
