"""Patch dropout: training on a part of each image's patches, which costs less."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from model import VisionTransformer


def drop_rate(rate: float, epoch: int, epochs: int) -> float:
    """The share of the patches that is left out in an epoch, counted from 0: `rate` in the first, then along a line
    down to 0 in the last."""
    return rate * (1 - epoch / max(1, epochs - 1))


@contextlib.contextmanager
def patches_dropped(model: VisionTransformer, rate: float) -> Iterator[None]:
    """Within this context the blocks of the model see a share 1 - rate of each image's patches, drawn anew for each
    image, and CLS (PatchDropout, Liu et al., arXiv:2208.07220, section 3)."""

    def drop(block: torch.nn.Module, inputs: tuple) -> tuple:
        tokens, *others = inputs
        return keep_patches(tokens, 1 - rate, model.has_cls), *others

    with contextlib.ExitStack() as hooks:
        if rate:
            hooks.callback(model.blocks[0].register_forward_pre_hook(drop).remove)
        yield


def keep_patches(tokens: torch.Tensor, share: float, has_cls: bool) -> torch.Tensor:
    """Of tokens B x N x D (first CLS, if has_cls): CLS, and a random share of the patches, at least one."""
    patches = tokens.shape[1] - has_cls
    kept = max(1, round(patches * share))
    rows = torch.rand(len(tokens), patches, device=tokens.device).topk(kept).indices + int(has_cls)
    rows = F.pad(rows, (1, 0)) if has_cls else rows  # CLS is row 0
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
