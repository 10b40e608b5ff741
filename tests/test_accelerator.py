"""Training, evaluation and pictures on an accelerator, without one: see pretend.py."""

import collections
import contextlib
import runpy
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from pretend import DEVICE, accelerator

import model as model_file
import visualize
from vitlab import hardware
from vitlab.attention import faithfulness
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets import augment
from vitlab.datasets.splits import evaluation_batch, load_data
from vitlab.evaluation.report import predict_all
from vitlab.models.registry import build_model
from vitlab.training.epoch import train_one_epoch
from vitlab.training.loop import fit
from vitlab.training.optimizers import MovingAverage, make_optimizers, warmup_cosine
from vitlab.training.state import Run

TINY = dict(dataset="digits", in_chans=3, img_size=16, depth=2, embed_dim=16, num_heads=2, val_split=0.2, batch_size=32)


pytestmark = pytest.mark.filterwarnings("ignore:.*non-meta parameter")  # of load_state_dict, which does copy here


@pytest.fixture
def machine(monkeypatch):
    """The pretend accelerator, as the device that scripts find."""
    adamw = torch.optim.AdamW  # fused knows no meta tensors
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: adamw(groups, lr=lr, foreach=True))
    monkeypatch.setattr("vitlab.training.epoch.autocast", lambda device, dtype: contextlib.nullcontext())  # nor this
    monkeypatch.setattr(model_file, "pick_device", lambda name: DEVICE)
    with accelerator() as machine:
        yield machine


def make_run(config, sets):
    model = build_model(config).to(DEVICE)
    run = Run(
        model=model, config=config, device=DEVICE, amp=None, optimizers=make_optimizers(model, config),
        schedule=warmup_cosine(config, len(sets.train)), scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=MovingAverage(model, 0.9), forward=model,
    )  # fmt: skip
    run.optimizers[0].zero_grad()
    return run


def test_mixed_devices_fail_and_waits_are_counted(machine):
    there, here = torch.arange(3.0).to(DEVICE, non_blocking=True), torch.ones(3)
    for mixed in (lambda: there + here, lambda: there[here.long()], lambda: torch.cat([there, here])):
        with pytest.raises(AssertionError, match="both devices"):
            mixed()
    assert not machine.waits and there.device == DEVICE
    for wait in (there.cpu, lambda: here.to(DEVICE), there.sum().item, lambda: there[there > 1], there.nonzero):
        wait()
    assert len(machine.waits) == 5 and (there * 2).tolist() == [0, 2, 4]
    with torch.inference_mode():
        assert (there + 1).cpu().device.type == "cpu" and len(machine.waits) == 7


@pytest.mark.parametrize("policy, stem", [*((policy, "linear") for policy in augment.POLICIES), ("crop", "whitened")])
def test_a_step_waits_for_nothing(machine, policy, stem):
    flips = dict(alternate_flip=True) if policy in ("none", "crop", "translate", "affine") else {}
    steps, flushes = (25, 2) if policy == "crop-flip" else (5, 1)  # losses are read twenty at a time, and at the end
    config = TrainConfig.create(
        TINY, depth=1, stem=stem, num_train_images=32 * steps, val_split=0, augment=policy, random_erasing=0.5,
        cutmix=1.0, mixup=1.0, drop_rate=0.1, drop_path_rate=0.1, optimizer="muon", clip_grad=1.0, epochs=1,
        patch_drop_rate=0.5, **flips,
    )  # fmt: skip
    sets = load_data(config, ("train",))
    run = make_run(config, sets)
    machine.waits.clear()
    train_one_epoch(run, sets, lambda: 0)
    waits = collections.Counter(machine.waits)
    assert waits.pop("constant", 0) <= 6  # made at their first use
    # flush reads losses and correct answers; total is that of check_weights after the last step
    assert waits == {"flush": 2 * flushes, "total": 1} and len(sets.train) == steps


def test_evaluation_waits_at_the_end_alone_and_gives_the_same_numbers(machine):
    config = TrainConfig.create(TINY)
    model, expected = build_model(config), load_data(config, ("val", "test"), device=torch.device("cpu"))
    on_cpu = predict_all(model, expected.test)
    sets = load_data(config, ("val", "test"))
    assert len(expected.test) == 12 and len(sets.test) == 1  # in one batch
    sets.test.batch_size = 100
    model.to(DEVICE)
    for batches in (sets.val, sets.test, sets.test):  # the first makes constants
        machine.waits.clear()
        labels, logits = predict_all(model, batches)
    assert machine.waits == ["in_order", "in_order"] and len(sets.test) == 4
    assert torch.equal(labels, on_cpu[0])
    torch.testing.assert_close(logits, on_cpu[1])


def test_batches_of_evaluation_hold_up_to_1000_images():
    sizes = dict(patch_size=8, batch_size=128)
    for side, images in ((32, 1000), (64, 1000), (96, 455), (224, 128)):
        config = TrainConfig.create(img_size=side, **sizes)
        assert (evaluation_batch(config, DEVICE), evaluation_batch(config, torch.device("cpu"))) == (images, 128)


def test_faithfulness_waits_at_the_end_alone(machine, monkeypatch):
    monkeypatch.setattr(faithfulness, "CURVE_KINDS", faithfulness.CURVE_KINDS[:1])  # they take time
    config = TrainConfig.create(TINY, depth=1, patch_size=8)
    model, images = build_model(config).to(DEVICE).eval(), torch.randn(4, 3, 16, 16).to(DEVICE)
    numbers = []
    for parts in (images.split(4), images.split(2)):
        machine.waits.clear()
        curves = faithfulness.measure_faithfulness(model, parts, random_orders=1)
        numbers.append(len(machine.waits))
    assert numbers[0] == numbers[1] and curves["mean", "deletion"]["random"].device.type == "cpu"


COMMANDS = ["gif --layers 0", "maps", "rollout", "gradcam", "cls", "tokens", "hidden", "positions", "filters",
            "embeddings --method pca --num_images 50", "faithfulness --num_images 4"]  # fmt: skip


@pytest.mark.curves
@pytest.mark.parametrize("commands", [COMMANDS[1:4], pytest.param(COMMANDS, marks=pytest.mark.slow)])
def test_a_run_and_pictures_of_it(machine, tmp_path, monkeypatch, capsys, commands):
    kinds = ("token_attn_maps", "cls_heatmap", "hidden", "cls_dim_reduction") if commands is COMMANDS else ()
    paths = dict(model_path=str(tmp_path / "model"), output_path=str(tmp_path / "output"), folder_name="r")
    config = TrainConfig.create(
        TINY, patch_size=8, num_train_images=200, epochs=1, stem="conv", pool="seq", optimizer="muon", ema_decay=0.9,
        visualizers=kinds, cutmix=1.0, **paths,
    )  # fmt: skip
    sets = load_data(config)
    report = fit(build_model(config), sets, config)
    assert all((tmp_path / f"output/r/{kind}.gif").exists() for kind in kinds)
    on_cpu = predict_all(
        load_checkpoint(tmp_path / "model/r").model, load_data(config, device=torch.device("cpu")).test
    )
    assert (on_cpu[0] == on_cpu[1].argmax(-1)).double().mean() == report["test"]["accuracy"]

    monkeypatch.chdir(tmp_path)
    for i in range(3):
        Image.new("RGB", (20, 20), ("red", "green", "blue")[i]).save(tmp_path / f"{i}.png")
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["visualize.py", *command.split(), "--model_path", "model/r"])
        assert visualize.main() == 0
    for mode in ("", "--mode cifar-single --no_image", f"--image_path {tmp_path} --no_image"):
        monkeypatch.setattr(sys, "argv", ["test.py", *mode.split(), "--model_path", "model/r"])
        assert runpy.run_path(str(ROOT / "test.py"))["main"]() == 0
    endings = (".png", ".gif", ".json", ".csv")
    written = [path for path in capsys.readouterr().out.split() if path.endswith(endings) and "/" in path]
    assert len(written) > 5 and all((tmp_path / path).exists() for path in written)


def test_the_gpu_of_a_process_is_taken_where_torch_is_not_told_one(monkeypatch):
    taken = []
    for name, instead in (("is_available", lambda: True), ("device_count", lambda: 2), ("set_device", taken.append)):
        monkeypatch.setattr(torch.cuda, name, instead)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert hardware.find_device("auto") == torch.device("cuda:1") and taken == [torch.device("cuda:1")]


class Precisions(torch.nn.Linear):
    """Notes how CUDA would multiply float32."""

    def forward(self, x):
        self.seen = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
        return super().forward(x)


def test_training_may_use_tf32_and_evaluation_does_not():
    cuda, network = torch.device("cuda"), Precisions(2, 2)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with hardware.fast_training(cuda, None):
        network(torch.ones(1, 2))
        assert network.seen == ("tf32", "tf32") and torch.backends.cudnn.benchmark
        predict_all(network, [(torch.ones(3, 2), torch.zeros(3))])
        assert network.seen == ("ieee", "ieee")
    assert not torch.backends.cudnn.benchmark
    for device, amp in ((cuda, torch.bfloat16), (torch.device("cpu"), None)):
        with hardware.fast_training(device, amp):
            network(torch.ones(1, 2))
            assert network.seen == before
    predict_all(network, [(torch.ones(3, 2), torch.zeros(3))])
    assert network.seen == ("ieee", "ieee")
    network(torch.ones(1, 2))
    assert network.seen == before
    with torch.backends.cudnn.flags(enabled=True):  # it fails where convolutions were left as they are not by default
        pass


def test_filters_are_channels_last_on_cuda_and_in_no_checkpoint(tmp_path, monkeypatch):
    config = TrainConfig.create(TINY, stem="conv", model_path=str(tmp_path), folder_name="r", optimizer="adamw")
    sets = load_data(config, ("train",), device=torch.device("cpu"))
    runs = []
    for layout in ("usual", "channels_last", "channels_last"):
        torch.manual_seed(0)
        model = build_model(config)
        if layout == "channels_last":
            monkeypatch.setattr(model, "to", lambda device, model=model: model)  # there is no such device here
            hardware.to_device(model, torch.device("cuda"))
            monkeypatch.undo()
            assert model.patch_embed.stages.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        run = Run(
            model=model, config=config, device=torch.device("cpu"), amp=None, schedule=None, average=None,
            optimizers=make_optimizers(model, config), scaler=torch.amp.GradScaler("cpu", enabled=False), forward=model,
        )  # fmt: skip
        runs.append(run)

    def step(run, seed):
        torch.manual_seed(seed)
        for parameter in run.model.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
        run.optimizers[0].step()

    usual, writer, reader = runs
    for run in (usual, writer):
        step(run, 1)
    writer.save("last.pt", sets)
    contents = read_checkpoint(tmp_path / "r/last.pt")
    assert all(values.is_contiguous() for values in contents["model"].values())
    usual.save("usual.pt", sets)
    for run, name in ((reader, "usual.pt"), (usual, "last.pt")):  # each goes on from the other layout
        run.restore(read_checkpoint(tmp_path / "r" / name))
    for run in (usual, writer, reader):
        step(run, 2)
    for run in (usual, reader):
        for a, b in zip(run.model.state_dict().values(), writer.model.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)
