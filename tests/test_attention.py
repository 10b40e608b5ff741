"""vitlab/attention: cases computed by hand, and second implementations."""

import numpy as np
import pytest
import torch
from torch import nn

from model import VisionTransformer
from vitlab.attention.attribution import attention_gradients, attention_rollout, grad_cam, gradient_rollout
from vitlab.attention.faithfulness import (
    CURVE_KINDS,
    area,
    attention_maps,
    blur,
    measure_faithfulness,
    removal_curve,
)
from vitlab.attention.maps import attention_from, attention_to, features, look, pool_weights, to_grid, token_attention
from vitlab.evaluation.metrics import bootstrap_mean


def small(seed=0, **args):
    """A model whose every weight is away from its start, and four images."""
    torch.manual_seed(seed)
    model = VisionTransformer(**{"img_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, **args}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, torch.randn(4, 3, 16, 16)


def test_from_and_to_by_hand():
    attention = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])[None, None, None]
    first = torch.tensor([[1.0, 0.0, 0.0]])
    assert attention_from(attention, first).flatten().tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert attention_to(attention, first).flatten().tolist() == pytest.approx([0.1, 0.3, 0.5])
    halves = torch.tensor([[0.0, 0.5, 0.5]])
    assert attention_from(attention, halves).flatten().tolist() == pytest.approx([0.4, 0.275, 0.325])
    assert attention_to(attention, halves).flatten().tolist() == pytest.approx([0.45, 0.35, 0.25])


def test_the_grid_leaves_cls_out():
    assert to_grid(torch.arange(5.0)).tolist() == [[1, 2], [3, 4]]
    assert to_grid(torch.arange(4.0)).tolist() == [[0, 1], [2, 3]]


def test_patches_come_after_cls():
    for tokens, offset in ((17, 1), (16, 0)):
        attention = torch.rand(2, 3, 4, tokens, tokens)
        assert torch.equal(token_attention(attention, 5), attention[..., 5 + offset, :])
        with pytest.raises(IndexError, match="0 to 15"):
            token_attention(attention, 16)


@pytest.mark.parametrize("pool", ["cls", "mean", "seq"])
def test_pool_weights_are_how_the_head_reads(pool):
    model, images = small(pool=pool)
    inside = look(model, images)
    torch.testing.assert_close(inside.weights.sum(1), torch.ones(4))
    assert len(inside.weights[0].unique()) == {"cls": 2, "mean": 2, "seq": 16}[pool]
    torch.testing.assert_close(model.head(features(model, images)), inside.logits)


def test_rollout_is_the_papers_product():
    model, images = small()
    attention = look(model, images).attention
    total_attention = attention_rollout(attention)
    torch.testing.assert_close(total_attention.sum(-1), torch.ones(4, 17))
    for image, maps in enumerate(attention.numpy().astype(np.float64)):
        total = np.eye(17)
        for layer in maps:
            mixing = layer.mean(axis=0) + np.eye(17)
            total = (mixing / mixing.sum(axis=1, keepdims=True)) @ total
        np.testing.assert_allclose(total_attention[image], total, atol=1e-6)
    plain = attention_rollout(attention, residual=False)
    torch.testing.assert_close(plain[0], attention[0, 2].mean(0) @ attention[0, 1].mean(0) @ attention[0, 0].mean(0))


def test_gradient_rollout_is_that_of_hooks_on_timms_model():
    """The rule of Chefer et al. on timm's model, its maps caught where it drops them out."""
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    model, images = small()
    theirs = timm_vit.VisionTransformer(
        img_size=16, patch_size=4, num_classes=10, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2.0
    ).eval()
    theirs.load_state_dict(model.state_dict())
    maps = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: maps.append(out))
    targets = torch.tensor([3, 1, 4, 1])
    score = theirs(images)[range(4), targets].sum()
    gradients = torch.autograd.grad(score, maps)
    for image in range(4):
        relevance = torch.eye(17)
        for weights, gradient in zip(maps, gradients):
            relevance = relevance + (weights[image] * gradient[image]).clamp(min=0).mean(0).detach() @ relevance
        ours = gradient_rollout(*attention_gradients(model, images, targets))[image]
        torch.testing.assert_close(ours, relevance[0], atol=1e-6, rtol=1e-4)


def test_without_cls_gradient_rollout_starts_from_each_tokens_share_of_the_logit():
    model, images = small(pool="seq")
    hidden = look(model, images).hidden
    targets = torch.tensor([0, 9, 2, 2])
    *_, pooling = attention_gradients(model, images, targets)
    share = (model.norm(hidden["blocks.2"]) * model.head.weight[targets][:, None]).sum(-1)
    torch.testing.assert_close(pooling, (share * pool_weights(model, hidden)).clamp_min(0).detach())


def test_grad_cam_of_a_convolution_is_its_class_activation_map():
    """Behind global averaging and a linear layer, Grad-CAM is CAM (its paper's section 3.1)."""
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    head = nn.Linear(6, 5)
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images, targets = torch.randn(2, 3, 12, 12), torch.tensor([4, 0])
    cam = grad_cam(model, images, targets, layer=convolution)
    expected = torch.einsum("bc,bchw->bhw", head.weight[targets], convolution(images)) / 100
    torch.testing.assert_close(cam, expected.clamp_min(0).detach(), atol=1e-6, rtol=1e-4)
    likeliest = grad_cam(model, images, layer=convolution, relu=False)
    assert torch.equal(likeliest, grad_cam(model, images, model(images).argmax(1), layer=convolution, relu=False))


@pytest.mark.parametrize(
    "pool, block, name", [("cls", None, "blocks.2.norm1"), ("seq", 1, "blocks.1.norm1"), ("seq", None, "")]
)
def test_grad_cam_of_tokens(pool, block, name):
    model, images = small(pool=pool)
    targets = torch.tensor([0, 1, 2, 3])
    logits, hidden = model(images, return_hidden=True)
    score = logits.gather(1, targets[:, None]).sum()
    if name:
        tokens, (gradient,) = hidden[name], torch.autograd.grad(score, hidden[name])
    else:  # of the tokens that are pooled: their weights depend on them too
        tokens = model.norm(hidden["blocks.2"]).detach().requires_grad_()
        pooled = (model.seq_pool(tokens).softmax(1) * tokens).sum(1)
        (gradient,) = torch.autograd.grad(model.head(pooled).gather(1, targets[:, None]).sum(), tokens)
    gradient, tokens = gradient[:, -16:], tokens[:, -16:]
    expected = (tokens * gradient.mean(1, keepdim=True)).sum(-1).clamp_min(0)
    cam = grad_cam(model, images, targets, block=block)
    torch.testing.assert_close(cam.flatten(1), expected.detach(), atol=1e-6, rtol=1e-3)
    assert torch.equal(model(images), logits)  # nothing is left behind on the model


class OnePatch(nn.Module):
    """Its logit for class 1 is ten times the mean of one patch of 4 x 4."""

    def forward(self, images):
        score = images[:, 0, 4:8, 8:12].mean((1, 2)) * 10
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_removal_curve_drops_where_the_patch_goes():
    images, baseline = torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    targets = torch.tensor([1, 1])
    first = torch.tensor([6] + [i for i in range(16) if i != 6])  # row 1, column 2
    order = torch.stack([first, first.flip(0)])
    curve = removal_curve(OnePatch(), images, baseline, order, targets, steps=16)
    high, low = torch.sigmoid(torch.tensor(10.0)), 0.5
    torch.testing.assert_close(curve[0], torch.tensor([high] + [low] * 16))
    torch.testing.assert_close(curve[1], torch.tensor([high] * 16 + [low]))
    insertion = removal_curve(OnePatch(), baseline, images, order.flip(1), targets, steps=16)
    torch.testing.assert_close(insertion, curve.flip(1))  # in the opposite order, the other way round
    assert area(curve)[0] == pytest.approx((high / 2 + 15 * low + low / 2) / 16)


def test_attention_maps_compares_all_of_them_for_the_same_class():
    model, images = small(pool="seq")
    one = attention_maps(model, images, torch.tensor([1, 1, 1, 1]))
    assert len(one) == 5 and all(values.shape == (4, 4, 4) for values in one.values())
    other = attention_maps(model, images, torch.tensor([2, 2, 2, 2]))
    for name in one:  # gradients depend on the class, attention does not
        assert torch.equal(one[name], other[name]) != (name in ("gradient rollout", "Grad-CAM")), name


@pytest.mark.parametrize("pool", ["cls", "seq"])
def test_look_is_the_models_own_forward_pass(pool):
    model, images = small(pool=pool)
    inside = look(model, images)
    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    assert torch.equal(inside.logits, logits) and torch.equal(inside.attention, attention)
    assert inside.hidden.keys() == hidden.keys() and not inside.logits.requires_grad
    weights = pool_weights(model, hidden)
    for i, j in ((0, 0), (2, 3)):
        expected = (weights[:, :, None] * attention[:, i, j]).sum(1)
        torch.testing.assert_close(inside.from_pooled[:, i, j], expected)
        expected = (attention[:, i, j] * weights[:, None]).sum(2)
        torch.testing.assert_close(inside.to_pooled[:, i, j], expected)
    rolled = attention_rollout(inside.attention)
    torch.testing.assert_close(attention_from(rolled, weights), (weights[:, None] @ rolled).squeeze(1))


def test_faithfulness_is_measured_batch_by_batch():
    model, images = small()
    curves = measure_faithfulness(model, images.split(3), random_orders=2)
    assert list(curves) == CURVE_KINDS
    targets = model(images).argmax(-1)
    maps = attention_maps(model, images, targets)
    order = maps["rollout"].flatten(1).argsort(dim=1, descending=True, stable=True)
    blurred = blur(images)
    insertion = removal_curve(model, blurred, images, order, targets)
    torch.testing.assert_close(curves["blur", "insertion"]["rollout"], insertion)
    deletion = removal_curve(model, images, torch.zeros_like(images), order, targets)
    torch.testing.assert_close(curves["mean", "deletion"]["rollout"], deletion)
    draws = torch.Generator().manual_seed(0)
    orders = [torch.rand(2, n, 16, generator=draws).argsort(dim=-1) for n in (3, 1)]
    random = [removal_curve(model, images, blurred, torch.cat([one[i] for one in orders]), targets) for i in (0, 1)]
    torch.testing.assert_close(curves["blur", "deletion"]["random"], sum(random) / 2)


def test_blur_keeps_the_mean_and_loses_the_detail():
    images = torch.randn(2, 3, 32, 32)
    blurred = blur(images)
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.05, rtol=0)
    assert blurred.std() < images.std() / 10


def test_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=4000)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
