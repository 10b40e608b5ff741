"""Muon against torch.optim.Muon."""

import pytest
import torch

from vitlab import hardware
from vitlab.training.muon import Muon, orthogonal

SHAPES = [(24, 16), (16, 24), (24, 16), (16, 16), (24, 16)]


def gradients(seed: int, shapes: list[tuple]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def bf16(monkeypatch):
    """As on a machine that multiplies bfloat16, which torch.optim.Muon always does."""
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: True)


def test_its_steps_are_torchs(bf16):
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in gradients(0, SHAPES)] for _ in range(2))
    still = ours[0].detach().clone()
    optimizers = Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for step in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers):
            for parameter, gradient in zip(parameters, gradients(step, SHAPES)):
                parameter.grad = gradient if (step, len(parameter)) != (2, 16) else None  # some have none
            optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert (ours[0] - still).abs().max() > 0.01
    assert [*optimizers[0].state[ours[0]]] == [*optimizers[1].state[theirs[0]]]  # so that torch's state can be loaded


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_filters_are_matrices(memory_format, bf16):
    """Also filters that are laid out anew after the optimiser was made."""
    shapes = [(12, 4, 3, 3), (12, 4, 3, 3), (40, 2, 3, 3)]
    convolutions = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, bias=False) for o, i, _, _ in shapes)
    matrices = [torch.nn.Parameter(conv.weight.detach().flatten(1).clone()) for conv in convolutions]
    ours = Muon(convolutions.parameters(), lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    convolutions.to(memory_format=memory_format)
    for step in range(3):
        for conv, matrix, gradient in zip(convolutions, matrices, gradients(step, shapes)):
            conv.weight.grad = gradient.to(memory_format=memory_format)
            matrix.grad = gradient.flatten(1).clone()
        ours.step()
        theirs.step()
    for conv, matrix in zip(convolutions, matrices):
        torch.testing.assert_close(conv.weight.flatten(1), matrix, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 24, 16), (3, 16, 24)])
def test_without_bf16_instructions_it_multiplies_float32(shape, monkeypatch):
    (matrices,) = gradients(0, [shape])
    results = {}
    for has in (True, False):
        monkeypatch.setattr(hardware, "cpu_has_bf16", lambda has=has: has)
        results[has] = orthogonal(matrices)
    assert (results[True].dtype, results[False].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(results[False], results[True].float(), atol=0.02, rtol=0)
    values = torch.linalg.svdvals(results[False])
    assert values.min() > 0.6 and values.max() < 1.25
