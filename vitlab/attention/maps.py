"""What a trained model looks at: tensors in, tensors out. Shapes as in model.py, with P patches, and G
the side of their grid, P = G * G.

    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    seen = attention_from(attention, pool_weights(model, hidden))    # B x L x H x N: where CLS looks
    maps = to_grid(seen[:, -1].mean(1))                              # B x G x G: last block, mean head

"From" and "to" are about the token that the head reads: CLS, or, with another pooling, the tokens in
the shares in which they are pooled (pool_weights).
"""

import math

import torch
from torch import nn
from torchvision.transforms import v2

# --------------------------------------------------------------------------------- raw attention


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


# --------------------------------------------------------------------------------------- rollout


def rollout(attention, *, residual=True):
    """How much of each token's last state goes back to each patch, B x N x N, rows summing to 1: the
    product over the blocks of the heads' mean, averaged with the identity, which stands for the
    residual connection (Abnar & Zuidema, arXiv:2005.00928, section 3)."""
    mixing = attention.mean(dim=2)  # B x L x N x N
    if residual:
        mixing = (mixing + torch.eye(mixing.shape[-1], device=mixing.device, dtype=mixing.dtype)) / 2
    total = mixing[:, 0]
    for layer in mixing.unbind(1)[1:]:
        total = layer @ total
    return total


def attention_gradients(model, images, targets=None):
    """(attention, gradients, pooling): the first two B x L x H x N x N, the gradients those of each
    image's logit for its class in `targets` (int64 B; the likeliest where None); pooling, B x N, is
    (gradient * weight)+ of pool_weights, or, with pool "cls", 1 for CLS."""
    with torch.enable_grad():
        logits, _, hidden = model(images, return_attention=True, return_hidden=True)
        maps = [hidden[f"blocks.{i}.attention"] for i in range(len(model.blocks))]
        targets = logits.argmax(-1) if targets is None else targets
        gradients = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), maps)

        weights = pool_weights(model, hidden).detach()
        if model.pool != "cls":
            shares = weights.clone().requires_grad_()
            logits = model.head(read_out(model, hidden[f"blocks.{len(model.blocks) - 1}"].detach(), shares))
            (slope,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), shares)
            weights = (weights * slope).clamp_min(0)
    return torch.stack(maps, 1).detach(), torch.stack(gradients, 1), weights


def gradient_rollout(attention, gradients, pooling):
    """Relevance of each token for the class, B x N, of what attention_gradients returns: R, N x N,
    starts as the identity, and each block adds the mean over the heads of (gradient * attention)+ times
    R (Chefer et al., arXiv:2103.15679, equations 5 and 6); `pooling` weights its rows, as one more
    attention."""
    relevance = torch.eye(attention.shape[-1], device=attention.device, dtype=attention.dtype)
    relevance = relevance.expand(len(attention), -1, -1)
    for weights in (gradients * attention).clamp_min(0).mean(dim=2).unbind(1):
        relevance = relevance + weights @ relevance
    return torch.einsum("bq,bqk->bk", pooling, relevance)


# -------------------------------------------------------------------------------------- Grad-CAM


def grad_cam(model, images, targets=None, *, layer=None, block=None, relu=True):
    """Grad-CAM (Selvaraju et al., arXiv:1610.02391, section 3) by captum: B x h x w.

    layer: a module whose output is B x channels x h x w; without one, of a VisionTransformer, the
        patch tokens on their grid: behind the first norm of a block, or, without that either, of the
        last block, and of a model with pool "seq" those behind the last norm, which are pooled.
    targets: classes, int64 B; the likeliest where None. relu: leave out what speaks against the class.
    """
    from captum.attr import LayerGradCam

    if targets is None:
        with torch.no_grad():
            targets = model(images).argmax(-1)
    if layer is not None:
        return LayerGradCam(model, layer).attribute(images, targets, relu_attributions=relu).detach()[:, 0]

    grid = nn.Identity()  # where captum finds the tokens as a feature map
    side = model.grid_size

    norm = model.blocks[-1 if block is None else block].norm1
    if model.pool == "seq" and block is None:
        norm = model.norm

    def through_grid(norm, args, tokens):  # B x N x D
        first, patches = tokens.split([tokens.shape[1] - side**2, side**2], dim=1)
        patches = grid(patches.mT.unflatten(2, (side, side)))  # B x D x G x G
        return torch.cat([first, patches.flatten(2).mT], dim=1)

    with norm.register_forward_hook(through_grid):
        return LayerGradCam(model, grid).attribute(images, targets, relu_attributions=relu).detach()[:, 0]


# ---------------------------------------------------------------------------------- faithfulness


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
