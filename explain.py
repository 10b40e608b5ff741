"""Attention -> maps: tensors in, tensors out. Shapes as in model.py."""

import math


def cls_attention(attention, layer=-1):
    """Where the CLS token looks in one block, mean over the heads: B x G x G of attention
    B x L x H x N x N; each map sums to 1 less what CLS gives itself. Without a CLS token (N is then
    a square) it is the mean over all tokens.

    Raises IndexError where the model has no such layer.
    """
    mean = attention[:, layer].mean(dim=1)  # B x N x N
    side = math.isqrt(mean.shape[-1])
    rows = mean.mean(dim=1) if side**2 == mean.shape[-1] else mean[:, 0, 1:]  # B x P
    return rows.reshape(-1, side, side)
