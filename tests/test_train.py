"""train.py and training/: what a run leaves behind, and how it ends."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, assert_refused, forks, run
from PIL import Image

from vitlab import hardware
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.images import normalise
from vitlab.datasets.splits import load_data
from vitlab.evaluation.report import evaluate, make_report
from vitlab.files import write_json
from vitlab.hardware import pick_amp
from vitlab.models.registry import build_model, count_flops
from vitlab.pictures import figures
from vitlab.training import epoch, loop
from vitlab.training.loop import fit
from vitlab.training.optimizers import make_optimizers, warmup_cosine
from vitlab.training.run_folder import COLUMNS, claim_folders
from vitlab.training.state import Progress
from vitlab.training.stopping import stop_at_signal

TINY = ["--dataset", "digits", "--embed_dim", 16, "--n_layers", 1, "--num_train_images", 100]


def test_a_run_learns_and_leaves_everything(digits_run):
    root, done = digits_run
    name = "vit-layer4-8-digits"
    report = json.loads((root / "output" / name / "report.json").read_text())
    rows = list(csv.DictReader((root / "output" / name / "metrics.csv").open()))

    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])
    assert report["test"]["accuracy"] > 0.5 and report["test"]["n"] == 360
    assert report["val"]["n"] == 144 and report["train"]["n"] == 1293
    low, high = report["test"]["ci95"]
    assert low < report["test"]["accuracy"] < high
    assert report["val"]["accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert set(report) == {
        "name", "dataset", "command", "checkpoint", "seed", "hardware", "versions", "git_commit", "data",
        "parameters", "seconds", "images_per_second", "train_pflop", "train", "val", "test", "cpu", "dtype",
    }  # fmt: skip
    assert report["command"] == "train.py --dataset digits --epochs 4"
    amp = pick_amp(torch.device("cpu"), "auto")
    assert report["dtype"] == {"train": str(amp or torch.float32)[6:], "evaluate": "float32"}
    assert report["cpu"].endswith(("thread", "threads")) and "cuda" not in report["versions"]
    opening = next(line for line in done.stdout.splitlines() if line.startswith("dataset="))
    assert opening == "dataset=digits model=vit epochs=4 warmup_epochs=0.4; all else by default"
    model = load_checkpoint(root / "model" / name).model
    assert report["train_pflop"] == pytest.approx(3 * count_flops(model) * 4 * 1293 / 1e15, rel=1e-3)

    config = yaml.safe_load((root / "output" / name / "config.yaml").read_text())
    assert TrainConfig.create(config) == TrainConfig.create(dataset="digits", epochs=4)
    for picture in ("graph_loss.png", "graph_accuracy.png"):
        assert f"output/{name}/{picture}" in done.stdout
        with Image.open(root / "output" / name / picture) as image:
            assert len(image.convert("L").getcolors(256)) > 10
    assert {path.name for path in (root / "model" / name).iterdir()} == {"best.pt", "last.pt"}
    assert {path.name for path in (root / "output" / name).iterdir()} - {"test", "visualize"} == {  # of other scripts
        "config.yaml", "graph_accuracy.png", "graph_loss.png", "metrics.csv", "report.json", "training.gif",
    }  # fmt: skip
    assert f"test accuracy {report['test']['accuracy']:.4f}" in done.stdout
    assert "seed 0" in done.stdout


def test_the_last_line_is_the_command_that_tests_it(digits_run):
    root, done = digits_run
    command = done.stdout.strip().splitlines()[-1]
    assert command == "python test.py --model_path model/vit-layer4-8-digits"
    tested = run(*command.split()[1:], cwd=root)
    assert tested.returncode == 0, tested.stderr
    trained = json.loads((root / "output/vit-layer4-8-digits/report.json").read_text())
    again = json.loads((root / "output/vit-layer4-8-digits/test/report.json").read_text())
    assert again["test"] == trained["test"]


def test_a_second_run_gets_another_name_and_overwrite_does_not(tmp_path):
    def train(*more):
        done = run("train.py", *TINY, "--epochs", 1, "--no_test", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    train()
    before = (tmp_path / "model/vit-layer1-8-digits/best.pt").read_bytes()
    assert "called vit-layer1-8-digits-2" in train("--seed", 1)
    assert (tmp_path / "model/vit-layer1-8-digits/best.pt").read_bytes() == before
    (tmp_path / "output/vit-layer1-8-digits/cls_heatmap.gif").touch()  # as a run with --visualizers leaves it
    train("--seed", 2, "--overwrite")
    assert not (tmp_path / "output/vit-layer1-8-digits/cls_heatmap.gif").exists()
    assert (tmp_path / "model/vit-layer1-8-digits/best.pt").read_bytes() != before
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"vit-layer1-8-digits", "vit-layer1-8-digits-2"}


def claim(start, names, settings):
    start.wait()
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        names.put([claim_folders(TrainConfig.create(settings, folder_name=f"run{n}")) for n in range(30)])


def test_runs_that_start_together_get_names_of_their_own(tmp_path):
    settings = dict(dataset="digits", model_path=str(tmp_path / "m"), output_path=str(tmp_path / "o"))
    start, names = forks().Barrier(4), forks().Queue()
    processes = [forks().Process(target=claim, args=(start, names, settings)) for _ in range(4)]
    for process in processes:
        process.start()
    claimed = [name for _ in processes for name in names.get(timeout=60)]
    for process in processes:
        process.join()
    assert len(set(claimed)) == 4 * 30
    for folder in ("m", "o"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == set(claimed)


def test_without_validation_best_is_the_newest(tmp_path):
    done = run("train.py", *TINY, "--epochs", 2, "--val_split", 0, "--no_test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best, last = (read_checkpoint(tmp_path / f"model/vit-layer1-8-digits/{name}.pt") for name in ("best", "last"))
    assert all(torch.equal(value, last["model"][name]) for name, value in best["model"].items())
    rows = list(csv.DictReader((tmp_path / "output/vit-layer1-8-digits/metrics.csv").open()))
    assert [row["val_loss"] for row in rows] == ["", ""]
    report = json.loads((tmp_path / "output/vit-layer1-8-digits/report.json").read_text())
    assert report["val"] is None and report["test"] is None


@pytest.mark.parametrize("epochs", [4, 5])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, epochs):
    """One step an epoch; the weights are beyond use after the fourth, which may be the last."""
    paths = dict(output_path=str(tmp_path / "o"), model_path=str(tmp_path / "m"))
    config = TrainConfig.create(dataset="digits", embed_dim=16, depth=1, batch_size=5000, epochs=epochs, **paths)
    model, sets = build_model(config), load_data(config)
    optimizers = [torch.optim.SGD(model.parameters())]
    with pytest.raises(UserError, match=r"the loss is .* step 1 of epoch 4; lower --learning_rate .*last\.pt"):
        fit(model, sets, config, optimizers=optimizers, schedule=lambda step: 0.1 if step < 3 else 1e30)
    state = read_checkpoint(config.checkpoint_folder / "last.pt")
    assert state["training"]["progress"]["epoch"] == 3
    model.load_state_dict(state["model"])
    assert math.isfinite(evaluate(model, sets.train)["loss"])
    assert not list((tmp_path / "o").rglob("report.json"))


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    paths = dict(output_path=str(tmp_path / "o"), model_path=str(tmp_path / "m"))
    config = TrainConfig.create(dataset="digits", embed_dim=16, depth=1, num_train_images=100, epochs=3, **paths)
    losses = iter([0.5, math.inf])
    monkeypatch.setattr(loop, "evaluate", lambda *args: {"accuracy": 0.5, "loss": next(losses)})
    with pytest.raises(UserError, match="the loss is inf on the validation images of epoch 2.*last.pt"):
        fit(build_model(config), load_data(config), config)
    assert read_checkpoint(config.checkpoint_folder / "last.pt")["training"]["progress"]["epoch"] == 1


def test_json_holds_no_nan(tmp_path):
    for number in (math.nan, math.inf):
        with pytest.raises(UserError, match="a.json is not written: .*nan or infinite"):
            write_json(tmp_path / "a.json", {"loss": [number]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--patch_size", 3], ["3", "8"]),
        (["--n_attention_heads", 3], ["3", "16"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--device", "mps"], ["mps", "cpu"]),
        (["--epochs", 0], ["--epochs 0"]),
        (["--num_train_images", 99999], ["99999", "1437"]),
        (["--warmup_steps", 99999], ["--warmup_steps 99999", "choose fewer"]),
        (["--val_split", 0.9, "--num_train_images", 2], ["--val_split"]),
        (["--flag"], ["--flag"]),
        (["--model_path", "file/x"], ["--model_path", "file/x"]),
        (["--output_path", "file"], ["--output_path", "file"]),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, flags, words):
    if "mps" in flags and torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    (tmp_path / "file").touch()
    done = run("train.py", *TINY, *flags, cwd=tmp_path)
    assert_refused(done, *words)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("metrics.csv"))


# ---------------------------------------------------------------------------------------- training/


def test_schedule_is_linear_then_cosine():
    config = TrainConfig.create(epochs=10, warmup_epochs=2, learning_rate=1e-3, min_lr=1e-5)
    rates = [*map(warmup_cosine(config, steps_per_epoch=50), range(500))]
    steps = [b - a for a, b in zip(rates[:100], rates[1:100])]
    assert min(steps) == pytest.approx(max(steps)) and 0 < rates[0] < 2e-5
    assert max(rates) == rates[100] == 1e-3
    assert rates[300] == pytest.approx((1e-3 + 1e-5) / 2, rel=0.01)
    assert rates[-1] == pytest.approx(1e-5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3), T_max=399, eta_min=1e-5
    )
    for rate in rates[100:]:
        assert rate == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()

    none = dataclasses.replace(config, warmup_epochs=0)
    assert warmup_cosine(none, steps_per_epoch=50)(0) == 1e-3
    part = dataclasses.replace(config, warmup_epochs=0.5)
    assert warmup_cosine(part, steps_per_epoch=50)(25) == 1e-3


def test_weights_decay_and_norms_biases_tokens_positions_do_not():
    config = TrainConfig.create(dataset="digits")
    model = build_model(config)
    groups = make_optimizers(model, config)[0].param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = "norm" in name or name.endswith("bias") or name in ("cls_token", "pos_embed")
        assert (id(parameter) not in decayed) == spared, name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_evaluate_is_torchs_accuracy_and_loss():
    sets = load_data(TrainConfig.create(dataset="digits", batch_size=50))
    model = build_model(TrainConfig.create(dataset="digits"))
    result = evaluate(model, sets.val)
    images = normalise(sets.val.images / 255, sets.mean, sets.std)
    with torch.no_grad():
        logits = model.eval()(images)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, sets.val.labels).item(), abs=1e-5)
    assert result["accuracy"] == (logits.argmax(1) == sets.val.labels).double().mean().item()


def test_fit_trains_any_module_with_any_loaders(tmp_path):
    """A plain DataLoader and a model of one's own will do."""
    sets = load_data(TrainConfig.create(dataset="digits"))
    pairs = torch.utils.data.TensorDataset(sets.train.images.float() / 255, sets.train.labels)
    sets.train = torch.utils.data.DataLoader(pairs, batch_size=64, shuffle=True)
    sets.val = None
    config = TrainConfig.create(
        dataset="digits",
        epochs=2,
        device="cpu",
        no_test=True,
        output_path=str(tmp_path),
        model_path=str(tmp_path / "m"),
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model.img_size = 8  # and no in_chans
    report = fit(model, sets, config)
    assert report["train_pflop"] is None and report["parameters"] == 650 and report["train"]["accuracy"] > 0.2
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    other.load_state_dict(read_checkpoint(config.checkpoint_folder / "best.pt")["model"])  # as docs/training.md says
    assert torch.equal(other[1].weight, model[1].weight)


def test_own_batches_with_own_classes_and_size(tmp_path, monkeypatch):
    """The block of Python in docs/training.md, with fewer epochs: three colours of 48 x 48 pixels."""
    monkeypatch.chdir(tmp_path)
    labels = torch.arange(120) % 3
    pixels = torch.rand(120, 3, 48, 48) * 0.2
    pixels[torch.arange(120), labels] += 0.7
    pairs = torch.utils.data.TensorDataset((pixels - 0.5) / 0.5, labels)
    Image.new("RGB", (60, 50), (20, 20, 200)).save("photo.jpg")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), flags=re.S)
    space = {"train_set": pairs, "val_set": pairs}
    exec(block.replace("epochs=20", "epochs=3, depth=1, device='cpu'"), space)
    checkpoint = space["checkpoint"]
    assert checkpoint.path == Path("model/vit-layer1-48-own") and checkpoint.config.dataset is None
    assert checkpoint.classes == ("cat", "dog", "eel")
    image = Image.open("photo.jpg")
    alone = checkpoint.predict(image)
    assert alone[0][0] == "eel" and len(alone) == 3
    assert checkpoint.predict("photo.jpg") == checkpoint.predict(Path("photo.jpg")) == alone
    for guesses in checkpoint.predict(["photo.jpg", image]):
        assert guesses == [(name, pytest.approx(probability, abs=1e-5)) for name, probability in alone]
    with pytest.raises(UserError, match="add --dataset"):
        checkpoint.data_config()
    config = dataclasses.replace(space["config"], num_classes=4)
    with pytest.raises(UserError, match="num_classes 4: the data has 3"):
        fit(build_model(config), space["data"], config)
    with pytest.raises(UserError, match="give img_size and num_classes"):
        TrainConfig.create(dataset=None)
    with pytest.raises(UserError, match="of your own"):
        load_data(space["config"])


def test_optimisers_and_schedule_may_be_handed_in(tmp_path):
    """They give the weights that fit() reaches with those that it makes itself; others are taken as they are."""
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path))
    tiny = dict(dataset="digits", embed_dim=16, n_layers=1, num_train_images=100, epochs=2, device="cpu", no_test=True)
    ends = []
    for name in ("own", "handed in", "other"):
        config = TrainConfig.create(tiny, **paths, folder_name=name, optimizer="muon", stem="conv", stem_depth=2)
        model, sets = build_model(config), load_data(config)
        given = {}
        if name == "handed in":
            given = dict(optimizers=make_optimizers(model, config), schedule=warmup_cosine(config, len(sets.train)))
        elif name == "other":  # a plain optimiser without lr_scale, and a constant learning rate
            given = dict(optimizers=[torch.optim.Adagrad(model.parameters())], schedule=lambda step: 0.123)
        fit(model, sets, config, **given)
        ends.append(read_checkpoint(config.checkpoint_folder / "last.pt"))
    own, handed_in, other = (end["model"] for end in ends)
    assert all(torch.equal(value, handed_in[name]) for name, value in own.items())
    assert not torch.equal(own["head.weight"], other["head.weight"])
    assert [row["learning_rate"] for row in ends[2]["history"]] == [0.123, 0.123]

    elsewhere = build_model(config).to("meta")
    with pytest.raises(UserError, match="move it there before its optimisers are made"):
        fit(elsewhere, sets, config, optimizers=make_optimizers(elsewhere, config))


def test_progress_sums_batches_and_closes_epochs():
    progress = Progress()
    for accuracy, loss, is_best in ((0.5, 1.0, True), (0.5, 1.1, False), (0.5, 0.9, True), (0.4, 0.8, False)):
        progress.add([(2.0, 3, 4), (1.0, 0, 1)], seconds=0.5)
        progress.add([(4.0, 1, 5)], seconds=1.5)
        assert (progress.loss, progress.accuracy, progress.images_per_second) == (2.9, 0.4, 5.0)
        assert progress.next_epoch({}, {"accuracy": accuracy, "loss": loss}) == is_best
        assert (progress.seen, progress.step, progress.images) == (0, 0, 10)
    assert (progress.epoch, progress.best_epoch, progress.waited, progress.best_loss) == (4, 3, 0, 0.8)
    assert Progress().next_epoch({}, None)  # without validation the newest is the best


def test_the_first_signal_is_noted_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_at_signal() as stop:
        assert stop() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
    with ThreadPoolExecutor() as pool:  # no signals there
        assert pool.submit(lambda: contextlib.ExitStack().enter_context(stop_at_signal())()).result() == 0


def test_help_and_wrong_flags_need_no_torch():
    for flags, status in ((["--help"], 0), (["--epochs", "0"], 2)):
        code = f"import sys\nsys.argv[1:] = {flags}\nimport train\ntry: train.run_cli(train.main)\n"
        code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"{status} False", done.stderr


def test_a_log_file_gets_a_line_a_minute(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(epoch, "SECONDS_PER_LINE", 0)
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, device="cpu")
    config = TrainConfig.create(dataset="digits", embed_dim=16, depth=1, num_train_images=100, epochs=1, **paths)
    fit(build_model(config), load_data(config), config)
    lines = re.findall(
        r"^epoch 1/1, batch (\d)/3: loss \d.*, accuracy .*, \d+ images/s$", capsys.readouterr().out, re.M
    )
    assert lines == ["1", "2", "3"]


@pytest.mark.curves
def test_the_legend_counts_the_readings_of_the_test_images(tmp_path, monkeypatch):
    legends, save = [], figures.save_figure

    def keep(figure, path):
        if path.name == "graph_loss.png":
            legends.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()][-1])
        return save(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), device="cpu", resume="auto")
    for epochs in (1, 2, 3):
        config = TrainConfig.create(
            dataset="digits", embed_dim=16, depth=1, epochs=epochs, no_test=epochs == 2, **paths
        )
        fit(build_model(config), load_data(config), config)
    assert legends[0].startswith("test, once: ") and legends[2].startswith("test, read 2 times: ")


def test_threads(tmp_path):
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, device="cpu")
    config = TrainConfig.create(dataset="digits", embed_dim=16, depth=1, epochs=1, threads=3, **paths)
    before = torch.get_num_threads()
    try:
        assert fit(build_model(config), load_data(config), config)["cpu"].endswith("3 threads")
    finally:
        torch.set_num_threads(before)


def test_a_gpus_report_names_cpu_and_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    model = torch.nn.Linear(2, 2)
    about = dict(name="a", dataset="digits", checkpoint="a.pt", seed=0, model=model, seconds=1)
    report = make_report(**about, device=torch.device("cuda"), train_dtype="bfloat16")
    assert (report["hardware"], report["versions"]["cuda"]) == ("H100", "13.0") and "thread" in report["cpu"]
    assert report["dtype"] == {"train": "bfloat16", "evaluate": "float32"}


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from vitlab.cli import run_cli; run_cli(lambda: print(1))"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_training_ends_where_nobody_reads(tmp_path):
    command = [sys.executable, "-u", ROOT / "train.py", *map(str, TINY), "--epochs", "3"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141


def test_amp_follows_the_hardware(monkeypatch):
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for has in (True, False):
        monkeypatch.setattr(hardware, "cpu_has_bf16", lambda has=has: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert pick_amp(cpu, "auto") == (torch.bfloat16 if has else None)
        assert pick_amp(cuda, "auto") == (torch.bfloat16 if has else torch.float16)
    assert pick_amp(mps, "auto") is None
    assert pick_amp(cpu, "bf16") == torch.bfloat16 and pick_amp(cpu, "off") is None


def test_the_readmes_ten_lines_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    Image.effect_noise((40, 30), 90).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    code = blocks[0].replace("epochs=40", "epochs=1")
    assert code != blocks[0]
    space = {}
    exec(code, space)
    assert len(space["guesses"]) == 5 and math.isclose(
        sum(s for _, s in space["checkpoint"].predict("digit.png", 10)), 1, abs_tol=1e-5
    )
