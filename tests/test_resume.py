"""Interrupted runs: killed at a step, in the middle of a write, by a signal; resumed, they end with
the weights of a run that nobody disturbed."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image

from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models.registry import build_model
from vitlab.training.epoch import batches_from
from vitlab.training.loop import fit
from vitlab.training.optimizers import make_optimizers, warmup_cosine
from vitlab.training.state import Run

# everything that has a state: average, two optimisers, dropout, augmentation, mixing, accumulation
FLAGS = (
    "--dataset digits --embed_dim 16 --n_layers 2 --num_train_images 400 --epochs 4 --optimizer muon --ema_decay 0.9 "
    "--dropout 0.2 --drop_path_rate 0.2 --augment randaugment --random_erasing 0.3 --mixup 0.4 --cutmix 1 "
    "--grad_accum_steps 2 --clip_grad 1 --patch_drop_rate 0.5 --save_every_n_steps 4 --save_every_n_epochs 1 "
    "--num_test_images 50"
).split()  # 12 batches, 6 steps an epoch
NAME = "vit-layer2-8-digits"
TINY = ["--dataset", "digits", "--embed_dim", 16, "--n_layers", 1, "--num_train_images", 100]

# train.py, killed like kill -9 by its own hand: at the Nth batch, or half way through the Nth save
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch, train
from vitlab.training import epoch
kind, at, log = {kind!r}, {at}, {log!r}
def die():
    os.kill(os.getpid(), signal.SIGKILL)
batches = 0
real_set, real_save = epoch.set_learning_rate, torch.save
def set_rate(*a, **k):
    global batches
    batches += 1
    open(log, "w").write(str(batches))
    if kind == "batch" and batches == at:
        die()
    return real_set(*a, **k)
saves = 0
def save(contents, file):
    global saves
    saves += 1
    if kind == "save" and saves == at:
        import io
        whole = io.BytesIO()
        real_save(contents, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()
    real_save(contents, file)
epoch.set_learning_rate, torch.save = set_rate, save
train.run_cli(train.main)
"""


def train(root, *more, kind="none", at=0):
    """Run train.py in `root`; (process, how many batches it trained on)."""
    log = root / "batches"
    code = KILLED.format(root=str(ROOT), kind=kind, at=at, log=str(log))
    (root / "killed.py").write_text(code)
    return run(root / "killed.py", *FLAGS, *more, cwd=root), int(log.read_text())


def final(root):
    return read_checkpoint(root / "model" / NAME / "last.pt")


def assert_same_end(root, undisturbed):
    ours, theirs = final(root), final(undisturbed)
    for part in (lambda c: c["model"], lambda c: c["training"]["raw_model"]):
        for name, value in part(theirs).items():
            assert torch.equal(value, part(ours)[name]), name
    best = [read_checkpoint(where / "model" / NAME / "best.pt")["model"] for where in (root, undisturbed)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())
    rows = [list(csv.DictReader((where / "output" / NAME / "metrics.csv").open())) for where in (root, undisturbed)]
    timed = ("seconds", "images_per_second")
    rows = [[{name: v for name, v in row.items() if name not in timed} for row in table] for table in rows]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == ["1", "2", "3", "4"]
    reports = [json.loads((where / "output" / NAME / "report.json").read_text()) for where in (root, undisturbed)]
    assert reports[0]["test"] == reports[1]["test"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    done, batches = train(root)
    assert done.returncode == 0, done.stderr
    assert batches == 4 * 12
    return root


def test_killed_again_and_again(undisturbed, tmp_path):
    """Saves: 1 at the start; then, an epoch, 2 within it (steps 4, 8), best.pt (or not), periodic, last."""
    trained = 0
    for kind, at in (("batch", 7), ("batch", 11), ("save", 2), ("save", 6), ("batch", 14)):
        done, batches = train(tmp_path, "--resume", "auto", kind=kind, at=at)
        assert done.returncode == -signal.SIGKILL, done.stderr
        trained += batches
    done, batches = train(tmp_path, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stdout
    assert batches < 4 * 12 and trained + batches < 2 * 4 * 12  # it did not start over
    assert_same_end(tmp_path, undisturbed)


def test_from_a_periodic_file(undisturbed, tmp_path):
    done, _ = train(tmp_path)
    assert done.returncode == 0, done.stderr
    done, batches = train(tmp_path, "--resume", tmp_path / "model" / NAME / "ViT_model_002.pt")
    assert done.returncode == 0 and batches == 2 * 12
    assert_same_end(tmp_path, undisturbed)


def test_a_finished_run_is_said_to_be_finished(undisturbed):
    before = (undisturbed / "model" / NAME / "last.pt").read_bytes()
    done = run("train.py", *FLAGS, "--resume", "auto", cwd=undisturbed)
    assert done.returncode == 0 and "is finished" in done.stdout
    assert (undisturbed / "model" / NAME / "last.pt").read_bytes() == before
    elsewhere = run("train.py", *FLAGS, "--resume", "auto", "--output_path", "elsewhere", cwd=undisturbed)
    assert_refused(elsewhere, "report.json", "--output_path")


def test_half_precision_after_single(tmp_path):
    """A scaler begins anew where the run had none before."""
    paths = dict(output_path=str(tmp_path), model_path=str(tmp_path), no_test=True, epochs=1, amp="off")
    config = TrainConfig.create(dataset="digits", **paths)
    sets = load_data(config)
    fit(build_model(config), sets, config)
    last = read_checkpoint(config.checkpoint_folder / "last.pt")
    model = build_model(config)
    run = Run(
        model=model,
        config=config,
        device=torch.device("cpu"),
        amp=torch.float16,
        optimizers=make_optimizers(model, config),
        scaler=torch.amp.GradScaler("cpu"),
        average=None,
        schedule=warmup_cosine(config, len(sets.train)),
        forward=model,
    )
    run.restore(last)
    assert run.progress.epoch == 1 and run.scaler.get_scale() == 2**16
    assert all(torch.equal(value, last["model"][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_resume_goes_on(undisturbed, tmp_path, number, status):
    command = [sys.executable, ROOT / "train.py", *FLAGS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch   1"):
                break
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "last.pt" in err and len(err.strip().splitlines()) == 1
    assert final(tmp_path)["training"]["progress"]["epoch"] < 4
    assert load_checkpoint(tmp_path / "model" / NAME / "last.pt").history  # usable as it is
    words = shlex.split(err.split("to go on: ")[1])
    assert words == ["python", "train.py", "--resume", f"model/{NAME}/last.pt"]
    done = run(*words[1:], cwd=tmp_path)  # as typed: every setting comes from the checkpoint
    assert done.returncode == 0 and "going on after" in done.stdout and "from here on" not in done.stdout
    assert_same_end(tmp_path, undisturbed)


def test_flags_win_over_the_settings_of_the_run_and_are_told(tmp_path):
    done = run("train.py", *TINY, "--epochs", 2, "-lr", 1e-3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = "model/vit-layer1-8-digits/last.pt"
    before = read_checkpoint(tmp_path / last)["config"]
    done = run("train.py", "--dataset", "digits", "--resume", last, "--epochs", 3, "--no_test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("from here on")]
    assert told == [
        "from here on with --epochs 3, until now 2",
        "from here on with --no_test True, until now False",
    ]
    after = read_checkpoint(tmp_path / last)["config"]
    assert {name for name in after if after[name] != before[name]} == {"epochs", "no_test", "resume", "model_path"}

    done = run("train.py", "--resume", last, "--folder_name", "other", cwd=tmp_path)
    assert_refused(done, "--folder_name other", "vit-layer1-8-digits")


def test_resume_auto_goes_on_with_the_run_that_fits(tmp_path):
    def train(*more):
        done = run("train.py", *TINY, "--epochs", 1, "--no_test", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    train("--min_lr", 1e-4)
    train("--embed_dim", 32)
    assert "vit-layer1-8-digits is finished" in train("--resume", "auto")
    assert "vit-layer1-8-digits-2 is finished" in train("--resume", "auto", "--embed_dim", 32)
    more = train("--resume", "auto", "--epochs", 2)  # a later flag wins
    assert "going on after 1 epochs" in more
    assert read_checkpoint(tmp_path / "model/vit-layer1-8-digits/last.pt")["config"]["min_lr"] == 1e-4
    other = train("--resume", "auto", "--embed_dim", 48)
    assert "vit-layer1-8-digits-2/last.pt is another run: --embed_dim 32, not 48" in other
    assert "this run is called vit-layer1-8-digits-3" in other


def test_classes_agree_by_name(tmp_path):
    for name, shade in (("apple", 30), ("banana", 120), ("cherry", 220)):
        for i in range(10):
            (tmp_path / "fruit" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, i, i)).save(tmp_path / "fruit" / name / f"{i}.png")
    flags = ["--dataset", "folder", "--data_path", "fruit", "--image_size", 8, "--embed_dim", 16, "--depth", 1]
    done = run("train.py", *flags, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "fruit", tmp_path / "renamed")
    (tmp_path / "renamed/apple").rename(tmp_path / "renamed/zapple")
    (tmp_path / "fruit/apple").rename(tmp_path / "fruit/zapple")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    last = "model/vit-layer1-8-folder/last.pt"
    for resume in (["--resume", "auto"], ["--resume", last], ["--resume", last, "--data_path", "renamed"]):
        done = run("train.py", *flags, "--epochs", 2, *resume, cwd=tmp_path)
        assert_refused(done, "apple", "zapple", "last.pt", "--resume")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    paths = dict(data_path=str(tmp_path / "fruit"), resume=str(tmp_path / last))
    config = TrainConfig.create(read_checkpoint(tmp_path / last)["config"], paths)
    with pytest.raises(UserError, match="apple.*last.pt was trained on"):
        fit(build_model(config), load_data(config), config)


def test_images_that_were_trained_on_stay_training_images(tmp_path):
    """A longer folder is cut into other splits, so that a resumed run would be tested on what it had learned."""
    flags = ["--dataset", "folder", "--image_size", 8, "--embed_dim", 16, "--depth", 1]

    def train(data, *more):
        return run("train.py", *flags, "--data_path", data, *more, cwd=tmp_path)

    def add(first, last):
        for shade, name in ((30, "apple"), (220, "banana")):
            for i in range(first, last):
                (tmp_path / "fruit" / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (shade, i, i)).save(tmp_path / "fruit" / name / f"{i}.png")

    add(0, 15)
    assert train("fruit", "--epochs", 1).returncode == 0
    shutil.copytree(tmp_path / "fruit", tmp_path / "moved")
    add(15, 30)
    last = (tmp_path / "model/vit-layer1-8-folder/last.pt").read_bytes()
    done = train("fruit", "--epochs", 2, "--resume", "auto")
    assert_refused(done, "last.pt: its train images were others (22 images", "start anew without --resume")
    assert (tmp_path / "model/vit-layer1-8-folder/last.pt").read_bytes() == last
    done = train("moved", "--epochs", 2, "--resume", "model/vit-layer1-8-folder")
    assert done.returncode == 0 and "going on after 1 epochs" in done.stdout, done.stderr


def test_where_nothing_is_left_to_train_no_other_weights_are_tested(tmp_path):
    flags = [*TINY, "--save_every_n_epochs", 1, "--val_split", 0]
    assert run("train.py", *flags, "--epochs", 2, cwd=tmp_path).returncode == 0
    first, report = "model/vit-layer1-8-digits/ViT_model_001.pt", tmp_path / "output/vit-layer1-8-digits/report.json"
    before = report.read_bytes()
    done = run("train.py", "--resume", first, "--epochs", 1, cwd=tmp_path)
    assert_refused(done, first, "no epoch is left from there", "--epochs")
    assert report.read_bytes() == before


def test_a_state_without_its_best_weights_makes_new_ones(tmp_path):
    """As where last.pt alone was copied to another machine."""
    assert run("train.py", *TINY, "--epochs", 2, cwd=tmp_path).returncode == 0
    (tmp_path / "model/b").mkdir()
    shutil.copy(tmp_path / "model/vit-layer1-8-digits/last.pt", tmp_path / "model/b")
    done = run("train.py", "--resume", "model/b/last.pt", cwd=tmp_path)
    assert_refused(done, "no epoch is left from there", "best.pt is missing")
    done = run("train.py", "--resume", "model/b/last.pt", "--epochs", 3, "-lr", 1e-9, "--min_lr", 0, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "model/b/best.pt").exists(), done.stderr


def test_the_order_of_a_loader_of_ones_own_is_that_of_its_epoch(monkeypatch):
    """Whatever has been drawn before: so do all processes, and a run that goes on, see the same batches."""
    loader = torch.utils.data.DataLoader(torch.arange(16), batch_size=4, shuffle=True)

    def batches(epoch, start=0, draws=0):
        torch.default_generator.manual_seed(draws)
        return [share.images.tolist() for share in batches_from(pairs, 0, epoch, start, 0)]

    class Pairs:
        def __iter__(self):
            return ((images, images) for images in loader)

    pairs = Pairs()
    assert batches(3, draws=1) == batches(3, draws=2) != batches(4)
    assert batches(3, start=2, draws=5) == batches(3)[2:]
    assert sorted(sum(batches(3), [])) == list(range(16))
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: 1 / 0)  # what an accelerator draws stays its own
    batches(3)


def test_resume_auto_begins_anew_where_there_is_nothing(tmp_path):
    done, batches = train(tmp_path, "--resume", "auto", "--epochs", 1)
    assert done.returncode == 0 and batches == 12 and "going on" not in done.stdout


def test_resume_auto_finds_the_run_that_was_given_a_number(tmp_path):
    (tmp_path / "output" / NAME).mkdir(parents=True)
    (tmp_path / "output" / NAME / "report.json").write_text("{}")  # as a clone has it, without last.pt
    done, _ = train(tmp_path, kind="batch", at=20)
    assert done.returncode == -signal.SIGKILL and f"{NAME}-2" in done.stdout
    done, batches = train(tmp_path, "--resume", "auto")
    assert done.returncode == 0 and "going on after" in done.stdout and batches < 4 * 12
    history = read_checkpoint(tmp_path / "model" / f"{NAME}-2" / "last.pt")["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert not (tmp_path / "model" / f"{NAME}-3").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n_layers", 3, "--resume", "model"], ["--n_layers", "2", "3"]),
        (["--batch_size", 16, "--resume", "model"], ["--batch_size", "32", "16"]),
        (["--optimizer", "adamw", "--resume", "model"], ["--optimizer", "muon"]),
        (["--ema_decay", 0, "--resume", "model"], ["--ema_decay"]),
        (["--resume", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["--resume", "weights.pt"], ["weights.pt", "--init_from"]),
        (["--resume", "auto", "--overwrite"], ["--overwrite", "--resume"]),
    ],
)
def test_what_does_not_fit_is_refused(undisturbed, flags, words):
    torch.save({"a": torch.zeros(1)}, undisturbed / "weights.pt")
    flags = [str(undisturbed / "model" / NAME / "last.pt") if flag == "model" else flag for flag in flags]
    before = (undisturbed / "model" / NAME / "last.pt").read_bytes()
    assert_refused(run("train.py", *FLAGS, *flags, cwd=undisturbed), *words)
    assert (undisturbed / "model" / NAME / "last.pt").read_bytes() == before


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """The kernel refuses to let files grow over a limit, as a full disk does."""
    done, _ = train(tmp_path, "--epochs", 1)
    before = (tmp_path / "model" / NAME / "last.pt").read_bytes()
    (tmp_path / "full.py").write_text(f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""")
    done = run(tmp_path / "full.py", *FLAGS, "--resume", "auto", cwd=tmp_path)
    assert_refused(done, "last.pt", "File too large", "intact")
    assert (tmp_path / "model" / NAME / "last.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
