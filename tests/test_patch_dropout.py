"""Patch dropout: which tokens are left, and what the epochs cost."""

import pytest
import torch
from conftest import assert_refused, run
from test_model import scramble

from model import VisionTransformer
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models.patch_dropout import drop_rate, keep_patches, patches_dropped
from vitlab.models.registry import build_model, count_flops, train_pflop
from vitlab.training.loop import fit


@pytest.mark.parametrize("has_cls", [True, False])
def test_cls_and_a_random_share_of_the_patches_are_kept(has_cls):
    torch.manual_seed(0)
    tokens = torch.arange(2000 * (8 + has_cls), dtype=torch.float32).view(2000, -1, 1).expand(-1, -1, 3)
    kept = keep_patches(tokens, 0.75, has_cls)
    assert kept.shape == (2000, 6 + has_cls, 3)
    places = kept[:, :, 0] - tokens[:, :1, 0]
    if has_cls:
        assert (places[:, 0] == 0).all() and (places[:, 1:] >= 1).all()
    patches = places[:, int(has_cls) :]
    assert all(len(set(row)) == 6 for row in patches.tolist())
    shares = patches.long().flatten().bincount()[int(has_cls) :] / 2000
    assert len(shares) == 8 and (shares - 0.75).abs().max() < 0.05  # no patch is preferred
    assert keep_patches(tokens, 0.01, has_cls).shape[1] == 1 + has_cls


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_the_blocks_see_fewer_patches_within_the_context_alone(grad_checkpointing):
    model = scramble(VisionTransformer(img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2))
    model.grad_checkpointing = grad_checkpointing
    images = torch.randn(3, 3, 32, 32)
    with patches_dropped(model, 0.5):
        logits, attention = model(images, return_attention=True)
        logits.sum().backward()
    assert attention.shape[-2:] == (33, 33)
    assert model.pos_embed.grad[0].abs().sum(1).gt(0).sum() > 33  # each image lost others
    assert model(images, return_attention=True)[1].shape[-2:] == (65, 65)


def test_the_share_falls_along_a_line_to_zero():
    assert [drop_rate(0.5, epoch, 5) for epoch in range(5)] == [0.5, 0.375, 0.25, 0.125, 0]
    assert drop_rate(0.5, 0, 1) == 0.5


def test_operations_are_those_of_the_patches_that_were_seen():
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=6)

    def by_hand(tokens):
        linears, products = tokens * 128 * (3 * 128 + 128 + 4 * 128), 2 * tokens * tokens * 128
        return 2 * (6 * (linears + products) + 64 * 48 * 128 + 128 * 10)  # all patches are embedded

    assert count_flops(model, 0.5) == by_hand(33) and count_flops(model) == by_hand(65)
    rates = [drop_rate(0.5, epoch, 3) for epoch in range(3)]
    expected = 3 * 1000 * (by_hand(33) + by_hand(49) + by_hand(65)) / 1e15
    assert train_pflop(model, 3000, rates) == pytest.approx(expected, rel=1e-3)


def test_a_report_counts_what_each_epoch_dropped(tmp_path):
    def pflop(**settings):
        config = TrainConfig.create(
            dataset="digits", num_train_images=64, val_split=0, patch_drop_rate=0.5, warmup_epochs=0, no_test=True,
            output_path=str(tmp_path), model_path=str(tmp_path), **settings,
        )  # fmt: skip
        return fit(build_model(config), load_data(config), config)["train_pflop"]

    model = build_model(TrainConfig.create(dataset="digits"))
    assert pflop(epochs=3) == train_pflop(model, 3 * 64, [0.5, 0.25, 0]) < train_pflop(model, 3 * 64)
    two = pflop(epochs=2)
    last = next(tmp_path.glob("*-2/last.pt"))
    contents = torch.load(last, weights_only=True)
    longer = pflop(epochs=4, resume=str(last))
    assert two == train_pflop(model, 2 * 64, [0.5, 0])
    assert longer == train_pflop(model, 4 * 64, [0.5, 0, 0.5 / 3, 0])
    del contents["training"]["progress"]["dropped"]  # of a version that dropped none
    torch.save(contents, last)
    assert pflop(epochs=4, resume=str(last)) == train_pflop(model, 4 * 64, [0, 0, 0.5 / 3, 0])


@pytest.mark.parametrize(
    "flags, remedy",
    [
        (["--model", "simple_cnn"], "simple_cnn has none"),
        (["--compile"], "keep one of them"),
    ],
)
def test_what_cannot_drop_patches(flags, remedy, tmp_path):
    assert_refused(run("train.py", "--dataset", "digits", "--patch_drop_rate", 0.5, *flags, cwd=tmp_path), remedy)
