"""Attention through all layers, and evidence for a class. Shapes as in maps.py."""

import torch
from torch import nn

from vitlab.attention.maps import pool_weights, read_out


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
