"""What benchmark.py measures, and what it refuses."""

import json
import subprocess

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_refused, run
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from vitlab import speed
from vitlab.cli import UserError
from vitlab.config import TrainConfig

SMALL = dict(dataset="cifar10", image_size=16, n_layers=1, embed_dim=32, learning_rate=1e-3)


def test_every_candidate_trains_and_takes_its_turn():
    config = TrainConfig.create(**SMALL)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    candidates = speed.make_candidates(config, images, labels, None)
    assert list(candidates)[:2] == ["ours", "textbook"]
    for step in candidates.values():
        first, *_, last = (step() for _ in range(10))
        assert last < first
    seconds = speed.time_steps(candidates, 3)
    assert all(len(times) == 3 and min(times) > 0 for times in seconds.values())


def test_a_timed_step_changes_all_weights():
    config = TrainConfig.create(SMALL, optimizer="muon")
    model = speed.build_model(config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    step = speed.make_step(model, speed.make_optimizers(model, config), images, labels, None)
    for _ in range(3):  # blocks begin as the identity
        step()
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("options", [{}, dict(qk_norm=True), dict(qkv_bias=False)])
def test_the_textbook_model_is_the_same_function(options):
    config = TrainConfig.create(**SMALL, **options)
    ours, textbook = speed.build_model(config).eval(), speed.textbook_model(config).eval()
    state = ours.state_dict()
    layers = {"qkv": ("queries", "keys", "values"), "proj": ("out_projection",)}
    layers |= {"q_norm": ("query_norm",), "k_norm": ("key_norm",)}
    for name in [name for name in state if ".attn." in name]:
        attention, layer, kind = name.rsplit(".", 2)
        parts = state.pop(name).chunk(len(layers[layer]))
        state.update({f"{attention}.{new}.{kind}": part for new, part in zip(layers[layer], parts)})
    textbook.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(textbook(images), ours(images))


@pytest.mark.parametrize(("stem", "size"), [("linear", 16), ("whitened", 16), ("linear", 48)])
def test_the_stages_of_a_step_have_all_its_operations(stem, size):
    """With 145 tokens attention is computed by the fused kernel, which the counter does not know."""
    config = TrainConfig.create(SMALL, stem=stem, n_layers=3, augment="translate", image_size=size)
    images, labels = torch.randn(8, 3, size, size), torch.randint(10, (8,))
    measured = speed.time_operations(config, images, labels, None, rounds=2)
    model = speed.build_model(config)
    with FlopCounterMode(display=False) as flops:
        F.cross_entropy(model(images, return_attention=True)[0], labels).backward()
    head = 3 * 2 * 8 * 32 * 10 / 1e9
    assert sum(row["gflop"] for row in measured["stages"]) == pytest.approx(flops.get_total_flops() / 1e9 - head)
    stages = [row["stage"] for row in measured["stages"]]
    assert len(set(stages)) == len(stages)
    stem_stages = ["stem, proj"] if stem == "linear" else ["stem, act0", "stem, act1"]
    assert {"augmentation", *stem_stages, "blocks, attn", "blocks, mlp", "optimiser"} < set(stages)
    assert measured["seconds"] > 0 and measured["matmul_gflops"] > 0


def test_all_loaders_read_every_training_image_once(tmp_path):
    for i in range(10):
        for part in ("train", "val"):
            file = tmp_path / "set" / part / f"class{i % 2}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (25 * i, 0, 0)).save(file)
    flags = "--rounds 2 --batch_size 4 --num_workers 1 --image_size 32 --output_path".split()
    done = run("benchmark.py", "--loader", tmp_path / "set", *flags, tmp_path)
    assert done.returncode == 0, done.stderr
    passes = json.loads((tmp_path / "benchmark/report.json").read_text())["loader"]["passes"]
    assert {name: len(row["seconds"]) for name, row in passes.items()} == {"ours": 2, "torchvision": 2, "shards": 2}
    done = run("benchmark.py", "--loader", tmp_path / "set/train", *flags, tmp_path)  # one tree, a fifth for the test
    assert done.returncode == 0 and done.stdout.startswith("8 images"), done.stderr
    assert_refused(run("benchmark.py", "--loader", tmp_path / "nowhere"), "nowhere", "is not a folder")


def test_a_process_is_timed_and_its_memory_measured():
    seconds, peak = benchmark.start(["-c", "import time; x = bytearray(300_000_000); time.sleep(0.2)"])
    assert seconds > 0.2 and peak > 300
    with pytest.raises(UserError, match="fails; run it to see why"):
        benchmark.start(["-c", "raise SystemExit(3)"])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--rounds", 0], ["--rounds 0", "from 1 on"]),
        (["--rounds", "few"], ["--rounds few"]),
        (["--device", "tpu"], ["tpu"]),
        (["--colour", "red"], ["--colour"]),
        (["--epochs", 2], ["--epochs"]),
    ],
)
def test_bad_flags_are_refused(flags, words):
    assert_refused(run("benchmark.py", *flags), *words)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "cnn.yaml").write_text("model: simple_cnn")
    assert_refused(run("benchmark.py", "--config", "cnn.yaml", cwd=tmp_path), "--config cnn.yaml", "simple_cnn")


def test_cold_starts_are_of_our_scripts_alone():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [f"{name}.py" for name in benchmark.SCRIPTS] == [name for name in tracked if "/" not in name]


@pytest.mark.slow
def test_the_report_has_every_part(tmp_path):
    flags = "--rounds 1 --batch_size 4 --n_layers 1 --embed_dim 32".split()
    done = run("benchmark.py", *flags, "--device", "cpu", "--output_path", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark/report.json").read_text())
    assert list(report) == ["hardware", "torch", "config", "steps", "augmentation", "seeing", "cold_start"]
    assert len(report["steps"]["ours"]["seconds"]) == 1
    cold = report["cold_start"]
    assert 0 < cold["help"]["export.py"]["peak_mb"] < 150  # without torch, and without what a parent used
    assert set(cold["help"]) == {f"{name}.py" for name in benchmark.SCRIPTS}
    assert cold["prediction"]["beyond_torch"] == cold["prediction"]["seconds"] - cold["prediction"]["import_torch"]
