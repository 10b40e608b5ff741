"""What a trained model looks at: tensors in, tensors out. Shapes as in model.py, with P patches, and G
the side of their grid, P = G * G.

    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    seen = attention_from(attention, pool_weights(model, hidden))    # B x L x H x N: where CLS looks
    maps = to_grid(seen[:, -1].mean(1))                              # B x G x G: last block, mean head

"From" and "to" are about the token that the head reads: CLS, or, with another pooling, the tokens in
the shares in which they are pooled (pool_weights).
"""

import math
from dataclasses import dataclass

import torch

from model import VisionTransformer


@dataclass(frozen=True)
class Look:
    """What a model did with a batch of images: all that is drawn of its attention comes from here."""

    logits: torch.Tensor  # B x C
    attention: torch.Tensor  # B x L x H x N x N, rows sum to 1
    hidden: dict[str, torch.Tensor]  # of return_hidden, by name
    weights: torch.Tensor  # B x N: pool_weights

    @property
    def from_pooled(self) -> torch.Tensor:
        """How much the pooled token attends to each token: B x L x H x N."""
        return attention_from(self.attention, self.weights)

    @property
    def to_pooled(self) -> torch.Tensor:
        """How much each token attends to the pooled one: B x L x H x N."""
        return attention_to(self.attention, self.weights)


@torch.no_grad()
def look(model: VisionTransformer, images: torch.Tensor) -> Look:
    """Look into a model while it sees images B x in_chans x img_size x img_size."""
    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    return Look(logits, attention, hidden, pool_weights(model, hidden))


def pool_weights(model, hidden):
    """The share of each token in what the head reads, B x N, rows summing to 1, of a model and what
    return_hidden gave: 1 for CLS (pool "cls"), the same for each patch ("mean"), or the learned
    pooling weights ("seq": arXiv:2104.05704, equation 3)."""
    x = hidden[f"blocks.{len(model.blocks) - 1}"]  # B x N x D
    if model.pool == "seq":
        return model.seq_pool(model.norm(x)).softmax(dim=1).squeeze(-1)
    weights = torch.zeros(x.shape[:2], dtype=x.dtype, device=x.device)
    if model.pool == "cls":
        weights[:, 0] = 1
    else:
        weights[:, 1:] = 1 / (x.shape[1] - 1)
    return weights


def describe_pool(model):
    """How titles call what pool_weights stands for."""
    return {"cls": "CLS", "mean": "the mean token", "seq": "the pooled token"}[model.pool]


def attention_from(attention, weights):
    """How much the pooled token attends to each token: B x L x H x N of attention B x L x H x N x N
    and pool_weights B x N; rows sum to 1."""
    return torch.einsum("bq,blhqk->blhk", weights, attention)


def attention_to(attention, weights):
    """How much each token attends to the pooled one: B x L x H x N."""
    return torch.einsum("blhqk,bk->blhq", attention, weights)


def to_grid(tokens):
    """Values ... x N at the places of the patches: ... x G x G. The CLS token's own, where there is
    one (N is then no square), is left out."""
    side = math.isqrt(tokens.shape[-1])
    patches = tokens if side**2 == tokens.shape[-1] else tokens[..., 1:]
    return patches.reshape(*tokens.shape[:-1], side, side)


def token_attention(attention, patch):
    """Where one patch looks, by its place (row * G + column): B x L x H x N.

    Raises IndexError where there is no such patch.
    """
    tokens = attention.shape[-1]
    side = math.isqrt(tokens)
    if not 0 <= patch < side**2:
        raise IndexError(f"patch {patch} is not there: {side} x {side} patches are 0 to {side**2 - 1}")
    return attention[..., tokens - side**2 + patch, :]


def read_out(model, tokens, weights):
    """What the head reads, B x D: the last block's tokens B x N x D in those shares, B x N, normed."""
    return model.fc_norm((weights[..., None] * model.norm(tokens)).sum(dim=1))


@torch.no_grad()
def features(model, images):
    """What the head reads of the images, B x D."""
    _, hidden = model(images, return_hidden=True)
    return read_out(model, hidden[f"blocks.{len(model.blocks) - 1}"], pool_weights(model, hidden))
