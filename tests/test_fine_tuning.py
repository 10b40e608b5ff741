"""Fine-tuning: what a run takes from the file of --init_from, and what it does not."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused, run
from PIL import Image
from test_checkpoint import Teaching
from test_model import scramble
from test_recipe import TINY

from vitlab.checkpoint import load_checkpoint, save_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models.registry import build_model
from vitlab.training import loop
from vitlab.training.fine_tuning import load_weights, take_architecture


def test_fine_tuning_starts_from_the_weights(tmp_path):
    config = TrainConfig.create(dataset="cifar10", embed_dim=32, n_layers=2)
    source = scramble(build_model(config))
    known = dict(classes=["x"] * 10, mean=[0.5] * 3, std=[0.5] * 3, history=[])
    save_checkpoint(tmp_path / "a.pt", source, config, **known)

    same = build_model(dataclasses.replace(config))
    lines = load_weights(same, tmp_path / "a.pt", ["x"] * 10)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in source.state_dict().items())
    assert "fresh" not in "".join(lines)

    other = TrainConfig.create(dataset="cifar100", embed_dim=32, n_layers=2, image_size=64)
    model = build_model(other)
    fresh = model.head.weight.clone()
    lines = load_weights(model, tmp_path / "a.pt", range(100))
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    expected = source.pos_embed[:, 1:].view(1, 8, 8, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(expected, size=(16, 16), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 1:], expected)
    words = "\n".join(lines)
    assert "fresh: head.weight, head.bias" in words and "8 x 8 to 16 x 16" in words

    wide = build_model(TrainConfig.create(dataset="cifar10", embed_dim=64))
    with pytest.raises(UserError, match="same width"):
        load_weights(wide, tmp_path / "a.pt", ["x"] * 10)
    heads = TrainConfig.create(dataset="digits", embed_dim=32, n_layers=2, num_heads=8, output_path=str(tmp_path / "o"))
    heads.init_from, heads.model_path = str(tmp_path / "a.pt"), str(tmp_path / "m")
    with pytest.raises(UserError, match="has 4 attention heads, not 8; give --n_attention_heads 4"):
        loop.fit(build_model(heads), load_data(heads), heads)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]  # nothing was begun


def test_fine_tuning_from_the_teaching_layout(tmp_path):
    theirs = scramble(Teaching())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    flags = "--dataset digits --num_train_images 100 --epochs 1 --no_test".split()
    done = run("train.py", *flags, "--init_from", tmp_path / "theirs.pt", "-lr", 1e-9, "--min_lr", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "32 of 34 tensors used" in done.stdout  # the file does not name its classes: the last layer is new
    after = load_checkpoint(tmp_path / "model/vit-layer2-16-digits").model
    torch.testing.assert_close(after.blocks[0].mlp.fc1.weight, theirs.encoder[0].fc1.weight, atol=1e-4, rtol=0)


def test_fine_tuning_takes_the_architecture_from_the_file(tmp_path):
    """Nothing but the file and the data is named; a flag wins where it can, and is told."""
    shape = dict(stem="conv", n_layers=2, embed_dim=24, num_heads=3, pool="seq", image_size=16)
    config = TrainConfig.create(dataset="cifar10", **shape)
    known = dict(classes=["x"] * 10, mean=[0.5] * 3, std=[0.5] * 3, history=[])
    save_checkpoint(tmp_path / "a.pt", scramble(build_model(config)), config, **known)
    for name in ("ape", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            Image.effect_noise((20, 20), 50).save(tmp_path / "data" / name / f"{i}.png")
    data = ["--dataset", "folder", "--data_path", "data", "--epochs", 1, "--init_from", "a.pt"]
    done = run("train.py", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wins" not in done.stdout and "fresh: head.weight, head.bias\n" in done.stdout
    tuned = load_checkpoint(tmp_path / "model/vit-layer2-16-folder")
    assert tuned.config.model_args() == {**config.model_args(), "num_classes": 2}

    done = run("train.py", *data, "--image_size", 32, "--n_layers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("--image_size 32 wins over 16", "--n_layers 1 wins over 2", "resized from 4 x 4 to 8 x 8"):
        assert line in done.stdout
    assert_refused(run("train.py", *data, "--embed_dim", 48, cwd=tmp_path), "none of its blocks", "same width")
    assert_refused(run("train.py", *data, "--model", "mlp", cwd=tmp_path), "--model mlp", "a.pt is a vit")


def test_the_head_is_reused_for_the_same_classes_alone(tmp_path):
    """Of other classes in equal number, or in another order, it says something else."""
    config = TrainConfig.create(TINY)
    known = dict(mean=[0.5], std=[0.5], history=[])
    source = scramble(build_model(config))
    save_checkpoint(tmp_path / "a.pt", source, config, classes="0123456789", **known)
    for classes, same in (("0123456789", True), ("1023456789", False), ("abcdefghij", False)):
        model = build_model(config)
        fresh = model.head.weight.clone()
        lines = load_weights(model, tmp_path / "a.pt", classes)
        assert torch.equal(model.head.weight, source.head.weight if same else fresh)
        assert ("fresh: head.weight, head.bias" in lines) != same


@pytest.mark.parametrize("kind", ["timm", "averaged", "mae", "dino", "dinov2"])
def test_a_backbone_without_a_head_is_welcome(tmp_path, kind):
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    scale = 0.1 if kind == "dinov2" else None
    shape = dict(img_size=16, patch_size=4, embed_dim=48, depth=2, num_classes=0, init_values=scale)
    theirs = scramble(
        timm_vit.VisionTransformer(num_heads=3, global_pool="avg" if kind == "averaged" else "token", **shape)
    )
    state = theirs.state_dict()
    contents = {
        "timm": state,
        "averaged": state,
        "mae": {"model": {**state, "mask_token": torch.zeros(1, 1, 48), "decoder_embed.weight": torch.ones(8, 48)}},
        "dino": {"teacher": {f"backbone.{k}": v for k, v in state.items()} | {"head.mlp.0.weight": torch.ones(4, 48)}},
        "dinov2": {**state, "mask_token": torch.zeros(1, 48)},
    }[kind]
    torch.save(contents, tmp_path / "theirs.pt")
    given = dict(num_heads=3, dataset="digits")
    config = TrainConfig.create(take_architecture(tmp_path / "theirs.pt", given), given)
    model = build_model(config).eval()
    load_weights(model, tmp_path / "theirs.pt", "0123456789")
    images = torch.randn(2, 3, 16, 16)
    model.head = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), atol=1e-4, rtol=0)
