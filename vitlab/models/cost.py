"""What a model costs: parameters, and operations of a forward pass."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import VisionTransformer


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(model: nn.Module) -> int:
    """Floating-point operations of one image's forward pass: matrix products and convolutions only, a
    multiplication and an addition counted as two (torch.utils.flop_counter). The image is in_chans x img_size x
    img_size, by the model's attributes."""
    device = next(model.parameters()).device
    image = torch.zeros(1, model.in_chans, model.img_size, model.img_size, device=device)
    was_training = model.training
    # the counter does not know the fused kernel, so attention is written out
    explicit = {"return_attention": True} if isinstance(model, VisionTransformer) else {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image, **explicit)
    model.train(was_training)
    return counter.get_total_flops()
