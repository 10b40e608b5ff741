"""Fine-tuning a part of a model: --freeze and --layer_decay."""

import pytest
import torch
from test_recipe import TINY

from model import VisionTransformer
from vitlab.checkpoint import read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models.registry import build_model, count_parameters
from vitlab.training import loop
from vitlab.training.freezing import check_freezing, freeze_parameters, frozen_names, layer_scales, train_mode
from vitlab.training.optimizers import make_optimizers

SHORT = dict(dataset="digits", num_train_images=100, val_split=0, no_test=True, epochs=1, amp="off", augment="none")
TWO_BLOCKS = {**TINY, **SHORT}


def fit(tmp_path, **settings):
    """Train a small model; its config, and the model's state before and after."""
    paths = dict(output_path=str(tmp_path / "output"), model_path=str(tmp_path / "model"))
    config = TrainConfig.create(SHORT if "model" in settings else TWO_BLOCKS, paths, settings)
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop.fit(model, load_data(config, ("train",)), config)
    return config, before, model.state_dict()


@pytest.mark.parametrize(
    "settings, trained",
    [
        (dict(freeze="head", stem="conv", ema_decay=0.9), ("head.",)),
        (dict(freeze="1", drop_rate=0.5), ("blocks.1.", "norm.", "head.")),
        (dict(freeze="0", optimizer="muon"), ("blocks.", "norm.", "head.")),
        (dict(freeze="head", model="simple_cnn"), ("head.",)),
    ],
)
def test_what_is_frozen_stays_as_it_is(tmp_path, capsys, settings, trained):
    _, before, after = fit(tmp_path, **settings)
    for name, value in after.items():
        assert torch.equal(value, before[name]) != name.startswith(trained), name
    assert "frozen: " in capsys.readouterr().out


def test_frozen_modules_are_in_evaluation_mode():
    config = TrainConfig.create(TWO_BLOCKS, freeze="1", drop_rate=0.5, drop_path_rate=0.5, stem="conv")
    model = build_model(config)
    make_optimizers(model, config)
    train_mode(model)
    assert model.training and model.blocks[1].mlp.drop.training and model.blocks[1].drop_path.training
    assert not any(module.training for module in (*model.patch_embed.modules(), *model.blocks[0].modules()))
    assert len(frozen_names(model, "2")) > len(frozen_names(model, "1")) > len(frozen_names(model, "0")) > 0


def test_layer_decay_is_timms():
    """But for the last norm, which BEiT counts to the head, and timm to the last block."""
    timm_optim, timm_vit = (pytest.importorskip(f"timm.{name}") for name in ("optim", "models.vision_transformer"))
    theirs = timm_vit.VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3)
    groups = timm_optim.param_groups_layer_decay(theirs, layer_decay=0.7)
    expected = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    scales = layer_scales(VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3), 0.7)
    assert scales["blocks.0.mlp.fc1.weight"] == pytest.approx(0.7**3) and scales["norm.weight"] == 1
    compared = {name: parameter for name, parameter in theirs.named_parameters() if not name.startswith("norm.")}
    assert {name: scales[name] for name in compared} == pytest.approx({n: expected[id(p)] for n, p in compared.items()})


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_every_optimizer_gets_the_rates_of_the_layers(optimizer):
    config = TrainConfig.create(TWO_BLOCKS, layer_decay=0.5, optimizer=optimizer, learning_rate=1e-3, muon_lr=5e-3)
    model = build_model(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales, seen = layer_scales(model, 0.5), set()
    for kind, one in enumerate(make_optimizers(model, config)):
        for group in one.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                assert group["lr_scale"] == pytest.approx(scales[name] * (5 if kind else 1)), name
                seen.add(name)
    assert seen == set(names.values())
    assert make_optimizers(model, config)[0].param_groups[0]["lr_scale"] == 1  # what metrics.csv tells


def test_a_resumed_run_freezes_and_decays_as_before(tmp_path):
    settings = dict(freeze="1", layer_decay=0.5, epochs=2, folder_name="run", save_every_n_epochs=1)
    config, _, after = fit(tmp_path, **settings)
    first = config.checkpoint_folder / "ViT_model_001.pt"
    with pytest.raises(UserError, match="trained with --layer_decay 0.5, not 1.0"):
        fit(tmp_path, **{**settings, "layer_decay": 1.0}, resume=str(first))
    _, _, resumed = fit(tmp_path, **settings, resume=str(first))
    assert all(torch.equal(value, after[name]) for name, value in resumed.items())
    groups = read_checkpoint(config.checkpoint_folder / "last.pt")["training"]["optimizers"][0]["param_groups"]
    assert sorted({group["lr_scale"] for group in groups}) == [0.5, 1]


def test_frozen_parameters_count_among_those_of_the_model():
    config = TrainConfig.create(dataset="digits", freeze="head")
    model = build_model(config)
    complete = count_parameters(model)
    freeze_parameters(model, config)
    assert count_parameters(model) == complete == sum(value.numel() for value in model.parameters())


def test_what_cannot_be_frozen_is_refused():
    assert TrainConfig.create(TWO_BLOCKS, freeze=1).freeze == "1"  # as YAML gives it
    for settings, words in (
        (dict(freeze="3"), "--freeze 3: give head, .* or a number of blocks from 0 to 2"),
        (dict(freeze="tail"), "--freeze tail: give head"),
        (dict(model="resnet18", freeze="1"), "--freeze 1: give head, to train the head alone$"),
        (dict(model="resnet18", layer_decay=0.5), "--layer_decay 0.5: resnet18 has no blocks"),
    ):
        with pytest.raises(UserError, match=words):
            check_freezing(TrainConfig.create(SHORT if "model" in settings else TWO_BLOCKS, settings))
    with pytest.raises(UserError, match="--optimizer muon: no block .* choose adamw"):
        config = TrainConfig.create(TWO_BLOCKS, freeze="2", optimizer="muon")
        make_optimizers(build_model(config), config)
