"""The frozen filters with which a whitened stem begins."""

import torch
import torch.nn.functional as F
from torch import nn

from vitlab.datasets.splits import Splits


@torch.no_grad()
def set_whitening(model: nn.Module, sets: Splits, images: int = 5000) -> None:
    """Give a whitened ConvStem its filters: the principal components of 2 x 2 patches of the training images, each
    scaled to unit variance, and their negatives (Jordan, arXiv:2404.00498, section 3.2). Other models stay as they are.
    """
    conv = getattr(getattr(model, "patch_embed", None), "whiten", None)
    if conv is None:
        return
    pixels = sets.train.sample(images)[0] if hasattr(sets.train, "sample") else next(iter(sets.train))[0]  # normalised
    variances, components = torch.linalg.eigh(second_moments(pixels).cpu())  # MPS of torch 2.9 to 2.11 has no eigh
    filters = (components / (variances + 5e-4).sqrt()).T.reshape(-1, *conv.weight.shape[1:])
    conv.weight.copy_(torch.cat([filters, -filters]))


def second_moments(pixels: torch.Tensor, at_once: int = 250) -> torch.Tensor:
    """E[x x^T] of all 2 x 2 patches x of images B x C x H x W: 4C x 4C. So many images at once, since their patches
    take eight times the memory of the pixels."""
    total = torch.zeros((), device=pixels.device)
    for some in pixels.split(at_once):
        patches = F.unfold(some, 2).transpose(1, 2).flatten(0, 1)  # n x 4C
        total = total + patches.T @ patches
    height, width = pixels.shape[-2:]
    return total / (len(pixels) * (height - 1) * (width - 1))
