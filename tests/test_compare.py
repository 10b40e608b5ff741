"""compare.py: one protocol, cells that are run once, and numbers that can be checked."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image

import results
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.evaluation import metrics
from vitlab.study import figures, findings, page, tables
from vitlab.study.design import Study
from vitlab.study.rows import ResultRow

SMALL = ["--dataset", "digits", "--n_layers", 1, "--embed_dim", 16, "--epochs", 2, "--lr_epochs", 1]
ASKED = [
    *SMALL, "--models", "vit", "simple_cnn", "mlp", "--seeds", 0, 1, "--train_sizes", 200, 600, "--patch_sizes", 2, 4,
    "--min_steps", 15, "--stem", "linear", "--hidden_sizes", 16, "--learning_rates", "1e-4", "3e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder in which compare.py ran, and what it printed."""
    root = tmp_path_factory.mktemp("compared")
    done = run("compare.py", *ASKED, cwd=root)
    assert done.returncode == 0, done.stderr
    return root, done


@pytest.fixture
def final(compared):
    return json.loads((compared[0] / "output/comparison/final_results.json").read_text())


def load(root, cell):
    with np.load(root / "output/comparison" / cell["name"] / "test.npz") as file:
        return file["labels"], file["predictions"], file["probabilities"].astype(np.float64)


def test_every_cell_is_there_with_all_that_is_asked(compared, final):
    root, done = compared
    assert len(final["cells"]) == 2 * 2 * (2 + 1 + 1) and final["failed"] == []
    for cell in final["cells"]:
        labels, predictions, shares = load(root, cell)
        assert cell["test"]["accuracy"] == pytest.approx((labels == predictions).mean())
        assert (shares.argmax(-1) == predictions).mean() > 0.98  # stored in half precision, where some are equal
        epochs = 3 if cell["row"].endswith("200 images") else 2  # of 6 and of 17 batches
        assert [row["epoch"] for row in cell["history"]] == [*range(1, epochs + 1)]
        assert cell["settings"]["epochs"] == epochs and cell["settings"]["learning_rate"] in (1e-4, 3e-3)
        assert min(cell[name] for name in ("parameters", "flops", "images_per_second", "seconds")) > 0
        assert load_checkpoint(root / cell["checkpoint"]).config.model == cell["model"]
        for split in ("train", "val", "test"):
            assert {"accuracy", "ci95", "loss", "calibration_error", "f1_macro", "f1_weighted", "n"} == set(cell[split])
    stored = torch.load(root / "output/comparison/final_results.pth", weights_only=True)
    assert stored["cells"] == final["cells"]
    for cell in final["cells"]:
        assert stored["predictions"][cell["name"]].tolist() == load(root, cell)[1].tolist()

    expected = {
        "model_comparison.png", "confusion_matrix_vision_transformer.png", "confusion_matrix_cnn.png",
        "confusion_matrix_mlp.png", "accuracy_by_patch_size.png", "accuracy_by_train_size.png",
        "model_comparison_bootstrap.png", "attention_visualization.png", "gradcam_visualization.png",
    }  # fmt: skip
    pictures = {path.name: Image.open(path) for path in (root / "output/comparison").glob("*.png")}
    assert set(pictures) == expected
    for name, picture in pictures.items():
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20, name
        assert f"output/comparison/{name}" in done.stdout


def test_each_model_has_the_rate_that_was_best_on_validation(compared, final):
    for model in ("vit", "simple_cnn", "mlp"):
        trials = [
            json.loads((compared[0] / f"output/comparison/trial-{model}-lr{rate}/cell.json").read_text())
            for rate in ("0.0001", "0.003")
        ]
        assert all(trial["test"] is None and trial["settings"]["epochs"] == 1 for trial in trials)
        assert all(trial["settings"]["num_train_images"] == 600 for trial in trials)
        best = max(trials, key=lambda trial: trial["val"]["accuracy"])["settings"]["learning_rate"]
        assert {cell["settings"]["learning_rate"] for cell in final["cells"] if cell["model"] == model} == {best}
        assert f"{best:g} is taken" in compared[1].stdout


def test_the_table_is_what_the_predictions_say(compared, final):
    root, _ = compared
    rows = {row["title"]: row for row in final["rows"]}
    vit, cnn = (
        [cell for cell in final["cells"] if cell["row"] == title]
        for title in ("Vision Transformer, patch 2, 600 images", "CNN, 600 images")
    )
    row = rows["Vision Transformer, patch 2, 600 images"]
    accuracies = [cell["test"]["accuracy"] for cell in vit]
    assert row["test"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert row["test"]["accuracy"]["sd"] == pytest.approx(np.std(accuracies, ddof=1))

    labels = load(root, vit[0])[0]
    right = [[load(root, cell)[1] == labels for cell in cells] for cells in (vit, cnn)]
    gaps = np.array(right[0], dtype=int) - np.array(right[1], dtype=int)
    assert row["vs"]["row"] == rows["CNN, 600 images"]["number"] and rows["CNN, 600 images"]["vs"] is None
    assert row["vs"]["difference"] == pytest.approx(gaps.mean())
    assert row["vs"]["ci95"][0] < gaps.mean() < row["vs"]["ci95"][1]
    assert row["vs"]["mcnemar_p"] == max(metrics.mcnemar(a, b) for a, b in zip(*right))

    low, high = row["ci95"]
    assert low < np.mean(accuracies) < high
    told = f"± {100 * row['test']['accuracy']['sd']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert told in tables.comparison_table([ResultRow.from_dict(row)])

    mean = (load(root, vit[0])[2] + load(root, vit[1])[2]) / 2
    together = rows["Vision Transformer, patch 2, 600 images, ensemble of 2 seeds"]
    assert together["test"]["accuracy"]["mean"] == pytest.approx((mean.argmax(-1) == labels).mean())
    assert together["ci95"] == metrics.wilson_interval((mean.argmax(-1) == labels).sum(), 360)
    assert together["test"]["loss"]["mean"] == pytest.approx(-np.log(mean[np.arange(360), labels]).mean(), abs=1e-3)

    text = (root / "output/comparison/RESULTS.md").read_text()
    rows_again = [ResultRow.from_dict(row) for row in final["rows"]]
    assert [dataclasses.asdict(row) for row in rows_again] == final["rows"]
    assert text == page.results_page("comparison", final["protocol"], final["command"], rows_again)
    assert tables.comparison_table(rows_again) in text and final["protocol"] in text
    assert "; adamw; cosine schedule; " in text
    assert "2 epochs, more where that makes fewer than 15 steps" in text and "| MFLOPs | epochs |" in text
    assert " epochs |" not in tables.comparison_table(rows_again[:2])  # where they do not differ
    assert "`python compare.py --dataset digits --n_layers 1" in text and "compare.py" in final["command"]
    numbers = {row["number"] for row in final["rows"]}
    sentences = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(sentences) > 8
    for sentence in sentences:  # each is tied to rows that are there
        told = {int(n) for pair in re.findall(r"rows? (\d+)(?: and (\d+))?", sentence) for n in pair if n}
        assert told and told <= numbers, sentence
    best = max((row for row in final["rows"] if row["train_size"] == 600 and row["kind"] == "seeds"),
               key=lambda row: row["test"]["accuracy"]["mean"])  # fmt: skip
    assert f"Highest test accuracy of a single model: {best['title']}," in text


def test_one_seed_has_intervals_over_the_images(compared, final, monkeypatch, tmp_path):
    monkeypatch.chdir(compared[0])
    study = Study.create(models=["vit", "simple_cnn"], dataset="digits", train_sizes=[600], patch_sizes=[2], seeds=[0])
    cells = [cell for cell in final["cells"] if cell["seed"] == 0]
    vit, cnn = findings.summarise(study, cells)
    labels = load(compared[0], cells[0])[0]
    right = [
        load(compared[0], next(cell for cell in cells if cell["row"] == row.title))[1] == labels for row in (vit, cnn)
    ]
    gaps = right[0].astype(int) - right[1]
    assert cnn.vs is None and vit.vs.seeds == 1 and vit.vs.difference == gaps.mean()
    half = 1.96 * gaps.std() / len(gaps) ** 0.5
    assert vit.vs.ci95 == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.1 * half)
    assert vit.vs.mcnemar_p == metrics.mcnemar(*right)
    assert not any("of the seeds" in sentence for sentence in page.takeaways([vit, cnn]))
    assert figures.plot_differences([vit], "test accuracy", tmp_path / "one.png").stat().st_size > 0


def test_what_is_finished_is_not_run_again(compared, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(compared[0], root)
    before = {path: path.stat().st_mtime_ns for path in root.glob("output/comparison/*/cell.json")}
    results_before = (root / "output/comparison/RESULTS.md").read_text()
    victim = root / "output/comparison/mlp-200-images-seed1"
    shutil.rmtree(victim)
    shutil.rmtree(root / "model/comparison/mlp-200-images-seed1")
    done = run("compare.py", *ASKED, cwd=root)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in root.glob("output/comparison/*/cell.json")}
    assert {path for path in before if after[path] != before[path]} == {victim / "cell.json"}
    assert "all trainings are in" not in done.stdout

    def numbers(text):  # all but speed and time
        return [line.rsplit("|", 3)[0] for line in text.splitlines() if line.startswith("|")]

    assert numbers((root / "output/comparison/RESULTS.md").read_text()) == numbers(results_before)

    assert_refused(run("compare.py", *ASKED, "--epochs", 4, cwd=root), "another study", "--epochs 3, not 4")
    assert_refused(run("compare.py", *ASKED, "--train_sizes", 600, cwd=root), "another study", "200-images")
    assert_refused(run("compare.py", *ASKED, "--models", "vit", cwd=root), "another study", "cnn-200-images")


def test_a_failed_cell_is_told_and_the_others_go_on(tmp_path):
    flags = [*SMALL, "--models", "mlp", "--seeds", 0, "--grid", "learning_rate=1e-3,100", "--optimizer", "sgd"]
    done = run("compare.py", *flags, "--num_train_images", 300, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("compare.py: ")]
    assert "mlp-learning-rate-100.0-seed0 failed: the loss is" in last
    final = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    assert [cell["row"] for cell in final["cells"]] == ["MLP, learning_rate 0.001"]
    assert final["failed"][0]["cell"] == "mlp-learning-rate-100.0-seed0"


def test_without_a_trial_that_succeeds_nothing_is_trained_at_a_rate_of_no_choice(tmp_path):
    flags = [*SMALL, "--models", "mlp", "--seeds", 0, "--optimizer", "sgd", "--learning_rates", 90, 100]
    done = run("compare.py", *flags, "--num_train_images", 300, cwd=tmp_path)
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("compare.py: ")]
    assert done.returncode == 2 and "every trial of a learning rate failed for MLP, the first: the loss is" in last
    assert not list(tmp_path.glob("output/comparison/mlp-seed*"))


def test_cross_validation_holds_out_each_image_once(tmp_path):
    flags = [*SMALL, "--models", "mlp", "--seeds", 0, "--folds", 3, "--learning_rate", "1e-3", "--epochs", 1]
    done = run("compare.py", *flags, "--num_train_images", 300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    final = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    folds = [cell for cell in final["cells"] if cell["kind"] == "fold"]
    assert len(folds) == 3 and sum(cell["val"]["n"] for cell in folds) == 300
    assert all(cell["test"] is None for cell in folds)
    row = next(row for row in final["rows"] if row["kind"] == "folds")
    assert row["best_val"]["mean"] == pytest.approx(np.mean([cell["val"]["accuracy"] for cell in folds]))
    assert not list((tmp_path / "output/comparison").glob("trial-*"))  # a rate was given


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "vit", "alexnet"], ["--models alexnet", "simple_cnn", "resnet18"]),
        (["--models", "vit", "vit"], ["--models", "twice"]),
        (["--seeds", "0", "--reference", "vit"], ["--seeds 0", "two or more"]),
        (["--reference", "mlp"], ["--reference mlp", "vit simple_cnn"]),
        (["--grid", "embed_dim="], ["--grid embed_dim", "no values"]),
        (["--grid", "embed_dim"], ["--grid embed_dim", "FLAG=VALUE"]),
        (["--grid", "width=1,2"], ["width", "unknown"]),
        (["--grid", "seed=1,2"], ["--grid seed", "--seeds"]),
        (["--patch_sizes", "3", "4"], ["--patch_sizes 3", "8 pixels", "--image_size 12"]),
        (["--train_sizes", "0"], ["0", "at least 1"]),
        (["--train_sizes", "100", "60000"], ["--train_sizes 60000", "digits has 1437 training images"]),
        (["--num_train_images", "60000"], ["--num_train_images 60000", "digits has 1437 training images"]),
        (["--seeds", "x"], ["x", "whole number"]),
        (["--folds", "1"], ["--folds 1", "from 2 on"]),
        (["--jobs", "0"], ["--jobs 0"]),
        (["--min_steps", "9"], ["--min_steps 9", "--train_sizes"]),
        (["--models", "vit", "mlp", "--optimizer", "muon"], ["--optimizer muon", "no block"]),
        (["--freeze", "2"], ["--freeze 2", "give head"]),
        (["--folder_name", "a/b"], ["--folder_name 'a/b'"]),
        (["--epochs", "two"], ["--epochs 'two'"]),
        (["--dataset", "imagenet"], ["imagenet", "cifar10"]),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path, flags, words):
    assert_refused(run("compare.py", "--dataset", "digits", *flags, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_a_page_includes_the_results(compared, final, monkeypatch):
    monkeypatch.chdir(compared[0])
    before = "before\n<!-- comparison: output/comparison/final_results.json -->\nold\n<!-- /comparison -->\nafter"
    text = results.refill_tables(before)
    assert "old" not in text and final["protocol"] in text and text.endswith("<!-- /comparison -->\nafter")
    assert "(output/comparison/RESULTS.md)" in text and "ensemble of" not in text
    full = tables.comparison_table([ResultRow.from_dict(row) for row in final["rows"]]).splitlines()[2:]
    plain = [row["number"] for row in final["rows"] if row["kind"] == "seeds"]
    brief = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert plain == list(range(1, len(brief) + 1))  # ensembles come after
    for short, long in zip(brief, full):  # the same numbers, fewer of them
        cells = long.split(" | ")
        assert short.split(" | ")[:3] == cells[:3] and set(short.split(" | ")) < set(cells)
    with pytest.raises(UserError, match="nowhere.json.*compare.py"):
        results.refill_tables(before.replace("output/comparison/final_results.json", "nowhere.json"))


@pytest.mark.slow
def test_side_by_side_gives_the_same(tmp_path):
    asked = [*SMALL, "--models", "vit", "mlp", "--seeds", 0, "--learning_rate", "1e-3", "--hidden_sizes", 16]
    for name, jobs in (("one", 1), ("two", 2)):
        done = run("compare.py", *asked, "--jobs", jobs, "--output_path", f"{name}/output",
                   "--model_path", f"{name}/model", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((tmp_path / name / "output/comparison/final_results.json").read_text()) for name in ("one", "two")
    )
    assert [cell["test"] for cell in one["cells"]] == [cell["test"] for cell in two["cells"]]
    assert "epoch   2" in (tmp_path / "two/output/comparison/mlp-seed0/log.txt").read_text()


@pytest.mark.slow
def test_a_killed_process_takes_no_others_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import compare
from vitlab.study import running
real = running.run_cell
def run_cell(cell):
    if cell.config.seed == 0:
        os.kill(os.getpid(), 9)
    return real(cell)
running.run_cell = run_cell
if __name__ == "__main__":
    sys.exit(compare.main())
"""
    (tmp_path / "killed.py").write_text(script)
    flags = ["--models", "mlp", "--seeds", "0", "1", "2", "--learning_rate", "1e-3", "--jobs", "2"]
    command = [sys.executable, "killed.py", *map(str, SMALL), *flags, "--num_train_images", "300"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "mlp-seed0 failed" in done.stderr, done.stderr
    final = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    assert {"mlp-seed1", "mlp-seed2"} == {cell["name"] for cell in final["cells"]}
    text = (tmp_path / "output/comparison/RESULTS.md").read_text()
    assert "MLP, 2 of 3 seeds" in text and "Failed, and not in the table: mlp-seed0" in text


@pytest.mark.slow
def test_ctrl_c_and_on(tmp_path):
    command = [sys.executable, ROOT / "compare.py", *map(str, SMALL), "--models", "mlp", "--seeds", "0"]
    command += ["--learning_rate", "1e-3", "--epochs", "25"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for text in process.stdout:
            if text.startswith("epoch   3"):
                process.send_signal(2)
                break
        out, err = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    contents = read_checkpoint(tmp_path / "model/comparison/mlp-seed0/last.pt")
    assert 3 <= contents["training"]["progress"]["epoch"] < 25
    done = run("compare.py", *command[2:], cwd=tmp_path)
    assert done.returncode == 0 and "going on after" in done.stdout, done.stderr
    cell = json.loads((tmp_path / "output/comparison/mlp-seed0/cell.json").read_text())
    assert [row["epoch"] for row in cell["history"]] == list(range(1, 26))


@pytest.mark.slow
def test_sigterm_ends_the_trainings_side_by_side_too(tmp_path):
    command = [sys.executable, ROOT / "compare.py", *map(str, SMALL), "--models", "mlp", "--seeds", "0", "1"]
    command += ["--learning_rate", "1e-3", "--epochs", "5000", "--jobs", "2"]
    logs = [tmp_path / f"output/comparison/mlp-seed{seed}/log.txt" for seed in (0, 1)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not all(log.exists() and "epoch   3" in log.read_text() for log in logs):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        err = process.communicate()[1]  # the workers hold stderr open, so it ends with the last of them
    assert process.returncode == 143 and "the same command goes on" in err and "Traceback" not in err
    for seed in (0, 1):
        contents = read_checkpoint(tmp_path / f"model/comparison/mlp-seed{seed}/last.pt")
        assert 3 <= contents["training"]["progress"]["epoch"] < 5000
