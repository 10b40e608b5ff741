"""What a Vision Transformer attends to: tensors in, tensors out.

    attention = look(model, images)                    # B images, in evaluation mode
    cls = attention.from_pooled                        # B x L x H x N: where the CLS token looks
    maps = to_grid(cls[:, -1].mean(1))                 # B x G x G: last block, mean of the heads

"From" and "to" refer to the token that the head reads. It is CLS, or, with another pooling, the weighted mean
of the tokens, by the weights of pool_weights: the "pooled token".

Shapes as in model.py: B images, L blocks, H heads, N tokens, D width, C classes; P patches on a grid of
G x G = P places.
"""

import math
from dataclasses import dataclass

import torch

from model import VisionTransformer


@dataclass(frozen=True)
class Look:
    """What a model computed for a batch of images. Everything drawn of its attention comes from here."""

    logits: torch.Tensor  # B x C
    attention: torch.Tensor  # B x L x H x N x N; rows sum to 1
    hidden: dict[str, torch.Tensor]  # by name, see model.py's return_hidden
    weights: torch.Tensor  # B x N, see pool_weights

    @property
    def from_pooled(self) -> torch.Tensor:
        """How much the pooled token attends to each token: B x L x H x N."""
        return attention_from(self.attention, self.weights)

    @property
    def to_pooled(self) -> torch.Tensor:
        """How much each token attends to the pooled one: B x L x H x N."""
        return attention_to(self.attention, self.weights)

    def cpu(self) -> "Look":
        """The same as float32 on the CPU, for drawing."""
        hidden = {name: values.float().cpu() for name, values in self.hidden.items()}
        return Look(self.logits.float().cpu(), self.attention.float().cpu(), hidden, self.weights.float().cpu())


@torch.no_grad()
def look(model: VisionTransformer, images: torch.Tensor) -> Look:
    """Run a model on images B x in_chans x img_size x img_size and keep what happens inside."""
    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    return Look(logits, attention, hidden, pool_weights(model, hidden))


def last_tokens(model: VisionTransformer, hidden: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output of the last block, B x N x D, among what return_hidden gave."""
    return hidden[f"blocks.{len(model.blocks) - 1}"]


def pool_weights(model: VisionTransformer, hidden: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight of each token in what the head reads, B x N, rows summing to 1.

    hidden: what return_hidden gave. The weights are 1 for CLS and 0 for all others (pool "cls"), equal for all
    patches ("mean", "normed_mean"), or learned ("seq": Hassani et al., arXiv:2104.05704, equation 3).
    """
    tokens = last_tokens(model, hidden)
    if model.pool == "seq":
        return model.seq_pool(model.norm(tokens)).softmax(dim=1).squeeze(-1)
    weights = torch.zeros(tokens.shape[:2], dtype=tokens.dtype, device=tokens.device)
    if model.pool == "cls":
        weights[:, 0] = 1
    else:
        weights[:, 1:] = 1 / (tokens.shape[1] - 1)
    return weights


def describe_pool(model: VisionTransformer) -> str:
    """The name of the pooled token in titles."""
    return {"cls": "CLS", "seq": "the pooled token"}.get(model.pool, "the mean token")


def attention_from(attention: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How much the pooled token attends to each token, B x ... x N; rows sum to 1.

    attention: B x ... x N x N, also of attention_rollout. weights: B x N, see pool_weights.
    """
    return torch.einsum("bq,b...qk->b...k", weights, attention)


def attention_to(attention: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How much each token attends to the pooled one, B x ... x N; arguments as in attention_from."""
    return torch.einsum("b...qk,bk->b...q", attention, weights)


def to_grid(tokens: torch.Tensor) -> torch.Tensor:
    """Put token values ... x N at the places of their patches: ... x G x G. The value of a CLS token is left
    out (there is one if N is not a square number)."""
    side = math.isqrt(tokens.shape[-1])
    patches = tokens if side**2 == tokens.shape[-1] else tokens[..., 1:]
    return patches.reshape(*tokens.shape[:-1], side, side)


def times_uniform(tokens: torch.Tensor) -> torch.Tensor:
    """Shares of attention ... x N at the places of their patches, as multiples of an equal share, 1/N: ... x G x G."""
    return to_grid(tokens) * tokens.shape[-1]


def times_mean(maps: torch.Tensor) -> torch.Tensor:
    """Maps ... x G x G that are nowhere negative, as multiples of their means; a map of zeros stays one."""
    means = maps.mean((-2, -1), keepdim=True)
    return maps / means.where(means > 0, 1)


def attention_distance(attention: torch.Tensor) -> torch.Tensor:
    """How far a patch looks, in patches: the mean distance to the other patches, weighted by the attention
    ... x N x N that it pays them, of all patches: ... (Dosovitskiy et al., appendix D.7). CLS is left out."""
    side = math.isqrt(attention.shape[-1])
    place = torch.arange(side**2, device=attention.device)
    y, x = (place // side).to(attention.dtype), (place % side).to(attention.dtype)
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).sqrt()  # P x P
    patches = attention[..., -(side**2) :, -(side**2) :]
    return ((patches * distance).sum(-1) / patches.sum(-1).clamp_min(1e-9)).mean(-1)


def attention_entropy(attention: torch.Tensor) -> torch.Tensor:
    """How widely tokens look: the entropy of the rows of attention ... x N x N, as a share of the entropy of equal
    attention, log N; the mean of all rows: ..., from 0 (one token) to 1 (all the same)."""
    rows = -(attention * attention.clamp_min(1e-12).log()).sum(-1)
    return rows.mean(-1) / math.log(attention.shape[-1])


def token_attention(attention: torch.Tensor, patch: int) -> torch.Tensor:
    """Where one patch looks: its row of the attention ... x N x N, as ... x N.

    patch: its place, row * G + column. Raises IndexError if there is no such patch.
    """
    tokens = attention.shape[-1]
    side = math.isqrt(tokens)
    if not 0 <= patch < side**2:
        raise IndexError(f"patch {patch} is not there: {side} x {side} patches are 0 to {side**2 - 1}")
    return attention[..., tokens - side**2 + patch, :]


def pooled_features(model: VisionTransformer, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What the head reads, B x D, of the last block's output B x N x D, pooled by weights B x N and normed."""
    return model.fc_norm((weights[..., None] * model.norm(tokens)).sum(dim=1))


@torch.no_grad()
def features(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """What the head reads of the images, B x D."""
    read = []
    hook = model.head.register_forward_pre_hook(lambda head, args: read.append(args[0]))
    try:
        model(images)
    finally:
        hook.remove()
    return read[0]
