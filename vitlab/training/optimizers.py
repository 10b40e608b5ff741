"""AdamW, SGD and Muon, the schedule of their learning rate, and the average of the weights."""

import math

import torch
from torch.optim.swa_utils import AveragedModel


def learning_rate(step, *, steps_per_epoch, config):
    """The learning rate of one batch, counted from 0: linear warmup, then a cosine down to min_lr
    (Loshchilov & Hutter, arXiv:1608.03983, without restarts)."""
    warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, config.epochs * steps_per_epoch - 1 - warmup)
    return config.min_lr + (config.learning_rate - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizers(model, config):
    """The optimisers of a model, a list: AdamW or SGD of all of it, or Muon (Jordan et al., 2024) of
    the blocks' matrices and of all convolutions but the first, which reads the pixels, and AdamW of the
    rest. No weight decay on norms, biases, tokens, positions. A group's "scale" is its learning rate
    over the schedule's."""
    decayed, spared, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in ("cls_token", "pos_embed"):
            spared.append(parameter)
        elif config.optimizer == "muon" and is_for_muon(name, parameter):
            matrices.append(parameter if parameter.ndim == 2 else as_matrix(parameter))
        else:
            decayed.append(parameter)
    rest = [
        {"params": decayed, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": spared, "weight_decay": 0.0, "scale": 1.0},
    ]
    rest = [group for group in rest if group["params"]]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(rest, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)]
    optimizers = [torch.optim.AdamW(rest, lr=config.learning_rate, fused=True)]
    if config.optimizer == "muon":
        group = {"params": matrices, "scale": config.muon_lr / config.learning_rate}
        optimizers.append(torch.optim.Muon([group], lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def is_for_muon(name, parameter):
    """Whether Muon takes it: a block's matrix, or a convolution that does not read the pixels."""
    return (name.startswith("blocks.") and parameter.ndim == 2) or (parameter.ndim == 4 and parameter.shape[1] > 3)


def as_matrix(filters):
    """The filters of a convolution, C x I x k x k, as the parameter C x Ikk that Muon takes: the same
    numbers in the same memory, and so is its gradient."""
    matrix = torch.nn.Parameter(filters.detach().view(len(filters), -1))
    filters.register_post_accumulate_grad_hook(lambda filters: setattr(matrix, "grad", filters.grad.view_as(matrix)))
    return matrix


def make_average(model, decay):
    """An exponential moving average of a model's weights (Polyak & Juditsky, 1992), which forgets
    faster while it is young: after n updates the decay is at most (1 + n) / (10 + n)."""

    def lerp(averaged, current, updates):
        weight = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, weight)

    return AveragedModel(model, multi_avg_fn=lerp)
