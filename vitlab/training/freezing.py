"""What a fine-tuning leaves as it is (--freeze), and how fast each block learns (--layer_decay)."""

import re

from torch import nn

from vitlab.cli import UserError
from vitlab.config import TrainConfig

EMBEDDING = ("cls_token", "pos_embed", "patch_embed.")


def check_freezing(config: TrainConfig) -> None:
    """Raise UserError if --freeze or --layer_decay does not go with the model."""
    vit, freeze = config.model == "vit", config.freeze
    if not vit and config.layer_decay != 1:
        raise UserError(f"--layer_decay {config.layer_decay:g}: {config.model} has no blocks; leave it out")
    if freeze in (None, "head"):
        return
    if not vit or not freeze.isdecimal() or int(freeze) > config.depth:
        blocks = f", or a number of blocks from 0 to {config.depth}" if vit else ""
        raise UserError(f"--freeze {freeze}: give head, to train the head alone{blocks}")


def frozen_names(model: nn.Module, freeze: str | None) -> list[str]:
    """The parameters that --freeze leaves as they are: "head" all but the last layers' (`head` of a VisionTransformer,
    the last nn.Linear of another model), "N" those of the embedding and of the first N blocks."""
    names = [name for name, _ in model.named_parameters()]
    if freeze is None:
        return []
    if freeze == "head":
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        head = "head" if hasattr(model, "head") else last
        return [name for name in names if not name.startswith(f"{head}.")]
    prefixes = (*EMBEDDING, *(f"blocks.{i}." for i in range(int(freeze))))
    return [name for name in names if name.startswith(prefixes)]


def freeze_parameters(model: nn.Module, config: TrainConfig) -> None:
    """Take the parameters that config.freeze names out of the training: they get no gradients. Raises UserError as
    check_freezing does."""
    check_freezing(config)
    frozen = set(frozen_names(model, config.freeze))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def describe_frozen(model: nn.Module, config: TrainConfig) -> str:
    """A line that says what config.freeze leaves as it is."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen = sum(sizes[name] for name in frozen_names(model, config.freeze))
    what = "all but the head" if config.freeze == "head" else f"the embedding and {config.freeze} of the blocks"
    return f"frozen: {what}, {frozen:,} of {sum(sizes.values()):,} parameters"


def train_mode(model: nn.Module) -> None:
    """Training mode, but for modules whose parameters are all frozen: dropout and stochastic depth inside them are off,
    and batch norm keeps its statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """By what the learning rate of each parameter is multiplied: decay ** (depth - i) in block i, counted from 0,
    decay ** (depth + 1) in the embedding, 1 in the last norm and the head (Bao et al., BEiT, arXiv:2106.08254, section
    3.2; its code's numbering)."""
    depth = len(getattr(model, "blocks", ()))

    def layers_above(name: str) -> int:
        if block := re.match(r"blocks\.(\d+)\.", name):
            return depth - int(block[1])
        return depth + 1 if name.startswith(EMBEDDING) else 0

    return {name: decay ** layers_above(name) for name, _ in model.named_parameters()}
