"""compare.py, study.py and findings.py: one protocol, cells that are run once, and numbers that can be checked."""

import json
import math
import os
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
from scipy.stats import binomtest

import results
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.datasets import splits
from vitlab.datasets.splits import load_data, read_split
from vitlab.evaluation import metrics
from vitlab.models.registry import build_model
from vitlab.settings import read_yaml
from vitlab.study import figures, findings, plan, running, tables
from vitlab.study.design import Study, read_grid
from vitlab.training.state import Run

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
def found(compared):
    return json.loads((compared[0] / "output/comparison/final_results.json").read_text())


def load(root, cell):
    with np.load(root / "output/comparison" / cell["name"] / "test.npz") as file:
        return file["labels"], file["predictions"], file["probabilities"].astype(np.float64)


def test_every_cell_is_there_with_all_that_is_asked(compared, found):
    root, done = compared
    assert len(found["cells"]) == 2 * 2 * (2 + 1 + 1) and found["failed"] == []
    for cell in found["cells"]:
        labels, predictions, shares = load(root, cell)
        assert cell["test"]["accuracy"] == pytest.approx((labels == predictions).mean())
        assert (shares.argmax(-1) == predictions).mean() > 0.98  # stored in half precision, where some are equal
        epochs = 3 if cell["row"].endswith("200 images") else 2  # of 6 and of 17 batches
        assert [row["epoch"] for row in cell["history"]] == [*range(1, epochs + 1)]
        assert cell["settings"]["epochs"] == epochs and cell["settings"]["learning_rate"] in (1e-4, 3e-3)
        assert min(cell[name] for name in ("parameters", "flops", "images_per_second", "seconds")) > 0
        assert load_checkpoint(root / cell["checkpoint"]).config.model == cell["model"]
        for split in ("train", "val", "test"):
            assert {"accuracy", "ci95", "loss", "f1_macro", "f1_weighted", "n"} == set(cell[split])
    stored = torch.load(root / "output/comparison/final_results.pth", weights_only=True)
    assert stored["cells"] == found["cells"]
    for cell in found["cells"]:
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


def test_each_model_has_the_rate_that_was_best_on_validation(compared, found):
    for model in ("vit", "simple_cnn", "mlp"):
        trials = [
            json.loads((compared[0] / f"output/comparison/trial-{model}-lr{rate}/cell.json").read_text())
            for rate in ("0.0001", "0.003")
        ]
        assert all(trial["test"] is None and trial["settings"]["epochs"] == 1 for trial in trials)
        assert all(trial["settings"]["num_train_images"] == 600 for trial in trials)
        best = max(trials, key=lambda trial: trial["val"]["accuracy"])["settings"]["learning_rate"]
        assert {cell["settings"]["learning_rate"] for cell in found["cells"] if cell["model"] == model} == {best}
        assert f"{best:g} is taken" in compared[1].stdout


def test_the_table_is_what_the_predictions_say(compared, found):
    root, _ = compared
    rows = {row["title"]: row for row in found["rows"]}
    vit, cnn = (
        [cell for cell in found["cells"] if cell["row"] == title]
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
    assert told in tables.comparison([row])

    mean = (load(root, vit[0])[2] + load(root, vit[1])[2]) / 2
    together = rows["Vision Transformer, patch 2, 600 images, ensemble of 2 seeds"]
    assert together["test"]["accuracy"]["mean"] == pytest.approx((mean.argmax(-1) == labels).mean())
    assert together["ci95"] == metrics.wilson_interval((mean.argmax(-1) == labels).sum(), 360)
    assert together["test"]["loss"]["mean"] == pytest.approx(-np.log(mean[np.arange(360), labels]).mean(), abs=1e-3)

    text = (root / "output/comparison/RESULTS.md").read_text()
    assert tables.comparison(found["rows"]) in text and found["protocol"] in text
    assert "2 epochs, more where that makes fewer than 15 steps" in text and "| MFLOPs | epochs |" in text
    assert " epochs |" not in tables.comparison(found["rows"][:2])  # where they do not differ
    assert "`python compare.py --dataset digits --n_layers 1" in text and "compare.py" in found["command"]
    numbers = {row["number"] for row in found["rows"]}
    said = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(said) > 8
    for sentence in said:  # each is tied to rows that are there
        told = {int(n) for pair in re.findall(r"rows? (\d+)(?: and (\d+))?", sentence) for n in pair if n}
        assert told and told <= numbers, sentence
    best = max((row for row in found["rows"] if row["train_size"] == 600 and row["kind"] == "seeds"),
               key=lambda row: row["test"]["accuracy"]["mean"])  # fmt: skip
    assert f"Highest test accuracy: {best['title']}," in text


def test_one_seed_has_intervals_over_the_images(compared, found, monkeypatch, tmp_path):
    monkeypatch.chdir(compared[0])
    asked = Study.create(models=["vit", "simple_cnn"], dataset="digits", train_sizes=[600], patch_sizes=[2], seeds=[0])
    cells = [cell for cell in found["cells"] if cell["seed"] == 0]
    vit, cnn = findings.summarise(asked, cells)
    labels = load(compared[0], cells[0])[0]
    right = [
        load(compared[0], next(cell for cell in cells if cell["row"] == line["title"]))[1] == labels
        for line in (vit, cnn)
    ]
    gaps = right[0].astype(int) - right[1]
    assert cnn["vs"] is None and vit["vs"]["seeds"] == 1 and vit["vs"]["difference"] == gaps.mean()
    half = 1.96 * gaps.std() / len(gaps) ** 0.5
    assert vit["vs"]["ci95"] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.1 * half)
    assert vit["vs"]["mcnemar_p"] == metrics.mcnemar(*right)
    assert not any("of the seeds" in sentence for sentence in tables.takeaways([vit, cnn]))
    assert figures.differences([vit], "test accuracy", tmp_path / "one.png").stat().st_size > 0


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
    found = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    assert [cell["row"] for cell in found["cells"]] == ["MLP, learning_rate 0.001"]
    assert found["failed"][0]["cell"] == "mlp-learning-rate-100.0-seed0"


def test_all_models_see_the_same_batches():
    asked = Study.create(models=["vit", "simple_cnn", "mlp"], dataset="digits", epochs=3, augment="affine")
    batches = []
    for row in asked.rows():
        sets = load_data(asked.config(row, seed=1), splits=("train",))
        sets.train.set_epoch(2)
        batches.append([images for images, _ in sets.train])
    for others in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], others, strict=True))


def test_rows_of_a_grid_and_of_variants():
    asked = Study.create(
        models=["vit", "mlp"], grid=["n_layers=1,2", "weight_decay=0,0.1"], patch_sizes=[2], dataset="digits",
        variants={"no smoothing": {"label_smoothing": 0}}, label_smoothing=0.1,
    )  # fmt: skip
    titles = [row.title for row in asked.rows()]
    assert len(titles) == 2 * (4 + 2)  # an MLP has no n_layers
    assert "Vision Transformer, patch 2, n_layers 2, weight_decay 0.1, no smoothing" in titles
    row = asked.rows()[titles.index("MLP, weight_decay 0.1, no smoothing")]
    config = asked.config(row, seed=3)
    assert (config.label_smoothing, config.weight_decay, config.seed, config.model) == (0, 0.1, 3, "mlp")
    assert len({row.slug for row in asked.rows()}) == len(titles)
    other = asked.reference_of(asked.rows()[titles.index("Vision Transformer, patch 2, n_layers 2, weight_decay 0.1")])
    assert other.title == "MLP, weight_decay 0.1" and asked.reference_of(other) is None
    alone = Study.create(models=["mlp"], grid=["dropout=0,0.1"], dataset="digits")
    assert [alone.reference_of(row) for row in alone.rows()] == [None, alone.rows()[0]]
    assert read_grid(["qkv_bias=true,false"]) == {"qkv_bias": [True, False]}


@pytest.mark.parametrize(("more", "folds"), [({}, 0), ({"grad_accum_steps": 2}, 0), ({"val_split": 0.25}, 5)])
def test_few_images_are_seen_often_enough(more, folds):
    one = Study.create(
        models=["vit"], dataset="digits", epochs=4, warmup_epochs=1, train_sizes=[100, 300, 1300], min_steps=11,
        folds=folds or None, batch_size=64, **more,
    )  # fmt: skip
    cells = plan.plan(one, {})
    assert len(cells) == 3 * (3 + folds)
    for cell in cells:
        config = cell.config
        steps = math.ceil(len(load_data(config, splits=("train",)).train) / config.grad_accum_steps)
        assert config.epochs * steps >= 11
        assert config.epochs == 4 or (config.epochs - 1) * steps < 11  # no more than it takes
        assert config.warmup_epochs == pytest.approx(config.epochs / 4)
    assert len({cell.config.epochs for cell in cells}) > 1
    assert {cell.config.epochs for cell in plan.trials(one)} == {1}  # of the most images, a quarter


def test_cross_validation_holds_out_each_image_once(tmp_path):
    flags = [*SMALL, "--models", "mlp", "--seeds", 0, "--folds", 3, "--learning_rate", "1e-3", "--epochs", 1]
    done = run("compare.py", *flags, "--num_train_images", 300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    folds = [cell for cell in found["cells"] if cell["kind"] == "fold"]
    assert len(folds) == 3 and sum(cell["val"]["n"] for cell in folds) == 300
    assert all(cell["test"] is None for cell in folds)
    row = next(row for row in found["rows"] if row["kind"] == "folds")
    assert row["best_val"]["mean"] == pytest.approx(np.mean([cell["val"]["accuracy"] for cell in folds]))
    assert not list((tmp_path / "output/comparison").glob("trial-*"))  # a rate was given


def test_no_test_leaves_the_test_set_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = read_split
    monkeypatch.setattr(splits, "read_split", lambda name, path, train: read(name, path, train) if train else 1 / 0)
    asked = Study.create(
        models=["mlp"], seeds=[0, 1], dataset="digits", epochs=2, num_train_images=200, val_split=0.5, no_test=True,
        learning_rate=1e-3, variants={"no augmentation": {"augment": "none"}},
    )  # fmt: skip
    cells, failed = running.run(asked)
    whole, bare = findings.summarise(asked, cells)
    assert not failed and whole["test"] is None and bare["test"] is None
    names = {path.name for path in figures.draw_all(asked, cells, [whole, bare])}
    assert names == {
        "model_comparison.png",
        "augmentation_curves.png",
        "confusion_matrix_mlp.png",
        "model_comparison_bootstrap.png",
    }

    # the differences are on each seed's own validation images
    right = {}
    for cell in cells:
        file = np.load(asked.folder / cell["name"] / "val.npz")
        right[cell["row"], cell["seed"]] = file["labels"] == file["predictions"]
        assert right[cell["row"], cell["seed"]].mean() == pytest.approx(cell["val"]["accuracy"])
    gaps = np.array([right[bare["title"], seed].astype(int) - right[whole["title"], seed] for seed in (0, 1)])
    assert gaps.shape == (2, 100) and bare["vs"]["difference"] == gaps.mean()
    assert bare["vs"]["ci95"] == metrics.bootstrap_nested(gaps)
    said = tables.takeaways([whole, bare])
    assert said[0].startswith("Highest validation accuracy: ") and len(said) > 1
    assert "test images were not read" in tables.comparison_note([whole, bare])


def test_what_was_left_untested_is_tested_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(models=["mlp"], dataset="digits", epochs=1, num_train_images=200, learning_rates=[1e-6])
    running.run(Study.create(settings, seeds=[0], no_test=True))
    weights = (tmp_path / "model/comparison/mlp-seed0/last.pt").stat().st_mtime_ns
    asked = Study.create(settings, seeds=[0, 1])
    cells, failed = running.run(asked)
    assert not failed and [cell["test"]["n"] for cell in cells] == [360, 360]
    assert cells[0]["settings"]["min_lr"] == 1e-6  # not above the rate
    assert (tmp_path / "model/comparison/mlp-seed0/last.pt").stat().st_mtime_ns == weights  # not trained again
    assert findings.summarise(asked, cells)[0]["test"]["accuracy"]["values"] == [
        cell["test"]["accuracy"] for cell in cells
    ]


def test_a_cell_that_could_not_begin_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Study.create(
        models=["mlp"], seeds=[0], dataset="digits", epochs=1, num_train_images=200, learning_rate=1e-3
    )
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda *args: 1 / 0)
        assert running.run(asked)[1] == [("mlp-seed0", "division by zero")]
    cells, failed = running.run(asked)
    assert not failed and cells[0]["checkpoint"] == "model/comparison/mlp-seed0/best.pt"
    assert not list((tmp_path / "output/comparison").glob("*-2"))


def test_a_folder_without_weights_is_begun_again_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Study.create(
        models=["mlp"], seeds=[0], dataset="digits", epochs=1, num_train_images=200, learning_rate=1e-3
    )
    running.run(asked)
    (tmp_path / "output/comparison/mlp-seed0/cell.json").unlink()
    shutil.rmtree(tmp_path / "model")
    cells, failed = running.run(asked)
    assert not failed and findings.summarise(asked, cells)[0]["test"]["accuracy"]["mean"] > 0
    assert [path.name for path in (tmp_path / "output/comparison").iterdir()] == ["mlp-seed0"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (dict(models=["mlp"], variants={"a": {"n_layers": 2}}), "variants 'a': changes nothing of mlp"),
        (
            dict(models=["mlp", "tiny_cnn"], grid={"n_layers": [1, 2]}),
            "--grid n_layers: not a setting of mlp, tiny_cnn",
        ),
        (dict(models=["mlp"], patch_sizes=[2]), "--patch_sizes 2"),
        (dict(patch_sizes=[2, 4], grid={"patch_size": [2]}), "--grid patch_size: it is asked for twice"),
        (dict(train_sizes=[200], variants={"a": {"num_train_images": 300}}), "num_train_images: it is asked for twice"),
        (dict(grid={"patch_size": [2, 3]}), "patch size 3"),
        (dict(embed_dim=65), "65"),
        (dict(variants=["a"]), "variants: write"),
        (dict(variants={"a": None}), "variants: write"),
        (dict(variants={"+ a": {"epochs": 1}, "- a": {"epochs": 2}}), "there twice"),
        (dict(grid=5), "--grid 5"),
        (dict(grid={"dropout": [0, 0]}), "there twice"),
        (dict(no_test="yes"), "no_test yes"),
    ],
)
def test_bad_files_are_refused(layer, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Study.create(layer, dataset="digits")
    assert Study.create(dict(folder_name=2024), dataset="digits").name == "2024"


def test_bootstrap_over_seeds_and_images_knows_both_spreads():
    rng = np.random.default_rng(0)
    seeds, images = rng.normal(0, 0.1, 8), rng.normal(0, 1, 500)
    values = seeds[:, None] + images
    low, high = metrics.bootstrap_crossed(values, resamples=4000)
    spread = (seeds.var() / 8 + images.var() / 500) ** 0.5  # of a sum of two independent means
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.07)
    assert low < values.mean() < high
    flat = metrics.bootstrap_crossed(np.repeat(images[None], 8, axis=0), resamples=4000)
    assert flat[1] - flat[0] < high - low


def test_bootstrap_of_seeds_with_images_of_their_own():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.1, 8)
    values = seeds[:, None] + rng.normal(0, 1, (8, 500))
    low, high = metrics.bootstrap_nested(values, resamples=4000)
    spread = (values.mean(1).var() / 8 + 1 / (8 * 500)) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.07)
    assert low < values.mean() < high


def test_mcnemar():
    first = np.array([1] * 30 + [0] * 10 + [1] * 50)
    second = np.array([0] * 30 + [1] * 10 + [1] * 50)
    assert metrics.mcnemar(first, second) == pytest.approx(binomtest(10, 40).pvalue)
    assert metrics.mcnemar(first, first) == 1.0


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
        (["--seeds", "x"], ["x", "whole number"]),
        (["--folds", "1"], ["--folds 1", "at least 2"]),
        (["--jobs", "0"], ["--jobs 0"]),
        (["--min_steps", "9"], ["--min_steps 9", "--train_sizes"]),
        (["--folder_name", "a/b"], ["--folder_name 'a/b'"]),
        (["--epochs", "two"], ["--epochs 'two'"]),
        (["--dataset", "mnist"], ["mnist", "cifar10"]),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path, flags, words):
    assert_refused(run("compare.py", "--dataset", "digits", *flags, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_a_page_includes_the_results(compared, found, tmp_path, monkeypatch):
    monkeypatch.chdir(compared[0])
    page = "before\n<!-- comparison: output/comparison/final_results.json -->\nold\n<!-- /comparison -->\nafter"
    text = results.refill_tables(page)
    assert "old" not in text and found["protocol"] in text and text.endswith("<!-- /comparison -->\nafter")
    assert "(output/comparison/RESULTS.md)" in text and "ensemble of" not in text
    whole = tables.comparison(found["rows"]).splitlines()[2:]
    plain = [row["number"] for row in found["rows"] if row["kind"] == "seeds"]
    brief = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert plain == list(range(1, len(brief) + 1))  # ensembles come after
    for short, long in zip(brief, whole):  # the same numbers, fewer of them
        cells = long.split(" | ")
        assert short.split(" | ")[:3] == cells[:3] and set(short.split(" | ")) < set(cells)
    with pytest.raises(UserError, match="nowhere.json.*compare.py"):
        results.refill_tables(page.replace("output/comparison/final_results.json", "nowhere.json"))


def test_every_study_of_configs_can_be_run():
    files = sorted((ROOT / "configs").glob("compare*.yaml"))
    assert len(files) > 3
    for file in files:
        asked = Study.create(read_yaml(file))
        assert asked.name == file.stem and file.read_text().startswith("# ")
        cells = [*plan.plan(asked, {}), *plan.trials(asked)]
        assert len({cell.name for cell in cells}) == len(cells)
        for row in asked.rows():
            model = build_model(asked.config(row, seed=0)).eval()
            assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10), row.title


@pytest.mark.slow
def test_side_by_side_gives_the_same(compared, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "compare.py", *map(str, ASKED), "--jobs", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((root / "output/comparison/final_results.json").read_text()) for root in (compared[0], tmp_path)
    )
    assert [cell["test"] for cell in one["cells"]] == [cell["test"] for cell in two["cells"]]
    assert "epoch   2" in (tmp_path / "output/comparison/mlp-200-images-seed0/log.txt").read_text()


@pytest.mark.slow
def test_a_killed_process_takes_no_others_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import compare
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
    flags = ["--models", "mlp", "--seeds", "0", "1", "2", "3", "--learning_rate", "1e-3", "--jobs", "2"]
    command = [sys.executable, "killed.py", *map(str, SMALL), *flags, "--num_train_images", "300"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "mlp-seed0 failed" in done.stderr, done.stderr
    found = json.loads((tmp_path / "output/comparison/final_results.json").read_text())
    assert {"mlp-seed1", "mlp-seed2", "mlp-seed3"} == {cell["name"] for cell in found["cells"]}
    text = (tmp_path / "output/comparison/RESULTS.md").read_text()
    assert "MLP, 3 of 4 seeds" in text and "Failed, and not in the table: mlp-seed0" in text


@pytest.mark.slow
def test_ctrl_c_and_on(tmp_path):
    command = [sys.executable, ROOT / "compare.py", *map(str, SMALL), "--models", "mlp", "--seeds", "0"]
    command += ["--learning_rate", "1e-3", "--epochs", "300"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for text in process.stdout:
            if text.startswith("epoch   3"):
                process.send_signal(2)
                break
        out, err = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    contents = read_checkpoint(tmp_path / "model/comparison/mlp-seed0/last.pt")
    assert 3 <= contents["training"]["progress"]["epoch"] < 300
    done = run("compare.py", *command[2:], cwd=tmp_path)
    assert done.returncode == 0 and "going on after" in done.stdout, done.stderr
    cell = json.loads((tmp_path / "output/comparison/mlp-seed0/cell.json").read_text())
    assert [row["epoch"] for row in cell["history"]] == list(range(1, 301))


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


def test_curves_without_validation_have_no_empty_panels(tmp_path):
    history = [{"train_loss": 2.0, "train_accuracy": 0.2, "val_loss": 1.9, "val_accuracy": 0.3}]
    bare = [{**history[0], "val_loss": None, "val_accuracy": None}]
    tests = [{"accuracy": 0.3, "loss": 1.8}]
    both = Image.open(figures.comparison([("a", [history], tests), ("b", [bare], tests)], tmp_path / "both.png"))
    one = Image.open(figures.comparison([("a", [bare], tests)], tmp_path / "one.png"))
    assert (2 * one.width, one.height) == both.size
