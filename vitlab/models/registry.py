"""A config's model, whichever --model it names."""

import pkgutil

import torch
from torch import nn

from vitlab.cli import UserError
from vitlab.config import TrainConfig

MODELS = {  # "module:class", imported on use: the ResNets need torchvision, which takes a second
    "vit": "model:VisionTransformer",
    "simple_cnn": "vitlab.models.baselines:SimpleCNN",
    "tiny_cnn": "vitlab.models.baselines:TinyCNN",
    "mlp": "vitlab.models.baselines:FeedForward",
    "resnet18": "vitlab.models.baselines:resnet18",
    "resnet50": "vitlab.models.baselines:resnet50",
}
CAM_LAYERS = {"simple_cnn": "features", "tiny_cnn": "features.4", "resnet18": "layer4", "resnet50": "layer4"}


def build_model(config: TrainConfig) -> nn.Module:
    """The model of a config: images B x in_chans x img_size x img_size -> logits B x C. The seed decides its
    fresh weights. Raises UserError if its sizes do not fit each other."""
    torch.manual_seed(config.seed)
    try:
        return pkgutil.resolve_name(MODELS[config.model])(**config.model_args())
    except ValueError as error:
        raise UserError(error) from None


def cam_layer(name: str, model: nn.Module) -> nn.Module | None:
    """The module of a CNN whose output Grad-CAM is drawn on: the last map before pooling. None for an MLP, which has
    no such map, and for a VisionTransformer, whose tokens attribution.grad_cam finds by itself."""
    return model.get_submodule(CAM_LAYERS[name]) if name in CAM_LAYERS else None
