"""A config's model, whichever --model it names, and what a model costs."""

import contextlib
import pkgutil
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import VisionTransformer
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.models.patch_dropout import patches_dropped

MODELS = {  # "module:class", imported on use: the ResNets need torchvision, which takes a second
    "vit": "model:VisionTransformer",
    "simple_cnn": "vitlab.models.baselines:SimpleCNN",
    "tiny_cnn": "vitlab.models.baselines:TinyCNN",
    "mlp": "vitlab.models.baselines:FeedForward",
    "resnet18": "vitlab.models.baselines:resnet18",
    "resnet50": "vitlab.models.baselines:resnet50",
}
CAM_LAYERS = {  # maps that Grad-CAM can be drawn on, the last first
    "simple_cnn": ("features", "features.act2", "features.act1"),
    "tiny_cnn": ("features.4", "features.1"),
    "resnet18": ("layer4", "layer3", "layer2", "layer1"),
    "resnet50": ("layer4", "layer3", "layer2", "layer1"),
}


def build_model(config: TrainConfig) -> nn.Module:
    """The model of a config: images B x in_chans x img_size x img_size -> logits B x C. The seed decides its
    fresh weights. Raises UserError if its sizes do not fit each other."""
    torch.manual_seed(config.seed)
    try:
        return pkgutil.resolve_name(MODELS[config.model])(**config.model_args())
    except ValueError as error:
        raise UserError(error) from None


def cam_layer(name: str, model: nn.Module) -> nn.Module | None:
    """The module of a CNN whose output Grad-CAM is drawn on: the last map before pooling that is larger than 1 x 1 for
    the model's image size. None for an MLP, which has no such map, and for a VisionTransformer, whose tokens
    attribution.grad_cam finds by itself."""
    sides = {}

    def keep_side(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        sides[layer] = output.shape[-1]

    layers = [model.get_submodule(path) for path in CAM_LAYERS.get(name, ())]
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep_side).remove)
        if layers:
            run_once(model)
    return next((layer for layer in layers if sides[layer] > 1), None)


def run_once(model: nn.Module, **options) -> None:
    """Run a model in evaluation mode on one black image of the size that its attributes name."""
    image = torch.zeros(1, model.in_chans, model.img_size, model.img_size, device=next(model.parameters()).device)
    was_training = model.training
    with torch.no_grad():
        model.eval()(image, **options)
    model.train(was_training)


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has, frozen ones among them."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, patch_drop_rate: float = 0.0) -> int:
    """Floating-point operations of one image's forward pass: matrix products and convolutions only, a
    multiplication and an addition counted as two (torch.utils.flop_counter). The image is in_chans x img_size x
    img_size, by the model's attributes. With patch_drop_rate the blocks see that share of the patches less."""
    # the counter does not know the fused kernel, so attention is written out
    explicit = {"return_attention": True} if isinstance(model, VisionTransformer) else {}
    with FlopCounterMode(display=False) as counter, patches_dropped(model, patch_drop_rate):
        run_once(model, **explicit)
    return counter.get_total_flops()


def train_pflop(model: nn.Module, images: int, patch_drop_rates: Sequence[float] = (0.0,)) -> float:
    """Operations of a training that saw so many images, in PFLOP (1e15), to four digits: those of count_flops, three
    times (the backward pass takes two forward passes). The same on every machine. patch_drop_rates: of each epoch."""
    epochs = Counter(patch_drop_rates)
    flops = sum(count_flops(model, rate) * n for rate, n in epochs.items()) / epochs.total()
    return float(f"{3 * flops * images / 1e15:.4g}")
