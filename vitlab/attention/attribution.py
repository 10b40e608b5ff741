"""Attention through all layers, and evidence for a class. Shapes as in maps.py."""

import torch
from captum.attr import LayerGradCam
from torch import nn

from model import VisionTransformer
from vitlab.attention.maps import last_tokens, pool_weights, pooled_features


def attention_rollout(attention: torch.Tensor, *, residual: bool = True) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv:2005.00928, section 3): how much of each token's last state
    goes back to each input token, B x N x N; rows sum to 1.

    The attention B x L x H x N x N is averaged over the heads and, for the residual connection, with the
    identity (`residual`); then the blocks are multiplied.
    """
    mixing = attention.mean(dim=2)  # B x L x N x N
    if residual:
        mixing = (mixing + torch.eye(mixing.shape[-1], device=mixing.device, dtype=mixing.dtype)) / 2
    total = mixing[:, 0]
    for layer in mixing.unbind(1)[1:]:
        total = layer @ total
    return total


def attention_gradients(
    model: VisionTransformer, images: torch.Tensor, targets: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention, its gradients, and the relevance of each token to what the head reads.

    targets: a class for each image, int64 B (default: the predicted ones). Returns the attention and the
    gradients of the targets' logits with respect to it, both B x L x H x N x N, and B x N: 1 for CLS (pool
    "cls"), otherwise the positive part of gradient * weight, for the weights of pool_weights.
    """
    with torch.enable_grad():
        logits, _, hidden = model(images, return_attention=True, return_hidden=True)
        maps = [hidden[f"blocks.{i}.attention"] for i in range(len(model.blocks))]
        targets = logits.argmax(-1) if targets is None else targets
        gradients = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), maps)

        weights = pool_weights(model, hidden).detach()
        if model.pool != "cls":
            variable = weights.clone().requires_grad_()
            logits = model.head(pooled_features(model, last_tokens(model, hidden).detach(), variable))
            (slope,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), variable)
            weights = (weights * slope).clamp_min(0)
    return torch.stack(maps, 1).detach(), torch.stack(gradients, 1), weights


def gradient_rollout(attention: torch.Tensor, gradients: torch.Tensor, pooling: torch.Tensor) -> torch.Tensor:
    """The relevance of each token to the class, B x N, by the rule of Chefer et al. (arXiv:2103.15679,
    equations 5 and 6), from what attention_gradients returns.

    R, N x N, starts as the identity; each block adds to it the mean over the heads of the positive part of
    gradient * attention, times R. At the end `pooling` weights the rows of R, like one more attention.
    """
    relevance = torch.eye(attention.shape[-1], device=attention.device, dtype=attention.dtype)
    relevance = relevance.expand(len(attention), -1, -1)
    for weights in (gradients * attention).clamp_min(0).mean(dim=2).unbind(1):
        relevance = relevance + weights @ relevance
    return torch.einsum("bq,bqk->bk", pooling, relevance)


def grad_cam(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor | None = None,
    *,
    layer: nn.Module | None = None,
    block: int | None = None,
    relu: bool = True,
) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al., arXiv:1610.02391, section 3), by captum: B x h x w.

    targets: a class for each image, int64 B (default: the predicted ones). relu: drop what speaks against it.
    layer: a module whose output is B x channels x h x w, such as a CNN's last convolution. Without it the
        model must be a VisionTransformer, whose patch tokens on their grid (h = w = G) are the feature map:
        after norm1 of `block`; by default of the last block, or, with pool "seq", after the last norm, where
        the patches are pooled.
    """
    if targets is None:
        with torch.no_grad():
            targets = model(images).argmax(-1)
    if layer is not None:
        return LayerGradCam(model, layer).attribute(images, targets, relu_attributions=relu).detach()[:, 0]

    grid = nn.Identity()  # captum reads the tokens here, as a feature map
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
