"""The recipe: AdamW, SGD or Muon, the learning rate of each step, and the average of the weights."""

import math
from collections.abc import Callable, Sized

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.training.freezing import freeze_parameters, layer_scales
from vitlab.training.muon import Muon


def warmup_cosine(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a batch, counted from 0 over all epochs: linear warmup, then a cosine down to min_lr, or a
    line if config.schedule is "linear".

    Source: Loshchilov & Hutter, arXiv:1608.03983, section 3, without restarts. The function keeps no state, so a
    resumed run needs only the number of the batch. Raises UserError if the warmup outlasts the run.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if config.warmup_steps is not None:  # of the optimisers: the last of an epoch may have fewer batches
        steps = math.ceil(steps_per_epoch / config.grad_accum_steps)
        epochs, rest = divmod(config.warmup_steps, steps)
        warmup = epochs * steps_per_epoch + rest * config.grad_accum_steps
        if config.warmup_steps >= config.epochs * steps:
            few = f"--warmup_steps {config.warmup_steps} leaves nothing of the run's {config.epochs * steps}"
            raise UserError(f"{few}; choose fewer")
    peak, end = config.learning_rate, config.min_lr
    decay = max(1, config.epochs * steps_per_epoch - 1 - warmup)

    def learning_rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / decay)
        left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return end + (peak - end) * left

    return learning_rate


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a model: [AdamW], [SGD], or [AdamW, Muon]. First it freezes what config.freeze names.

    Muon takes the blocks' matrices and all convolutions but the first, which reads the pixels; AdamW takes the rest.
    Norms, biases, tokens and positions have no weight decay. The group key "lr_scale" multiplies the schedule's
    learning rate, by config.layer_decay (freezing.layer_scales). Raises UserError as check_optimizer does.
    """
    check_optimizer(model, config)
    scales = layer_scales(model, config.layer_decay)
    decayed, undecayed, matrices, filters = {}, {}, {}, {}  # lr_scale -> parameters
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name in ("cls_token", "pos_embed"):
            kind = undecayed
        elif config.optimizer == "muon" and is_for_muon(name, parameter):
            kind = filters if parameter.ndim == 4 else matrices
        else:
            kind = decayed
        kind.setdefault(scales[name], []).append(parameter)

    def groups(kind: dict[float, list], factor: float = 1.0, **options) -> list[dict]:
        return [{"params": kind[scale], "lr_scale": factor * scale, **options} for scale in sorted(kind, reverse=True)]

    rest = groups(decayed, weight_decay=config.weight_decay) + groups(undecayed, weight_decay=0.0)
    if config.optimizer == "sgd":
        return [torch.optim.SGD(rest, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)]
    optimizers = [torch.optim.AdamW(rest, lr=config.learning_rate, fused=True)]
    if config.optimizer == "muon":
        own = groups(matrices, factor=config.muon_lr / config.learning_rate)
        factor = (config.muon_conv_lr or config.muon_lr) / config.learning_rate
        own += groups(filters, factor=factor, normalize=config.normalize_filters)
        decay, momentum = config.weight_decay, config.muon_momentum
        optimizers.append(Muon(own, lr=config.muon_lr, weight_decay=decay, momentum=momentum))
    return optimizers


def check_optimizer(model: nn.Module, config: TrainConfig) -> None:
    """Freeze what config.freeze names. UserError if Muon finds nothing to optimise, or as check_freezing."""
    freeze_parameters(model, config)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.optimizer == "muon" and not any(is_for_muon(*named) for named in trained):
        raise UserError("--optimizer muon: no block and no second convolution is trained; choose adamw")


def is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon optimises this parameter: a block's matrix, or a convolution that does not read the pixels."""
    return (name.startswith("blocks.") and parameter.ndim == 2) or (parameter.ndim == 4 and parameter.shape[1] > 3)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> float:
    """Set the schedule's learning rate in all parameter groups, times each group's lr_scale; returns it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
    return rate


def accumulation(batch: int, batches: int, accumulate: int) -> tuple[int, bool]:
    """Of batch number `batch` of an epoch of `batches`: (how many batches make up its optimiser step, whether it is
    the last of them). The last step of an epoch may have fewer than `accumulate`."""
    first = batch // accumulate * accumulate
    count = min(accumulate, batches - first)
    return count, batch + 1 == first + count


def loss_weight(images: int, batches: Sized, config: TrainConfig) -> float:
    """What the mean loss of a batch with so many images is multiplied with. With accumulation every image of an epoch
    counts the same, in a smaller last batch and in a last step of fewer batches too; without it the weight is 1."""
    if config.grad_accum_steps == 1:
        return 1.0
    complete = getattr(batches, "batch_size", None) or config.batch_size
    return images / (complete * min(config.grad_accum_steps, len(batches)))


def optimizer_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    clip_grad: float = 0.0,
    average: "MovingAverage | None" = None,
) -> None:
    """Update the weights from their gradients, clipped to the norm `clip_grad` (0: not clipped), then the average of
    the weights; the gradients are cleared. If one gradient overflowed in float16, no optimiser steps."""
    for optimizer in optimizers if scaler.is_enabled() else ():
        scaler.unscale_(optimizer)
    overflow = False
    if clip_grad or scaler.is_enabled():
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
        overflow = scaler.is_enabled() and not norm.isfinite()
    if not overflow:
        for optimizer in optimizers:
            optimizer.step()
        if average:
            average.update_parameters(model)
    scaler.update()
    model.zero_grad(set_to_none=True)


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights (Polyak & Juditsky, 1992), as `module`. It forgets faster at
    the start: after n updates the decay is at most (1 + n) / (10 + n). Buffers are the model's.

    torch's AveragedModel copies n_averaged to the device at each update, which an accelerator would be waited for."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's present weights to the average."""
        updates = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates)) if updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged += 1
