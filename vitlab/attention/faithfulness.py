"""Whether a map deserves belief: what its patches' removal does. Shapes as in maps.py."""

import math

import torch
from torch import nn
from torchvision.transforms import v2

from vitlab.attention.attribution import attention_gradients, grad_cam, gradient_rollout, rollout
from vitlab.attention.maps import attention_from, pool_weights, to_grid


def blur(images):
    """The images, so blurred that classes are hard to tell: a Gaussian of a sixth of the side, cut off at
    one and a half of it, which leaves a standard deviation of about an eighth of the side."""
    side = images.shape[-1]
    return v2.functional.gaussian_blur(images, kernel_size=2 * (side // 4) + 1, sigma=side / 6)


@torch.no_grad()
def removal_curve(model, images, baseline, order, targets, steps=16):
    """Probability of each image's class in `targets` while its patches give way to those of
    `baseline`: B x (steps + 1), from none to all of them, in `order` (int64 B x P).

    With the most important patches first this is the deletion curve of Petsiuk et al.
    (arXiv:1806.07421, section 3.2); with images and baseline exchanged, the insertion curve. Of fewer
    patches than steps there is a step for each.
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


def area(curve):
    """Area under curves ... x K of points at even distances over 0..1 (trapezoids)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def attention_maps(model, images, targets=None):
    """Every map of this file for one class of each image (the likeliest where None), a dict name ->
    B x G x G: what is compared for faithfulness."""
    with torch.no_grad():
        logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
        weights = pool_weights(model, hidden)
    targets = logits.argmax(-1) if targets is None else targets
    seen = attention_from(attention, weights).mean(dim=2)  # B x L x N
    return {
        "attention, last block": to_grid(seen[:, -1]),
        "attention, mean of blocks": to_grid(seen.mean(dim=1)),
        "rollout": to_grid(torch.einsum("bq,bqk->bk", weights, rollout(attention))),
        "gradient rollout": to_grid(gradient_rollout(*attention_gradients(model, images, targets))),
        "Grad-CAM": grad_cam(model, images, targets, relu=False),
    }
