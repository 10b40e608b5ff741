"""Sets of the Hugging Face `datasets` library, from local parquet files that are written here."""

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from conftest import assert_refused, run
from PIL import Image

from vitlab import hub
from vitlab.catalog import describe
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.official import test_image as official_image
from vitlab.datasets.splits import load_data

datasets = pytest.importorskip("datasets", reason="pip install datasets")
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The library keeps what it converts: here, in a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_HOME", str(folder))
    hub.open_hub.cache_clear()


def png(pixels):
    """An array 6 x 6 x 3 as a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def draw(n, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, 6, 6, 3), dtype=np.uint8)


def write(path, pixels, labels, label=None, image=None, columns=("image", "label"), **more):
    """A parquet file with a column of images and one of labels."""
    features = {columns[0]: image or datasets.Image(), columns[1]: label or datasets.ClassLabel(names=NAMES)}
    features |= {name: feature for name, (feature, _) in more.items()}
    values = {columns[0]: [{"bytes": png(image), "path": None} for image in pixels], columns[1]: labels}
    values |= {name: column for name, (_, column) in more.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(values, features=datasets.Features(features)).to_parquet(path)
    return path


def settings(path, **more):
    more = {"augment": "none", "img_size": 6, "patch_size": 3, "num_workers": 0, "val_split": 0, **more}
    return TrainConfig.create(dataset="hf", data_path=str(path), **more)


def test_splits_columns_and_names_are_found(tmp_path):
    labels, pixels = [0, 1, 2, 2, 1, 0], draw(6)
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        write(tmp_path / f"{name}-00000-of-00001.parquet", draw(6, seed), labels, columns=("img", "fine"))
    config = settings(tmp_path, val_split=0.1)
    assert config.num_classes == 3 and describe("hf", tmp_path).classes == tuple(NAMES)
    sets = load_data(config)
    assert sets.classes == tuple(NAMES)
    for batches, seed in ((sets.train, 0), (sets.val, 1), (sets.test, 2)):
        assert torch.equal(batches.images, torch.from_numpy(draw(6, seed)).permute(0, 3, 1, 2))
        assert batches.labels.tolist() == labels
    image, label = official_image(config, 3)
    assert (np.asarray(image) == draw(6, 2)[3]).all() and label == 2
    assert not np.array_equal(np.asarray(image), pixels[3])


def test_one_file_is_cut_and_streams_where_it_does_not_fit_in_memory(tmp_path):
    pixels, labels = draw(30), 10 * [0, 1, 2]
    path = write(tmp_path / "all, of it.parquet", pixels, labels)
    kept, streamed = (load_data(settings(path, cache_gb=cache, batch_size=7)) for cache in (1, 0))
    assert kept.test.labels.bincount().tolist() == [2, 2, 2] and len(kept.train.labels) == 24
    for split in ("train", "test"):
        pairs = zip(getattr(kept, split), getattr(streamed, split), strict=True)
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_a_validation_split_alone_is_the_test_split_and_unlabelled_ones_are_left_out(tmp_path):
    write(tmp_path / "train.parquet", draw(6), [0, 1, 2, 0, 1, 2])
    write(tmp_path / "validation.parquet", draw(3, 1), [0, 1, -1])
    write(tmp_path / "test.parquet", draw(3, 2), [-1, -1, -1])
    sets = load_data(settings(tmp_path))
    assert sets.test.labels.tolist() == [0, 1] and sets.val is None
    assert any("test is not used" in note for note in sets.notes)


def test_a_set_that_was_saved_to_disk_is_read(tmp_path):
    path = write(tmp_path / "written" / "train.parquet", draw(15), [0, 1, 2] * 5)
    datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(path))).save_to_disk(tmp_path / "saved")
    first, second = (load_data(settings(folder)) for folder in (tmp_path / "written", tmp_path / "saved"))
    assert torch.equal(first.train.images, second.train.images) and second.classes == tuple(NAMES)


@pytest.mark.parametrize("labels", [["dog", "cat", "eel"] * 5, [10, 2, 3] * 5, [10, 2, 3] * 4 + [-1, 2, 3]])
def test_labels_without_names_and_images_without_a_type(tmp_path, labels):
    pixels = draw(15)
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kind = datasets.Value("string" if labels[0] == "dog" else "int64")
    write(tmp_path / "train.parquet", pixels, labels, kind, plain)
    sets = load_data(settings(tmp_path))
    assert sets.classes == (("cat", "dog", "eel") if labels[0] == "dog" else ("2", "3", "10"))
    image, label = official_image(settings(tmp_path), 0)
    place = next(i for i, candidate in enumerate(pixels) if (candidate == np.asarray(image)).all())
    assert sets.classes[label] == str(labels[place])


def test_what_is_not_clear_is_asked_for(tmp_path):
    coarse = (datasets.ClassLabel(names=["fish", "beast"]), [1, 1, 0] * 5)
    write(tmp_path / "train.parquet", draw(15), [0, 1, 2] * 5, columns=("image", "fine"), coarse=coarse)
    with pytest.raises(UserError, match="2 columns may be the label; append ,label=COLUMN with one of fine, coarse"):
        settings(tmp_path)
    assert load_data(settings(f"{tmp_path},label=coarse")).classes == ("fish", "beast")
    with pytest.raises(UserError, match="label=none is no column; .* one of fine, coarse"):
        settings(f"{tmp_path},label=none")
    with pytest.raises(UserError, match="'names' is no option"):
        settings(f"{tmp_path},names=fine")


def test_two_splits_for_one_are_refused():
    with pytest.raises(UserError, match="set has two val splits, train, validation, dev; make one of them"):
        hub.name_splits("set", dict.fromkeys(("train", "validation", "dev")))


def test_an_image_that_no_decoder_reads_is_left_out_and_named(tmp_path, capsys):
    path, good = tmp_path / "train.parquet", [{"bytes": png(image), "path": None} for image in draw(30)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    for broken, remedy in ((1, "left out"), (9, "unreadable")):
        bad = [{"bytes": b"no image", "path": None}] * (broken - 1) + [None]
        images = [*bad, *good[broken:]]  # row 0 is a training image
        datasets.Dataset.from_dict({"image": images, "label": 10 * [0, 1, 2]}, features=features).to_parquet(path)
        hub.open_hub.cache_clear()
        if broken == 1:
            load_data(settings(tmp_path))
            assert f"{tmp_path} " in capsys.readouterr().out
        else:
            with pytest.raises(UserError, match=f"{remedy}.*row [0-9]+ cannot be read"):
                load_data(settings(tmp_path))


def test_damaged_and_missing_sets_are_refused_in_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "train.parquet", draw(6), [0, 1, 2, 0, 1, 2])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read as a set of images .*complete parquet files") as error:
        settings(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty cannot be read"):
        settings(tmp_path / "empty")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name))
    with pytest.raises(UserError, match="needs datasets: pip install datasets"):
        settings(tmp_path)


@pytest.mark.slow
def test_scripts_work_with_it_and_without_a_network(tmp_path):
    write(tmp_path / "set" / "train.parquet", draw(60), 20 * [0, 1, 2])
    data = ("--data_path", tmp_path / "set")
    small = ("--epochs", 1, "--embed_dim", 16, "--depth", 1, "--num_workers", 0)
    done = run("train.py", "--dataset", "hf", *data, *small, "--folder_name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for argv in (
        ("test.py",),
        ("test.py", "--mode", "cifar-single", "--index", 3, "--no_image"),
        ("visualize.py", "maps", "--index", 2),
    ):
        done = run(*argv, "--model_path", "model/run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "output/run/test/report.json").read_text())["dataset"] == "hf"
    done = run("train.py", "--dataset", "hf", "--data_path", "nobody/nothing", cwd=tmp_path)
    assert_refused(done, "nobody/nothing cannot be read", "OWNER/NAME")
