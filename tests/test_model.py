"""model.py against timm's VisionTransformer, and against itself along both attention paths."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused, run
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Attention, Dropout, VisionTransformer, pick_device, sine_positions
from vitlab.models.registry import count_flops, count_parameters

timm_vit = pytest.importorskip("timm.models.vision_transformer", reason="timm is the oracle: requirements-dev.txt")


def scramble(module, seed=0):
    """Move every parameter, norms and biases too, away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("size, patch", [(32, 4), (224, 16)])
def test_logits_equal_timms(size, patch, pool):
    shape = dict(img_size=size, patch_size=patch, num_classes=10, embed_dim=96, depth=3, num_heads=3, mlp_ratio=2.0)
    theirs = scramble(timm_vit.VisionTransformer(global_pool={"cls": "token", "mean": "avg"}[pool], **shape))
    ours = VisionTransformer(pool=pool, **shape).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0.1  # the oracle says something
        assert (ours(images) - expected).abs().max() < 1e-4
        assert (ours(images, return_attention=True)[0] - expected).abs().max() < 1e-4


def small(**args):
    return scramble(VisionTransformer(**{"img_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, **args}))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_both_paths_agree_and_attention_is_a_distribution(qk_norm):
    model = small(qk_norm=qk_norm).eval()  # in training so few tokens are not for the kernel
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        fused = model(images)
    explicit, attention = model(images, return_attention=True)
    assert (fused - explicit).abs().max() <= 1e-5 * fused.abs().max()
    assert attention.shape == (5, 3, 4, 17, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, 3, 4, 17))
    assert attention.std() > 0


def test_attention_by_hand_is_what_torch_computes():
    layer = scramble(Attention(32, num_heads=4, qkv_bias=True, attn_drop_rate=0.0))
    x = torch.randn(2, 7, 32)
    expected, weights = F.multi_head_attention_forward(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), 32, 4,
        layer.qkv.weight, layer.qkv.bias, None, None, False, 0.0, layer.proj.weight, layer.proj.bias,
        training=False, need_weights=True, average_attn_weights=False,
    )  # fmt: skip
    out, attention = layer(x, return_attention=True)
    torch.testing.assert_close(out, expected.transpose(0, 1))
    torch.testing.assert_close(layer(x)[0], out)
    torch.testing.assert_close(attention, weights)


def test_norms_of_queries_and_keys_bound_the_scores():
    """Scores of normed queries and keys are at most sqrt(D/H), whatever the size of the projections."""
    layer = Attention(32, num_heads=4, qkv_bias=True, attn_drop_rate=0.0, qk_norm=True)
    x = torch.randn(2, 7, 32)
    _, attention = layer(x, return_attention=True)
    with torch.no_grad():
        layer.qkv.weight *= 1000
    _, larger = layer(x, return_attention=True)
    assert (larger.log().amax(-1) - larger.log().amin(-1)).max() <= 2 * 8**0.5
    assert not torch.allclose(attention, torch.full_like(attention, 1 / 7), atol=0.01)


@pytest.mark.parametrize(
    "dtype, size, training, called",
    [
        (torch.float32, 16, False, True),
        (torch.float32, 16, True, False),
        (torch.float32, 64, True, True),
        (torch.bfloat16, 16, False, False),
    ],
)
def test_the_fused_kernel_is_used_unless_it_is_the_slower_one(monkeypatch, dtype, size, training, called):
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    images = torch.randn(1, 3, size, size)
    small(img_size=size).to(dtype).train(training)(images.to(dtype))
    assert bool(calls) == called
    calls.clear()
    small(img_size=size)(images, return_attention=True)
    assert not calls


def test_hidden_values_are_the_modules_outputs():
    model = small()
    images = torch.randn(2, 3, 16, 16)
    caught = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, out, name=name: caught.update({name: out}))
    logits, hidden = model(images, return_hidden=True)
    names = ["patch_embed"]
    for i in range(3):
        names += [f"blocks.{i}.{part}" for part in ("norm1", "attn", "norm2", "mlp")] + [f"blocks.{i}"]
    assert list(hidden) == names
    for name, value in hidden.items():
        out = caught[name][0] if isinstance(caught[name], tuple) else caught[name]
        assert torch.equal(value, out), name
    assert torch.equal(model.head(model.norm(hidden["blocks.2"][:, 0])), logits)
    assert len(model(images, return_attention=True, return_hidden=True)) == 3


def test_mlp_head_is_linear_tanh_linear():
    model = small(head="mlp", num_classes=7)
    logits, hidden = model(torch.randn(2, 3, 16, 16), return_hidden=True)
    token = model.norm(hidden["blocks.2"][:, 0])
    assert torch.equal(logits, model.head.fc2(torch.tanh(model.head.fc1(token))))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("stem_depth", [1, 3])
def test_conv_stem_and_sequence_pooling(stem_depth):
    model = small(stem="conv", stem_depth=stem_depth, patch_size=4, pool="seq").double()
    model.train()  # batch norm by the batch
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    logits, attention, hidden = model(images, return_attention=True, return_hidden=True)
    assert attention.shape == (2, 3, 4, 16, 16)  # no CLS
    x = images
    for name in {1: ("0", "1", "2"), 3: ("0", "0_1", "0_2", "1", "1_1", "1_2", "2")}[stem_depth]:
        conv, norm = (getattr(model.patch_embed.stages, f"{kind}{name}") for kind in ("conv", "norm"))
        x = F.conv2d(x, conv.weight, padding=1)
        x = F.max_pool2d(x, 3, 2, 1) if name in ("0", "1") else x
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        x = ((x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
    torch.testing.assert_close(hidden["patch_embed"], x.flatten(2).mT)
    tokens = model.norm(hidden["blocks.2"])
    weights = torch.softmax(tokens @ model.seq_pool.weight.T + model.seq_pool.bias, dim=1)  # B x N x 1
    torch.testing.assert_close(logits, model.head((weights.mT @ tokens)[:, 0]))


def test_positions_start_as_sines():
    table = sine_positions(8, 32)
    assert table.shape == (64, 32)
    distance = torch.cdist(table, table)
    assert (distance.fill_diagonal_(9) > 0.1).all()  # every place is told from every other
    near, far = distance[0, 1], distance[0, 7]
    assert near < far and distance[0, 8] == pytest.approx(near.item(), abs=1e-5)  # right and down alike
    assert torch.equal(sine_positions(4, 30)[:, 28:], torch.zeros(16, 2))


def test_every_parameter_learns():
    for args in (dict(), dict(pool="mean"), dict(head="mlp"), dict(pool="seq", stem="conv")):
        model = small(**args).train()
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert set(still) <= {"seq_pool.bias"}  # which a softmax over the tokens cannot see


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(img_size=32, patch_size=5), ("5", "32")),
        (dict(embed_dim=128, num_heads=3), ("3", "128")),
        (dict(pool="max"), ("max",)),
        (dict(head="big"), ("big",)),
        (dict(stem="soft"), ("soft",)),
        (dict(depth=0), ("depth 0", "1 or more")),
        (dict(num_classes=-1), ("num_classes -1", "1 or more")),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(args, words):
    with pytest.raises(ValueError) as caught:
        VisionTransformer(**args)
    assert all(word in str(caught.value) for word in words)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1000, 1003)
    for p in (0.1, 0.5):
        out = Dropout(p)(x)
        dropped = (out == 0).float()
        assert abs(dropped.mean() - p) < 0.002
        assert abs(out.mean() - 1) < 0.005
        assert out.unique().tolist() == [0, pytest.approx(1 / (1 - p))]
        # neighbours (which share a random 64-bit word) are independent
        assert abs((dropped[:, 1:] * dropped[:, :-1]).mean() - p * p) < 0.002
    assert torch.equal(Dropout(0.5).eval()(x), x)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.5)(x))


def test_dropout_sends_gradients_only_through_what_it_kept():
    x = torch.ones(50, 50, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_pick_device(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    with pytest.raises(ValueError, match="'cuda' is not here.*mps, cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto").type == "cuda" and pick_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="'cuda:9' is not here"):
        pick_device("cuda:9")
    with pytest.raises(ValueError, match="tpu"):
        pick_device("tpu")
    with pytest.raises(ValueError, match="'cpu:x' is not here"):
        pick_device("cpu:x")


def test_parameters_and_flops():
    model = VisionTransformer()
    theirs = timm_vit.VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, embed_dim=128, depth=6, num_heads=4, mlp_ratio=2.0
    )
    assert count_parameters(model) == sum(p.numel() for p in theirs.parameters())
    tokens, width = 65, 128
    linears = tokens * width * (3 * width + width + 2 * 2 * width)
    products = 2 * tokens * tokens * width
    by_hand = 2 * (6 * (linears + products) + 64 * 48 * width + width * 10)
    assert count_flops(model) == by_hand


def test_the_script_prints_the_architecture_and_its_cost():
    model = VisionTransformer(depth=2, num_heads=8)
    done = run("model.py", "--n_layers", 2, "--n_attention_heads", 8)
    assert done.returncode == 0, done.stderr
    printed, cost = done.stdout.strip().split("\n\n")
    assert printed == str(model.eval())
    assert cost == f"{count_parameters(model):,} parameters, {count_flops(model) / 1e6:.1f} MFLOPs an image, forward"
    assert run("model.py", "--depth", 2, "--num_heads", 8).stdout == done.stdout
    assert run("model.py", "--img_size", 4096, "--depth", 2).returncode == 0  # its attention would fill 17 TB


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--mlp_ratio", -1], ["mlp_ratio -1", "above 0"]),
        (["--mlp_ratio", "nan"], ["mlp_ratio nan", "above 0"]),
        (["--patch_size", 5], ["model.py: patch size 5", "image size 32"]),
        (["--n_attention_heads", 3], ["3 heads", "width 128"]),
        (["--n_layers", 0], ["depth 0", "1 or more"]),
        (["--n_layers", "two"], ["--n_layers", "two"]),
        (["--colour", "red"], ["--colour"]),
        (["--dept", 2], ["--dept"]),  # no abbreviations
    ],
)
def test_the_script_refuses_in_one_line(flags, words):
    assert_refused(run("model.py", *flags), *words)
