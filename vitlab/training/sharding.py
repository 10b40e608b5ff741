"""Models that several processes hold in parts (FSDP: Zhao et al., arXiv:2304.11277), by torch's fully_shard.

A checkpoint holds whole tensors, as that of a run without --fsdp does."""

import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitlab import processes


def shard(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Leave each process a part of every parameter, gathered block by block while it is needed. The optimisers, which
    must not have stepped yet, are given the parts."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # none is changed
    names = {parameter: name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count(),))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parts = dict(model.named_parameters())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [parts[names[parameter]] for parameter in group["params"]]


def whole(state: object) -> object:
    """A state dict with its parts of tensors gathered; all processes must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return type(state)((name, whole(value)) for name, value in state.items())
    return [whole(value) for value in state] if isinstance(state, list) else state


def part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole tensor that belongs to `like`, if that is a part."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def load_whole(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """model.load_state_dict() of whole tensors, for a model in parts or not."""
    own = model.state_dict()
    model.load_state_dict({name: part(value, own[name]) if name in own else value for name, value in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """optimizer.load_state_dict() of whole tensors, for parameters in parts or not. Raises ValueError as that does."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        optimizer.state[parameter] = {
            name: part(value, parameter) if torch.is_tensor(value) else value for name, value in values.items()
        }
