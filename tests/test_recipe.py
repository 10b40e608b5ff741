"""The parts of a recipe: optimisers, averages, accumulation, mixing, stopping, fine-tuning, logging."""

import copy
import csv
import dataclasses
import importlib.util
import json
import math
import os

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_refused, run
from test_model import scramble

from vitlab import hardware, processes
from vitlab.checkpoint import load_checkpoint, read_checkpoint, write_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets import augment
from vitlab.datasets.splits import load_data
from vitlab.evaluation.report import evaluate
from vitlab.hardware import try_compile
from vitlab.models.registry import build_model, count_parameters
from vitlab.training import loop, tracking
from vitlab.training.loop import check_last_batch
from vitlab.training.muon import Muon
from vitlab.training.optimizers import (
    MovingAverage,
    accumulation,
    make_optimizers,
    optimizer_step,
    set_learning_rate,
    warmup_cosine,
)
from vitlab.training.whitening import second_moments, set_whitening

TINY = dict(
    dataset="digits",
    stem="linear",
    pool="cls",
    embed_dim=16,
    n_layers=2,
    num_train_images=300,
    dropout=0.0,
    augment="none",
    amp="off",
)
FLAGS = [str(word) for name, value in TINY.items() for word in (f"--{name}", value)]


def fit(tmp_path, **args):
    """(final weights as saved in last.pt, report, the run's folder of pictures and tables)."""
    config = TrainConfig.create(
        TINY, output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, overwrite=True, **args
    )
    report = loop.fit(build_model(config), load_data(config), config)
    return read_checkpoint(config.checkpoint_folder / "last.pt"), report, config.output_folder


@pytest.mark.parametrize("accumulate, step_images", [(4, 200), (16, 300)])
def test_with_accumulation_every_image_weighs_the_same(tmp_path, accumulate, step_images):
    """270 images, five batches of 50 and one of 20: the gradients of an epoch's steps are those of all images."""
    config = TrainConfig.create(
        TINY, batch_size=50, epochs=1, grad_accum_steps=accumulate, no_test=True,
        output_path=str(tmp_path), model_path=str(tmp_path),
    )  # fmt: skip
    model, sets, gradients = build_model(config), load_data(config), []

    class Collect(torch.optim.SGD):
        def step(self, closure=None):
            gradients.append(model.head.weight.grad.clone())

    loop.fit(model, sets, config, optimizers=[Collect(model.parameters())])
    images, labels = sets.train.sample(270)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(images), labels, reduction="sum"), model.head.weight)
    assert len(gradients) == -(-6 // accumulate)
    torch.testing.assert_close(sum(gradients) * step_images, expected, atol=1e-4, rtol=1e-4)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    rest = dict(epochs=2, optimizer="sgd", pool="mean", val_split=0.04)  # 288 images: 8 x 36 = 4 x 72
    rest |= dict(learning_rate=0.1, min_lr=0.1, warmup_epochs=0)
    whole, _, _ = fit(tmp_path, batch_size=72, **rest)
    parts, _, _ = fit(tmp_path, batch_size=36, grad_accum_steps=2, **rest)
    start = build_model(TrainConfig.create(TINY)).state_dict()
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, atol=1e-5, rtol=1e-4)
    assert any((whole["model"][name] - start[name]).abs().max() > 0.01 for name in start)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left():
    steps = [accumulation(batch, batches=5, accumulate=2) for batch in range(5)]
    assert steps == [(2, False), (2, True), (2, False), (2, True), (1, True)]
    assert [accumulation(batch, batches=3, accumulate=1) for batch in range(3)] == 3 * [(1, True)]


def test_the_average_is_the_exponential_one(tmp_path):
    """Replay the run's raw weights by hand."""
    config = TrainConfig.create(TINY)
    model = build_model(config)
    average = MovingAverage(model, decay=0.6)
    by_hand = None
    for n in range(8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
        weight = model.head.weight.detach().clone()
        decay = min(0.6, (1 + n) / (10 + n))
        by_hand = weight if by_hand is None else decay * by_hand + (1 - decay) * weight
    torch.testing.assert_close(average.module.head.weight, by_hand)

    contents, report, _ = fit(tmp_path, epochs=2, ema_decay=0.9)
    raw, averaged = contents["training"]["raw_model"], contents["model"]
    assert not torch.equal(raw["head.weight"], averaged["head.weight"])
    model.load_state_dict(read_checkpoint(tmp_path / "vit-layer2-8-digits" / "best.pt")["model"])
    assert evaluate(model, load_data(TrainConfig.create(TINY)).val) == report["val"]


def test_averaged_weights_get_batch_norm_statistics_of_their_own(tmp_path):
    rest = dict(ema_decay=0.9, stem="conv", cutmix=1.0, drop_rate=0.1, batch_size=50, augment="affine")
    contents, report, _ = fit(tmp_path, epochs=1, **rest)
    config = TrainConfig.create(TINY, **rest)
    model, sets = build_model(config), load_data(config)
    model.load_state_dict(contents["model"])
    stored = model.patch_embed.stages.norm0.running_mean.clone()
    seen = [model.patch_embed.stages[:2](images).mean((0, 2, 3)) for images, _ in sets.train]  # not mixed
    torch.testing.assert_close(stored, torch.stack(seen).mean(0))
    assert (stored - contents["training"]["raw_model"]["patch_embed.stages.norm0.running_mean"]).abs().max() > 1e-3
    assert evaluate(model, sets.val) == report["val"]


@pytest.mark.parametrize("emulated", [False, True])
def test_reported_numbers_are_float32_also_after_training_in_bfloat16(tmp_path, monkeypatch, capsys, emulated):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: not emulated)
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path))
    config = TrainConfig.create(TINY, epochs=1, amp="bf16", **paths)
    sets = load_data(config)
    report = loop.fit(build_model(config), sets, config)
    model = load_checkpoint(config.checkpoint_folder / "best.pt").model
    assert (evaluate(model, sets.val), evaluate(model, sets.test)) == (report["val"], report["test"])
    assert ("emulates" in capsys.readouterr().out) == emulated


@pytest.mark.parametrize("args", [dict(optimizer="muon"), dict()])
def test_adamw_and_muon_learn(tmp_path, args):
    contents, report, _ = fit(tmp_path, **{"epochs": 25, "learning_rate": 5e-3, **args})
    losses = [row["train_loss"] for row in contents["history"]]
    assert losses[-1] < 0.75 * losses[0]


def test_muon_has_the_blocks_matrices_and_the_convolutions_behind_the_first():
    rates = dict(learning_rate=1e-3, muon_lr=0.02, muon_conv_lr=0.06)
    config = TrainConfig.create(TINY, optimizer="muon", stem="conv", stem_depth=2, **rates)
    model = build_model(config)
    adamw, muon = make_optimizers(model, config)
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    memory = {p.data_ptr() for group in muon.param_groups for p in group["params"]}
    found = {name for name, parameter in model.named_parameters() if parameter.data_ptr() in memory}
    assert {name for name in found if not name.startswith("blocks.")} == {
        "patch_embed.stages.conv0_1.weight",
        "patch_embed.stages.conv1.weight",
    }
    blocks = {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert blocks <= found and len(found) == len(memory) == len(blocks) + 2
    elsewhere = [p for group in adamw.param_groups for p in group["params"]]
    assert len(elsewhere) + len(memory) == len(list(model.parameters()))
    matrices, filters = muon.param_groups
    assert {p.ndim for p in filters["params"]} == {4} and {p.ndim for p in matrices["params"]} == {2}
    assert (matrices["lr_scale"], filters["lr_scale"]) == (20, 60)


def test_muon_has_one_rate_unless_convolutions_have_their_own():
    config = TrainConfig.create(TINY, optimizer="muon", muon_lr=0.02, learning_rate=1e-3, stem="conv", stem_depth=2)
    _, muon = make_optimizers(build_model(config), config)
    assert [group["lr_scale"] for group in muon.param_groups] == [20, 20]


def test_muon_normalizes_filters_and_has_a_momentum():
    for normalized, momentum in ((True, 0.6), (False, 0.95)):
        options = dict(stem="whitened", stem_depth=2, muon_momentum=momentum, normalize_filters=normalized)
        config = TrainConfig.create(TINY, optimizer="muon", in_chans=3, image_size=16, patch_size=4, **options)
        model = build_model(config)
        optimizers = make_optimizers(model, config)
        set_learning_rate(optimizers, 1e-2)
        for _ in range(2):
            model(torch.randn(4, 3, 16, 16)).square().sum().backward()
            optimizers[1].step()
        matrices, filters = (group["params"] for group in optimizers[1].param_groups)
        assert [group["momentum"] for group in optimizers[1].param_groups] == [momentum, momentum]
        assert len(filters) == 4
        for kind, is_normalized in ((matrices, False), (filters, normalized)):
            norms = torch.stack([parameter.norm() / len(parameter) ** 0.5 for parameter in kind])
            assert torch.allclose(norms, torch.ones(len(kind)), atol=1e-5) == is_normalized


def test_a_gradient_that_overflows_in_float16_stops_all_optimisers():
    config = TrainConfig.create(TINY, optimizer="muon")
    for overflows in (False, True):
        model = build_model(config)
        optimizers, average = make_optimizers(model, config), MovingAverage(model, 0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.scale(
            model(torch.randn(4, config.in_chans, config.img_size, config.img_size)).square().mean()
        ).backward()
        if overflows:
            model.blocks[0].mlp.fc1.weight.grad[0, 0] = math.inf  # Muon's; AdamW's are finite
        optimizer_step(model, optimizers, scaler, clip_grad=1.0, average=average)
        moved = [not torch.equal(*pair) for pair in zip(before, model.parameters())]
        assert (any(moved), int(average.n_averaged)) == (not overflows, 0 if overflows else 1)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        assert scaler.get_scale() == (2.0**9 if overflows else 2.0**10)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_clipping_bounds_the_step(tmp_path):
    rest = dict(
        epochs=1, optimizer="sgd", learning_rate=1.0, warmup_epochs=0, weight_decay=0, batch_size=300, val_split=0
    )
    start = build_model(TrainConfig.create(TINY)).state_dict()
    moved = {}
    for limit in (1e-3, 1e6):
        contents, _, _ = fit(tmp_path, clip_grad=limit, **rest)  # one step
        moved[limit] = sum((contents["model"][n] - v).square().sum().item() for n, v in start.items()) ** 0.5
    assert moved[1e-3] == pytest.approx(1.9e-3, rel=0.01)  # Nesterov: the gradient, and 0.9 of it
    assert moved[1e6] > 0.1


def test_mixing():
    images, labels = torch.rand(64, 3, 16, 16), torch.arange(64) % 10
    config = TrainConfig.create(mixup=0.8, cutmix=1.0, mix_prob=0.5, mix_switch_prob=0.25)
    mix = augment.make_mix(config)
    state = torch.get_rng_state()
    counts = dict(neither=0, mixup=0, cutmix=0)
    for batch in range(400):
        mixed, targets = mix(images, labels, 3, batch)
        if targets.ndim == 1:
            assert torch.equal(mixed, images)
            counts["neither"] += 1
            continue
        torch.testing.assert_close(targets.sum(1), torch.ones(64))
        untouched = (mixed == images).flatten(1).float().mean(1)
        partner = images.roll(1, 0)
        if ((mixed == images) | (mixed == partner)).all():
            counts["cutmix"] += 1
            assert targets[5, 5] == pytest.approx(untouched[5].item(), abs=0.01)  # the share of the area
        else:
            counts["mixup"] += 1
            share = targets[5, 5]
            torch.testing.assert_close(mixed[5], share * images[5] + (1 - share) * partner[5])
    assert abs(counts["neither"] - 200) < 40 and abs(counts["cutmix"] - 50) < 25, counts
    assert torch.equal(mix(images, labels, 3, 399)[0], mixed)  # all from (seed, epoch, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert augment.make_mix(TrainConfig.create()) is None


def test_label_smoothing_and_stochastic_depth_and_attention_dropout_reach_the_model(tmp_path):
    plain = fit(tmp_path, epochs=1)[0]["history"][0]["train_loss"]
    for args in (dict(label_smoothing=0.3), dict(drop_path_rate=0.5), dict(attn_drop_rate=0.5)):
        assert fit(tmp_path, epochs=1, **args)[0]["history"][0]["train_loss"] != plain, args
    config = TrainConfig.create(TINY, drop_path_rate=0.9)
    model = scramble(build_model(config)).train()
    images = torch.randn(1, 1, 8, 8).expand(500, -1, -1, -1)
    first, last = (model(images, return_hidden=True)[1][f"blocks.{i}"][:, 0, 0].unique().numel() for i in (0, 1))
    assert first == 1 and 2 <= last <= 4  # the first block is never dropped; the last's two branches are


def test_warmup_in_steps():
    config = TrainConfig.create(epochs=10, warmup_steps=30, learning_rate=1e-3)
    assert config.warmup_epochs == 0
    rates = [*map(warmup_cosine(config, steps_per_epoch=50), range(500))]
    assert rates.index(max(rates)) == 30 and rates[-1] == pytest.approx(1e-5)
    config.grad_accum_steps = 4
    assert [*map(warmup_cosine(config, steps_per_epoch=50), range(500))].index(1e-3) == 2 * 50 + 4 * 4
    config.warmup_steps = 130  # 13 steps an epoch, the last of them of two batches
    with pytest.raises(UserError, match="--warmup_steps 130 leaves nothing of the run's 130"):
        warmup_cosine(config, steps_per_epoch=50)


def test_early_stopping_waits_its_epochs(tmp_path):
    contents, _, _ = fit(tmp_path, epochs=50, early_stopping=2, learning_rate=0.02, warmup_epochs=0)
    losses = [row["val_loss"] for row in contents["history"]]
    assert len(losses) < 50 and contents["training"]["progress"]["finished"]
    lower = [losses[i] < min(losses[:i]) for i in range(1, len(losses))]
    assert lower[-2:] == [False, False]  # the last two brought nothing lower, as no two before them
    assert all(lower[i] or lower[i + 1] for i in range(len(lower) - 2))


# ----------------------------------------------------------------------------------------- compiling


@pytest.mark.slow
def test_compile_without_a_compiler_goes_on_with_one_line(tmp_path):
    env = {**os.environ, "CXX": "/nowhere/c++", "CC": "/nowhere/cc", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = run("train.py", *FLAGS, "--epochs", 1, "--no_test", "--compile", "--device", "cpu", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("--compile does not work here")]
    assert "epoch   1" in done.stdout


def test_the_trial_of_compile_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    config = TrainConfig.create(TINY, stem="conv", drop_rate=0.1, compile=True)
    model, train = build_model(config), load_data(config).train
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loader = torch.utils.data.DataLoader([(images[0], 0) for images, _ in train], batch_size=4, shuffle=True)
    assert try_compile(model, loader, None) is model
    assert torch.equal(torch.get_rng_state(), generator) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stem", ["linear", "whitened"])
def test_the_model_compiles_to_one_graph(stem):
    config = TrainConfig.create(TINY, stem=stem, drop_rate=0.1, drop_path_rate=0.1)
    model = build_model(config).train()
    images = torch.randn(2, config.in_chans, config.img_size, config.img_size)
    assert torch._dynamo.explain(model)(images).graph_break_count == 0


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(tmp_path):
    flags = [*FLAGS, "--n_layers", 1, "--batch_size", 100, "--epochs", 2, "--no_test", "--val_split", 0]
    # one shape of batches, and nothing but training, as each graph takes half a minute to compile
    plain = run("train.py", *flags, "--folder_name", "plain", cwd=tmp_path)
    compiled = run("train.py", *flags, "--folder_name", "fast", "--compile", cwd=tmp_path)
    assert plain.returncode == compiled.returncode == 0, compiled.stderr
    assert "does not work" not in compiled.stdout
    losses = [
        json.loads((tmp_path / f"output/{name}/report.json").read_text())["train"]["loss"] for name in ("plain", "fast")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert set(read_checkpoint(tmp_path / "model/fast")["model"]) == set(
        read_checkpoint(tmp_path / "model/plain")["model"]
    )


# ------------------------------------------------------------------------------------------- logging


@pytest.mark.curves
def test_tensorboard_holds_the_curves(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    contents, report, output = fit(tmp_path, epochs=3, log_backend="tensorboard", log_every_n_steps=2)
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((output / "metrics.csv").open()))
    for name in ("train_loss", "val_accuracy", "learning_rate", "images_per_second"):
        logged = events.Scalars(f"epoch/{name}")
        assert [event.value for event in logged] == pytest.approx([float(row[name]) for row in rows])
        assert [event.step for event in logged] == [9, 18, 27]
    assert [event.step for event in events.Scalars("step/loss")] == list(range(2, 28, 2))
    assert set(events.Tags()["images"]) == {"loss", "accuracy"}

    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, resume="auto")
    config = TrainConfig.create(TINY, **paths, epochs=4, log_backend="tensorboard", log_every_n_steps=2)
    loop.fit(build_model(config), load_data(config), config)
    events = accumulator.EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("epoch/train_loss")] == [9, 18, 27, 36]
    assert [event.step for event in events.Scalars("step/loss")] == list(range(2, 37, 2))


def test_steps_of_many_batches_are_logged(tmp_path):
    """Steps end at the epochs' ends, which are no multiples of log_every_n_steps."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = dict(batch_size=50, epochs=4, grad_accum_steps=16, log_every_n_steps=10)
    _, _, output = fit(tmp_path, **more, log_backend="tensorboard")  # six batches an epoch
    events = accumulator.EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [12, 24]


def test_a_resumed_run_takes_the_new_flags(tmp_path):
    first, _, _ = fit(tmp_path, epochs=1, optimizer="muon", weight_decay=0.1, muon_lr=0.01, learning_rate=1e-3)
    for state in first["training"]["optimizers"]:
        for group in state["param_groups"]:
            group["scale"] = group.pop("lr_scale")  # as checkpoints had it before
            group.pop("normalize", None)
    write_checkpoint(tmp_path / "vit-layer2-8-digits" / "last.pt", first)
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, resume="auto")
    new = dict(epochs=2, optimizer="muon", weight_decay=0.5, muon_lr=0.03, muon_momentum=0.6, learning_rate=1e-3)
    config = TrainConfig.create(TINY, **paths, **new)
    loop.fit(build_model(config), load_data(config), config)
    last = read_checkpoint(config.checkpoint_folder / "last.pt")
    adamw, muon = (state["param_groups"] for state in last["training"]["optimizers"])
    assert [group["weight_decay"] for group in (*adamw, *muon)] == [0.5, 0.0, 0.5]
    assert [group["lr_scale"] for group in (*adamw, *muon)] == pytest.approx([1, 1, 30])
    assert muon[0]["momentum"] == 0.6 and muon[0]["normalize"] is False
    assert not any("scale" in group for group in (*adamw, *muon))
    assert len(last["history"]) == 2 and last["history"][0] == first["history"][0]


def test_a_single_last_image_and_batch_norm(tmp_path, monkeypatch):
    config = TrainConfig.create(
        dataset="digits", model="simple_cnn", batch_size=34, output_path=str(tmp_path), model_path=str(tmp_path)
    )
    with pytest.raises(UserError, match="--batch_size 34: of 1293 .* choose another"):
        loop.fit(build_model(config), load_data(config), config)
    assert not list(tmp_path.iterdir())

    large = TrainConfig.create(dataset="digits", model="simple_cnn", batch_size=34, image_size=16)
    model = build_model(large)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_last_batch(model, load_data(large), large)  # its smallest maps have four values
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    few = TrainConfig.create(dataset="digits", model="simple_cnn", batch_size=32, num_train_images=35, val_split=0)
    model, sets = build_model(few), load_data(few)
    check_last_batch(model, sets, few)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match="last batch holds 3 images, too few for 2 processes"):
        check_last_batch(model, sets, few)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    env = {**os.environ, "WANDB_MODE": "offline"}
    flags = [*FLAGS, "--epochs", 1, "--no_test", "--log_backend", "wandb", "--project_name", "trial"]
    done = run("train.py", *flags, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("run-*.wandb")
    assert b"trial" in file.read_bytes() and b"epoch/train_loss" in file.read_bytes()


@pytest.mark.slow
def test_weights_and_biases_without_a_key(tmp_path):
    pytest.importorskip("wandb")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {"HOME": str(tmp_path)}
    work = tmp_path / "work"
    work.mkdir()
    done = run("train.py", *FLAGS, "--epochs", 1, "--log_backend", "wandb", cwd=work, env=env)
    assert_refused(done, "--log_backend wandb", "API key", "wandb login", "WANDB_MODE=offline")
    assert not list(work.iterdir())


def test_a_missing_logger_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("both", "tensorboard")):
        with pytest.raises(UserError, match=f"pip install {package}"):
            tracking.check_backend(backend)
    tracking.check_backend("none")


# ----------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--amp", "fp16", "--device", "cpu"], ["fp16", "CPU"]),
        (["--early_stopping", 3, "--val_split", 0], ["--early_stopping", "--val_split 0"]),
        (["--warmup_steps", 10, "--warmup_epochs", 1], ["--warmup_steps", "--warmup_epochs"]),
        (["--stem", "conv", "--patch_size", 3], ["3", "power of two"]),
        (["--stem", "conv", "--patch_size", 1], ["1", "power of two"]),
        (["--init_from", "nowhere.pt"], ["nowhere.pt"]),
        (["--init_from", "a.pt", "--resume", "b.pt"], ["--init_from", "--resume"]),
        (["--ema_decay", 1], ["--ema_decay 1"]),
        (["--fsdp", "--compile"], ["--compile", "--fsdp"]),
        (["--mix_prob", 2], ["--mix_prob 2"]),
    ],
)
def test_contradictions_are_refused_before_any_work(tmp_path, flags, words):
    assert_refused(run("train.py", *FLAGS, *flags, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_cutmix_needs_two_classes():
    with pytest.raises(UserError, match="--cutmix need two classes"):
        TrainConfig.create(dataset=None, img_size=8, in_chans=1, num_classes=1, cutmix=1)


@pytest.mark.slow
def test_every_config_can_be_trained(tmp_path):
    """Each file of configs/ is read, builds its model, and takes a few steps with its first two blocks, on which the
    loss falls: of ImageNet's on a folder of our own."""
    for number in range(10):
        (tmp_path / f"n{number}").mkdir()
        (tmp_path / f"n{number}" / "1.JPEG").touch()
    files = sorted(set((ROOT / "configs").rglob("*.yaml")) - set((ROOT / "configs").rglob("compare*")))
    assert files
    for file in files:
        of_own = ["--data_path", str(tmp_path)] if file.stem.endswith("imagenet") else []
        config = TrainConfig.from_args(["--config", str(file), *of_own])
        assert file.read_text().startswith("# ")
        config.folder_name == file.stem or pytest.fail(f"{file.name} trains {config.folder_name}")
        assert count_parameters(build_model(config)) > 500_000, file
        config = dataclasses.replace(config, device="cpu", ema_decay=0.0, depth=2)
        if of_own:
            config = dataclasses.replace(config, learning_rate=1e-5)  # as early in its warmup
        model = build_model(config).train()
        optimizers = make_optimizers(model, config)
        images = torch.randn(2, config.in_chans, config.img_size, config.img_size)
        losses = []
        for _ in range(2):
            loss = F.cross_entropy(model(images), torch.tensor([0, 1]))
            losses.append(loss.item())
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        losses.append(F.cross_entropy(model(images), torch.tensor([0, 1])).item())
        assert min(losses[1:]) < losses[0], file


def test_a_whitened_stem_whitens_the_training_images_and_stays_so(tmp_path):
    stem = dict(stem="whitened", stem_depth=2, in_chans=3, image_size=16, patch_size=4, alternate_flip=True)
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True)
    config = TrainConfig.create(TINY, stem, optimizer="muon", schedule="linear", min_lr=0.0, epochs=1, **paths)
    sets, model = load_data(config), build_model(config)
    set_whitening(model, sets)
    stem, images = model.patch_embed, sets.train.sample(5000)[0]
    filters = stem.whiten.weight.clone()
    assert torch.equal(filters[12:], -filters[:12])
    white = stem.whiten(images)[:, 8:12].transpose(0, 1).flatten(1)  # RGB from grey: eight components have no variance
    assert (white @ white.T / white.shape[1] - torch.eye(4)).abs().max() < 0.05

    loop.fit(model, sets, config)
    assert torch.equal(stem.whiten.weight, filters)
    assert all(norm.weight.eq(1).all() for norm in stem.stages if isinstance(norm, torch.nn.BatchNorm2d))
    assert torch.equal(load_checkpoint(config.checkpoint_folder).model.patch_embed.whiten.weight, filters)


def test_second_moments_are_those_of_all_patches():
    pixels = torch.randn(20, 3, 8, 8)
    patches = F.unfold(pixels, 2).transpose(1, 2).reshape(-1, 12)
    assert torch.allclose(second_moments(pixels, at_once=7), patches.T @ patches / len(patches), atol=1e-5)


def test_a_whitened_stem_starts_as_the_identity():
    model = build_model(TrainConfig.create(dataset="cifar10", stem="whitened", stem_depth=2, embed_dim=64))
    x = torch.randn(2, 24, 32, 32)
    out = model.patch_embed.stages.conv0(x)
    assert torch.allclose(out[:, :24], x, atol=1e-6) and not torch.allclose(out[:, 24:48], x, atol=1e-3)


def test_the_stages_of_a_stem_grow():
    for growth, widths in ((2, [64, 128, 192]), (4, [64, 192, 192]), (1, [64, 64, 192])):
        config = TrainConfig.create(stem="whitened", stem_growth=growth, patch_size=8, embed_dim=192, num_heads=3)
        stages = build_model(config).patch_embed.stages
        assert [stages.get_submodule(f"conv{i}").out_channels for i in range(3)] == widths


def test_the_schedule_falls_along_a_line():
    config = TrainConfig.create(epochs=5, warmup_epochs=1, learning_rate=1.0, min_lr=0.1, schedule="linear")
    rate = warmup_cosine(config, steps_per_epoch=10)
    fall = [rate(step) for step in range(10, 50)]
    assert fall[0] == 1.0 and fall[-1] == pytest.approx(0.1)
    assert [a - b for a, b in zip(fall, fall[1:])] == pytest.approx(39 * [0.9 / 39])


def test_alternating_flips_want_no_random_ones(tmp_path):
    done = run("train.py", "--dataset", "digits", "--augment", "crop-flip", "--alternate_flip", cwd=tmp_path)
    assert_refused(done, "--alternate_flip", "crop-flip", "translate")
