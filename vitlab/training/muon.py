"""Muon, a batch of matrices at a time."""

from collections import defaultdict
from collections.abc import Iterable

import torch

from vitlab.hardware import has_bf16
from vitlab.training.sharding import part, whole


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum whose matrix is made orthogonal.

    Its steps are those of torch.optim.Muon. But parameters of one shape are stepped together, which on a GPU saves nine
    of ten kernels, and the filters of a convolution, C x I x k x k, are taken as C x Ikk matrices. In groups with
    normalize, each step ends by scaling a parameter to the norm of C rows of norm 1 (airbench94_muon.py of
    github.com/KellerJordan/cifar10-airbench): where a batch norm follows, only the direction of filters matters.
    """

    def __init__(
        self,
        params: Iterable,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        normalize: bool = False,
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, normalize=normalize))

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape, parameter.device, parameter.dtype].append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[torch.Tensor], group: dict) -> None:
        """Update parameters of one shape."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
        updates = torch.stack([whole(update) for update in updates])  # with --fsdp, all processes do the same work
        matrices = updates.flatten(2)  # n x rows x columns
        rows, columns = matrices.shape[1:]
        updates = orthogonal(matrices).to(updates.dtype).view_as(updates)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        updates = [part(update, parameter) for update, parameter in zip(updates, parameters)]
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
        if group["normalize"]:
            torch._foreach_mul_(parameters, [rows**0.5 / parameter.norm() for parameter in parameters])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices near to the n x rows x columns given: the same singular vectors, all singular values near 1.

    Five Newton-Schulz iterations with Jordan's coefficients, in bfloat16 where the hardware multiplies it, else in
    float32. The result has that type."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if has_bf16(matrices.device) else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x
