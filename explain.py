"""Attention -> maps: tensors in, tensors out.

Shapes as in model.py: attention B x L x H x N x N with CLS the first of the N tokens.
"""


def cls_attention(attention, layer=-1):
    """Where the CLS token looks in one block, mean over the heads: B x G x G, each map summing to 1
    less what CLS gives itself.

    Raises IndexError where the model has no such layer.
    """
    rows = attention[:, layer].mean(dim=1)[:, 0, 1:]  # B x P
    side = round(rows.shape[-1] ** 0.5)
    return rows.reshape(-1, side, side)
