"""Several processes train one model: as torchrun starts them, with gloo on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, _script, assert_refused, forks
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import VisionTransformer
from vitlab import processes
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.augment import POLICIES
from vitlab.datasets.batches import TensorBatches
from vitlab.datasets.splits import load_data
from vitlab.evaluation.report import evaluate
from vitlab.training.epoch import Meter
from vitlab.training.state import Progress

DIGITS = "--dataset digits --embed_dim 32 --n_layers 2 --batch_size 32 --amp off --visualize_every_n_epochs 100".split()
PLAIN = [*DIGITS, "--stem", "linear", "--pool", "cls"]  # without batch norm


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _process(number, count, port, argv, cwd, out, err):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _script(argv, cwd, out, err)


def together(script, *args, cwd, each=((), ()), port=None):
    """Run a script in len(each) processes that know of each other, as torchrun starts them; `each`: more arguments of
    each process. Returns the finished processes."""
    port, running = port or free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, more in enumerate(each):
            argv = [str(ROOT / script), *map(str, (*args, *more))]
            files = Path(folder, f"out{number}"), Path(folder, f"err{number}")
            process = forks().Process(target=_process, args=(number, len(each), port, argv, cwd, *files))
            process.start()
            running.append((process, argv, *files))
        done = []
        for process, argv, out, err in running:
            process.join(120)
            assert process.exitcode is not None, f"{argv} hangs"
            done.append(subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text()))
    return done


def train(root, *args, count=2):
    done = together("train.py", *args, cwd=root, each=[()] * count)
    assert [process.returncode for process in done] == [0] * count, done[0].stderr
    assert all(not process.stdout + process.stderr for process in done[1:])
    return done[0].stdout


def weights(root, name, file="last.pt"):
    return read_checkpoint(root / "model" / name / file)["model"]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def step_losses(root, name):
    events = EventAccumulator(str(root / "output" / name / "tensorboard"))
    events.Reload()
    return torch.tensor([event.value for event in events.Scalars("step/loss")])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the same run of 20 steps by one process ("one") and by two ("two", "fsdp"); the last batch is of 19
    images, and the splits do not divide."""
    root = tmp_path_factory.mktemp("processes")
    same = [*PLAIN, "--augment", "trivialaugment", "--cutmix", 1, "--mixup", 0.5, "--dropout", 0, "--ema_decay", 0.9]
    same += ["--num_train_images", 700, "--val_split", 0.1, "--log_backend", "tensorboard", "--log_every_n_steps", 1]
    same += ["--epochs", 1, "--warmup_epochs", 0]
    for name, count, more in (("one", 1, ()), ("two", 2, ()), ("fsdp", 2, ["--fsdp"])):
        out = train(root, *same, "--folder_name", name, *more, count=count)
        assert (f", {count} processes" in out) == (count > 1)
    return root


def test_two_processes_equal_one(runs):
    one, two = step_losses(runs, "one"), step_losses(runs, "two")
    assert len(one) == 20
    assert (one - two).abs().max() < 1e-5
    assert largest_difference(weights(runs, "one"), weights(runs, "two")) < 1e-5


def test_all_numbers_of_the_report_are_those_of_all_processes(runs):
    one, two = (json.loads((runs / "output" / name / "report.json").read_text()) for name in ("one", "two"))
    for split, n in (("train", 630), ("val", 70), ("test", 360)):
        assert one[split]["n"] == two[split]["n"] == n
        assert two[split]["accuracy"] == pytest.approx(one[split]["accuracy"], abs=1.5 / n)
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], abs=1e-4)
    assert one["train_pflop"] == two["train_pflop"]
    assert two["hardware"] == f"{one['hardware']}, 2 processes"


def test_a_model_in_parts_equals_one_in_copies(runs):
    assert (step_losses(runs, "two") - step_losses(runs, "fsdp")).abs().max() < 1e-4
    assert largest_difference(weights(runs, "two"), weights(runs, "fsdp")) < 1e-4
    assert load_checkpoint(runs / "model" / "fsdp").config.folder_name == "fsdp"


def test_a_run_of_parts_goes_on_in_one_process(runs):
    out = train(runs, "--resume", "model/fsdp/last.pt", "--epochs", 2, count=1)
    assert "from here on with 1 processes, until now 2" in out
    assert read_checkpoint(runs / "model/fsdp/last.pt")["training"]["progress"]["epoch"] == 2


@pytest.mark.parametrize("more", [(), pytest.param(["--fsdp"], marks=pytest.mark.slow)])
def test_with_batch_norm_the_report_is_of_the_weights_that_are_saved(tmp_path, more):
    data = ["--num_train_images", 300, "--val_split", 0.3]
    train(tmp_path, *DIGITS, *data, *more, "--epochs", 1, "--folder_name", "run", "--no_test")
    found = load_checkpoint(tmp_path / "model/run")
    expected = evaluate(found.model, load_data(found.config, ("val",)).val)
    told = json.loads((tmp_path / "output/run/report.json").read_text())["val"]
    assert (told["accuracy"], told["loss"]) == pytest.approx((expected["accuracy"], expected["loss"]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_resume_exactly(tmp_path, optimizer):
    same = [*DIGITS, "--num_train_images", 200, "--dropout", 0.2, "--epochs", 2, "--optimizer", optimizer]
    train(tmp_path, *same, "--save_every_n_epochs", 1, "--folder_name", "run", "--no_test")
    whole = weights(tmp_path, "run")
    out = train(tmp_path, "--resume", "model/run/ViT_model_001.pt")
    assert "going on after 1 epochs" in out and "until now" not in out
    assert largest_difference(whole, weights(tmp_path, "run")) == 0


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(tmp_path):
    same = [*DIGITS, "--num_train_images", 200, "--folder_name", "run", "--no_test"]
    train(tmp_path, *same, "--epochs", 1, count=1)
    out = train(tmp_path, *same, "--epochs", 2, "--resume", "auto")
    assert "from here on with 2 processes, until now 1" in out
    assert read_checkpoint(tmp_path / "model/run/last.pt")["training"]["progress"]["epoch"] == 2


@pytest.mark.slow
def test_accumulation_over_processes(tmp_path):
    same = [*PLAIN, "--num_train_images", 200, "--dropout", 0, "--epochs", 1, "--grad_accum_steps", 2, "--no_test"]
    for name, count in (("one", 1), ("two", 2)):
        train(tmp_path, *same, "--folder_name", name, count=count)
    assert largest_difference(weights(tmp_path, "one"), weights(tmp_path, "two")) < 1e-5


REFUSED = [
    (["--batch_size", 33], ((), ()), ("--batch_size 33", "2 processes", "32 or 34")),
    (["--device", "cuda"], ((), ()), ("cuda:0", "this machine has: cpu")),
    (["--sync_batchnorm"], ((), ()), ("--sync_batchnorm", "CUDA")),
    ([], ((), ["--seed", 1]), ("process 1", "--seed (1, not 0)")),
    ([], ((), ["--num_train_images", 100]), ("process 1", "--num_train_images (100, not None)")),
]


@pytest.mark.parametrize("flags, each, words", REFUSED)
def test_what_does_not_suit_the_processes_is_refused_by_all(tmp_path, flags, each, words):
    first, second = together("train.py", *DIGITS, *flags, cwd=tmp_path, each=each)
    assert_refused(first, *words)
    assert (second.returncode, second.stdout, second.stderr) == (2, "", "")
    assert not list(tmp_path.glob("model/*")) and not list(tmp_path.glob("output/*"))


def test_processes_that_see_other_images_are_refused(tmp_path):
    generator = np.random.default_rng(0)
    for machine in ("a", "b"):
        for path in (tmp_path / machine / name / f"{i}.png" for name in ("cat", "dog") for i in range(8)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    flags = ["--dataset", "folder", "--image_size", 16, "--epochs", 1]
    each = (["--data_path", "a"], ["--data_path", "b"])
    first, second = together("train.py", *flags, cwd=tmp_path, each=each)
    assert_refused(first, "process 1", "another train split")
    assert second.returncode == 2
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        env = dict(os.environ, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        command = [sys.executable, str(ROOT / "train.py"), *DIGITS]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"train.py: the processes cannot meet at 127.0.0.1:{port}")


def test_other_scripts_run_in_one_process(tmp_path):
    first, second = together("compare.py", "--help", cwd=tmp_path)
    assert_refused(first, "torchrun is for train.py")
    assert second.returncode == 2


def test_fsdp_needs_processes(tmp_path):
    (done,) = together("train.py", *DIGITS, "--fsdp", cwd=tmp_path, each=[()])
    assert_refused(done, "--fsdp", "torchrun --nproc_per_node")


@pytest.mark.slow
def test_a_killed_worker_starts_again_from_the_last_checkpoint(tmp_path):
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", 2, "--max-restarts", 3]
    flags = [*DIGITS, "--epochs", 4, "--resume", "auto", "--save_every_n_steps", 10, "--folder_name", "run"]
    command = [str(part) for part in (*torchrun, ROOT / "train.py", *flags)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kill_a_worker(process, tmp_path / "output/run/metrics.csv")
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0, out
    assert "going on after" in out and out.count("epoch   4:") == 1
    assert json.loads((tmp_path / "output/run/report.json").read_text())["test"]["n"] == 360


@pytest.mark.slow
def test_without_restarts_the_run_ends_in_one_line(tmp_path):
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", 2]
    command = [str(part) for part in (*torchrun, ROOT / "train.py", *DIGITS, "--epochs", 50, "--folder_name", "run")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kill_a_worker(process, tmp_path / "output/run/metrics.csv")
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    assert len([line for line in out.splitlines() if line.startswith("train.py: ")]) == 1, out
    assert not list(tmp_path.glob("model/run/*.part*"))


def kill_a_worker(process, sign_of_life):
    """Kill the second worker of a torchrun when that file is there."""
    while not sign_of_life.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)


# ------------------------------------------------------------------------------------ shares of batches


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_of_a_batch_are_augmented_as_in_the_complete_batch(policy):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=generator)
    options = dict(batch_size=8, img_size=16, mean=(0.5,) * 3, std=(0.2,) * 3, augment=policy, random_erasing=0.5)
    batches = TensorBatches(images, torch.arange(20), alternate_flip=True, **options)
    some = list(batches.rows_of(lambda n: torch.tensor([n - 1, 0])))
    for (whole_images, whole_labels), (few_images, few_labels) in zip(batches, some, strict=True):
        assert torch.equal(few_labels, whole_labels[[-1, 0]])
        assert torch.allclose(few_images, whole_images[[-1, 0]], atol=1e-6)


def test_shares_make_up_each_batch(monkeypatch):
    sets = load_data(TrainConfig.create(dataset="digits", batch_size=100), ("val",))
    foreign = [(images, labels) for images, labels in sets.val]  # batches that only iterate
    for batches in (sets.val, foreign):
        parts = []
        for number in range(3):
            monkeypatch.setattr(processes, "count", lambda: 3)
            monkeypatch.setattr(processes, "rank", lambda number=number: number)
            parts.append(list(processes.shares(batches, before=1)))
        for (_, labels), *shares in zip(foreign, *parts, strict=True):
            assert [share.whole for share in shares] == [len(labels)] * 3
            assert torch.equal(torch.cat([share.labels[1:] for share in shares]), labels)
            assert [share.labels[0] for share in shares] == [labels[len(labels) * i // 3 - 1] for i in range(3)]
            assert [share.own for share in shares] == [len(share.labels) - 1 for share in shares]


def test_a_share_without_images_gets_one(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "rank", lambda: 0)
    (share,) = processes.shares([(torch.ones(2, 1), torch.tensor([5, 6]))])
    assert (share.own, share.labels.tolist(), share.whole) == (0, [5], 2)


def test_a_share_without_images_counts_nothing(monkeypatch):
    others = torch.tensor([[0.5], [1.0], [1.0]])  # loss, correct, images of the other process
    monkeypatch.setattr(processes, "total", lambda values: values + others)
    run = SimpleNamespace(device=torch.device("cpu"), config=None, progress=Progress())
    Meter(run).add(0, torch.tensor(7.0), torch.tensor(1), 0)
    assert (run.progress.loss, run.progress.accuracy) == (0.5, 1.0)


def test_grad_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model, images = VisionTransformer(drop_rate=0.1, depth=3), torch.randn(4, 3, 32, 32)
    gradients = []
    for model.grad_checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("number, calls", [("0", [1]), ("1", [])])
def test_what_is_done_once_a_machine(monkeypatch, number, calls):
    monkeypatch.setenv("LOCAL_RANK", number)
    done = []
    processes.once_a_machine(done.append, 1)
    assert done == calls
