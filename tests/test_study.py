"""vitlab.study from Python: which rows and cells a study has, what it refuses, and running them."""

import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from vitlab.cli import UserError
from vitlab.config import SETTINGS
from vitlab.datasets import splits
from vitlab.datasets.official import read_split
from vitlab.datasets.splits import load_data
from vitlab.evaluation import metrics
from vitlab.models.registry import build_model
from vitlab.settings import read_yaml
from vitlab.study import figures, findings, page, plan, running, tables
from vitlab.study.design import Study, read_grid
from vitlab.study.figures import Curves
from vitlab.training.state import Run


def test_design_and_tables_need_no_torch():
    """compare.py --help and results.py start at once."""
    code = "import sys, compare, results, vitlab.study.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_rows_of_a_grid_and_of_variants():
    study = Study.create(
        models=["vit", "mlp"], grid=["n_layers=1,2", "weight_decay=0,0.1"], patch_sizes=[2], dataset="digits",
        variants={"no smoothing": {"label_smoothing": 0}}, label_smoothing=0.1,
    )  # fmt: skip
    titles = [row.title for row in study.rows()]
    assert len(titles) == 2 * (4 + 2)  # an MLP has no n_layers
    assert "Vision Transformer, patch 2, n_layers 2, weight_decay 0.1, no smoothing" in titles
    row = study.rows()[titles.index("MLP, weight_decay 0.1, no smoothing")]
    config = study.config(row, seed=3)
    assert (config.label_smoothing, config.weight_decay, config.seed, config.model) == (0, 0.1, 3, "mlp")
    assert len({row.slug for row in study.rows()}) == len(titles)
    other = study.baseline_of(study.rows()[titles.index("Vision Transformer, patch 2, n_layers 2, weight_decay 0.1")])
    assert other.title == "MLP, weight_decay 0.1" and study.baseline_of(other) is None
    alone = Study.create(models=["mlp"], grid=["dropout=0,0.1"], dataset="digits")
    assert [alone.baseline_of(row) for row in alone.rows()] == [None, alone.rows()[0]]
    assert read_grid(["qkv_bias=true,false"]) == {"qkv_bias": [True, False]}


@pytest.mark.parametrize(("more", "folds"), [({}, 0), ({"grad_accum_steps": 2}, 0), ({"val_split": 0.25}, 5)])
def test_few_images_are_seen_often_enough(more, folds):
    study = Study.create(
        models=["vit"], dataset="digits", epochs=4, warmup_epochs=1, train_sizes=[100, 300, 1300], min_steps=11,
        folds=folds or None, batch_size=64, **more,
    )  # fmt: skip
    cells = plan.plan(study, {})
    assert len(cells) == 3 * (3 + folds)
    for cell in cells:
        config = cell.config
        steps = math.ceil(len(load_data(config, splits=("train",)).train) / config.grad_accum_steps)
        assert config.epochs * steps >= 11
        assert config.epochs == 4 or (config.epochs - 1) * steps < 11  # no more than it takes
        assert config.warmup_epochs == pytest.approx(config.epochs / 4)
    assert len({cell.config.epochs for cell in cells}) > 1
    assert {cell.config.epochs for cell in plan.trials(study)} == {1}  # of the most images, a quarter


def test_a_row_with_epochs_of_its_own_has_the_least_number_of_steps_too():
    variants = {"longer": {"epochs": 20}}
    study = Study.create(
        dataset="digits", models=["vit"], epochs=10, min_steps=500, train_sizes=[200], variants=variants
    )
    assert {cell.config.epochs for cell in plan.plan(study, {"vit": 1e-3})} == {84}  # of six steps


def test_seeds_share_the_validation_images_of_the_set(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    settings = dict(models=["mlp"], dataset="folder", image_size=8, no_test=True)
    assert findings.validates_on_own_images(Study.create(settings, data_path=str(tmp_path)))
    assert not findings.validates_on_own_images(Study.create(settings, data_path=str(tmp_path / "train")))
    assert not findings.validates_on_own_images(Study.create(settings, dataset="digits"))


def test_all_models_see_the_same_batches():
    study = Study.create(models=["vit", "simple_cnn", "mlp"], dataset="digits", epochs=3, augment="affine")
    batches = []
    for row in study.rows():
        sets = load_data(study.config(row, seed=1), splits=("train",))
        sets.train.set_epoch(2)
        batches.append([images for images, _ in sets.train])
    for others in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], others, strict=True))


def test_every_study_of_configs_can_be_run():
    files = sorted((ROOT / "configs").rglob("compare*.yaml"))
    assert len(files) > 3
    for file in files:
        study = Study.create(read_yaml(file))
        assert study.name == file.stem and file.read_text().startswith("# ")
        cells = [*plan.plan(study, {}), *plan.trials(study)]
        assert len({cell.name for cell in cells}) == len(cells)
        for row in study.rows():
            model = build_model(study.config(row, seed=0)).eval()
            assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10), row.title


def test_settings_of_blocks_go_to_the_vit_alone():
    asked = dict(patch_drop_rate=0.5, grad_checkpointing=True, layer_decay=0.75, visualizers=("hidden",))
    study = Study.create(dataset="digits", **asked)
    vit, cnn = (vars(study.config(row, seed=0)) for row in study.rows())
    assert {name: vit[name] for name in asked} == asked
    assert {name: cnn[name] for name in asked} == {name: SETTINGS[name].default for name in asked}


def test_the_end_of_the_schedule_is_compared_with_the_rates_that_are_tried():
    study = Study.create(dataset="digits", learning_rates=["3e-3", "1e-2"], min_lr=1e-3)
    rates = [(cell.config.learning_rate, cell.config.min_lr) for cell in plan.trials(study)]
    assert rates == 2 * [(3e-3, 1e-3), (1e-2, 1e-3)]
    with pytest.raises(UserError, match="--min_lr 0.1 is above --learning_rate 0.01"):
        Study.create(dataset="digits", learning_rates=["3e-3", "1e-2"], min_lr=0.1)


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
        (dict(grid={"dataset": ["digits", "mnist"]}), "--dataset: rows are compared on the same images"),
        (dict(variants={"a": {"num_test_images": 9}}), "--num_test_images: rows are compared"),
        (dict(no_test=True, grid={"val_split": [0.1, 0.2]}), "--val_split: rows are compared"),
    ],
)
def test_bad_files_are_refused(layer, words):
    with pytest.raises(UserError, match=re.escape(words)):
        plan.check_sizes(Study.create(layer, dataset="digits"))
    assert Study.create(dict(folder_name=2024), dataset="digits").name == "2024"


def test_results_that_are_shown_again_keep_their_commit(tmp_path):
    study = Study.create(dataset="digits", output_path=str(tmp_path))
    older, newer = {"settings": {}}, {"settings": {}, "git_commit": "b" * 40}
    assert findings.commit_of(study, [newer, newer]) == "b" * 40
    study.folder.mkdir()
    (study.folder / "final_results.json").write_text(json.dumps({"git_commit": "a" * 40}))
    assert findings.commit_of(study, [older, older]) == "a" * 40
    assert findings.commit_of(study, [older, newer]) == "a" * 40 + ", " + "b" * 40


def test_cells_from_before_a_setting_had_its_default():
    cell = {"settings": {"dataset": "digits", "optimizer": "adamw"}, "hardware": "a CPU"}
    assert "; adamw; cosine schedule; " in findings.protocol(Study.create(dataset="digits"), [cell])


def test_no_test_leaves_the_test_set_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = read_split
    monkeypatch.setattr(splits, "read_split", lambda name, path, train: read(name, path, train) if train else 1 / 0)
    study = Study.create(
        models=["mlp"], seeds=[0, 1], dataset="digits", epochs=2, num_train_images=200, val_split=0.5, no_test=True,
        learning_rate=1e-3, variants={"no augmentation": {"augment": "none"}},
    )  # fmt: skip
    cells, failed = running.run(study)
    augmented, plain = findings.summarise(study, cells)
    assert not failed and augmented.test is None and plain.test is None
    names = {path.name for path in figures.draw_all(study, cells, [augmented, plain])}
    assert names == {
        "model_comparison.png",
        "augmentation_curves.png",
        "confusion_matrix_mlp.png",
        "model_comparison_bootstrap.png",
    }

    # the differences are on each seed's own validation images
    right = {}
    for cell in cells:
        file = np.load(study.folder / cell["name"] / "val.npz")
        right[cell["row"], cell["seed"]] = file["labels"] == file["predictions"]
        assert right[cell["row"], cell["seed"]].mean() == pytest.approx(cell["val"]["accuracy"])
    gaps = np.array([right[plain.title, seed].astype(int) - right[augmented.title, seed] for seed in (0, 1)])
    assert gaps.shape == (2, 100) and plain.vs.difference == gaps.mean()
    assert plain.vs.ci95 == metrics.bootstrap_seeds(gaps, images_differ=True)
    sentences = page.takeaways([augmented, plain])
    assert sentences[0].startswith("Highest validation accuracy: ") and len(sentences) > 1
    assert "test images were not read" in tables.comparison_note([augmented, plain])


def test_what_was_left_untested_is_tested_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(models=["mlp"], dataset="digits", epochs=1, num_train_images=200, learning_rates=[1e-6])
    running.run(Study.create(settings, seeds=[0], no_test=True))
    weights = (tmp_path / "model/comparison/mlp-seed0/last.pt").stat().st_mtime_ns
    study = Study.create(settings, seeds=[0, 1])
    cells, failed = running.run(study)
    assert not failed and [cell["test"]["n"] for cell in cells] == [360, 360]
    assert cells[0]["settings"]["min_lr"] == 1e-6  # not above the rate
    assert (tmp_path / "model/comparison/mlp-seed0/last.pt").stat().st_mtime_ns == weights  # not trained again
    assert findings.summarise(study, cells)[0].test["accuracy"].values == [cell["test"]["accuracy"] for cell in cells]


def test_a_cell_that_could_not_begin_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study.create(
        models=["mlp"], seeds=[0], dataset="digits", epochs=1, num_train_images=200, learning_rate=1e-3
    )
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda *args: 1 / 0)
        assert running.run(study)[1] == [("mlp-seed0", "division by zero")]
    cells, failed = running.run(study)
    assert not failed and cells[0]["checkpoint"] == "model/comparison/mlp-seed0/best.pt"
    assert not list((tmp_path / "output/comparison").glob("*-2"))


def test_a_folder_without_weights_is_begun_again_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study.create(
        models=["mlp"], seeds=[0], dataset="digits", epochs=1, num_train_images=200, learning_rate=1e-3
    )
    running.run(study)
    (tmp_path / "output/comparison/mlp-seed0/cell.json").unlink()
    shutil.rmtree(tmp_path / "model")
    cells, failed = running.run(study)
    assert not failed and findings.summarise(study, cells)[0].test["accuracy"].mean > 0
    assert [path.name for path in (tmp_path / "output/comparison").iterdir()] == ["mlp-seed0"]


def test_curves_without_validation_have_no_empty_panels(tmp_path):
    history = [{"train_loss": 2.0, "train_accuracy": 0.2, "val_loss": 1.9, "val_accuracy": 0.3}]
    without = [{**history[0], "val_loss": None, "val_accuracy": None}]
    rows = [
        Curves(title, [epochs], [{"accuracy": 0.3, "loss": 1.8}]) for title, epochs in zip("ab", (history, without))
    ]
    both = Image.open(figures.plot_curves(rows, tmp_path / "both.png"))
    one = Image.open(figures.plot_curves(rows[1:], tmp_path / "one.png"))
    assert (2 * one.width, one.height) == both.size
