"""Training on a folder of one's own images: real JPEGs of Imagenette where ../shared is."""

import json
import multiprocessing
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED, assert_refused, run
from PIL import Image

from vitlab.checkpoint import load_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.batches import FileBatches, TensorBatches
from vitlab.datasets.folders import FolderIndex
from vitlab.datasets.splits import load_data
from vitlab.views.explorer.page import pick_images

COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}


def paint(folder, n, size=(20, 14)):
    """n noisy pictures of each colour, in a folder of its name."""
    random = np.random.RandomState(len(str(folder)))
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = random.randint(-30, 30, (*size, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{i:03}.png"
            )


def config(root, **args):
    return TrainConfig.create(dataset="folder", data_path=str(root), **{"image_size": 16, "patch_size": 4, **args})


def test_train_with_test_or_val_or_both(tmp_path):
    for name, parts in (("a", ("train", "test")), ("b", ("train", "val")), ("c", ("train", "val", "test"))):
        for part in parts:
            paint(tmp_path / name / part, 10 if part == "train" else 4)
        sets = load_data(config(tmp_path / name))
        assert sets.classes == ("blue", "green", "red")
        own = len(parts) == 3
        assert [len(s.labels) for s in (sets.train, sets.val, sets.test)] == ([30, 12, 12] if own else [27, 3, 12])
        assert sets.test.labels.bincount().tolist() == [4, 4, 4]


def test_one_tree_is_split_by_class_and_the_test_split_is_every_seeds(tmp_path):
    paint(tmp_path / "all", 20)
    twice = [FolderIndex(tmp_path / "all").splits for _ in range(2)]
    assert twice[0] == twice[1]
    first, second = (load_data(config(tmp_path / "all", seed=seed)) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images) and not torch.equal(first.val.images, second.val.images)
    assert [len(twice[0][name]) for name in ("train", "test")] == [48, 12]
    assert not set(twice[0]["train"]) & set(twice[0]["test"])
    assert np.bincount([label for _, label in twice[0]["test"]]).tolist() == [4, 4, 4]


def test_files_are_sorted_by_class_and_path_and_only_images(tmp_path):
    for part in ("train", "test"):
        paint(tmp_path / part, 2)
    red = tmp_path / "train" / "red"
    for name in ("b/z.PNG", "b.png", "B/a.png", "b-/c.jpg"):  # a path sorts by its parts
        (red / name).parent.mkdir(exist_ok=True)
        shutil.copy(red / "000.png", red / name)
    (red / "notes.txt").touch()
    (red / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "train" / ".git").mkdir()
    files = FolderIndex(tmp_path).splits["train"]
    assert [label for _, label in files] == 2 * [0] + 2 * [1] + 6 * [2]
    expected = sorted(red / name for name in ("000.png", "001.png", "b/z.PNG", "b.png", "B/a.png", "b-/c.jpg"))
    assert [path for path, label in files if label == 2] == expected


def test_the_test_split_alone_may_be_read(tmp_path):
    paint(tmp_path / "all", 10)
    sets, complete = load_data(config(tmp_path / "all"), ("test",)), load_data(config(tmp_path / "all"))
    assert sets.train is None and sets.val is None and sets.mean == complete.mean
    assert torch.equal(sets.test.images, complete.test.images)


def test_pixels_are_the_files_and_normalised_by_their_own_statistics(tmp_path):
    paint(tmp_path / "all", 10, size=(16, 16))
    sets = load_data(config(tmp_path / "all", augment="none", val_split=0.0, num_workers=0))
    everything = torch.cat([images for images, _ in sets.train])
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    path, label = FolderIndex(tmp_path / "all").splits["test"][0]
    images, labels = next(iter(sets.test))
    pixels = (images[0] * torch.tensor(sets.std).view(3, 1, 1) + torch.tensor(sets.mean).view(3, 1, 1)) * 255
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)), atol=1e-2)
    assert labels[0] == label


def test_what_does_not_fit_in_memory_is_decoded_again_and_is_the_same(tmp_path):
    paint(tmp_path / "all", 12)
    cached, streamed = (load_data(config(tmp_path / "all", cache_gb=gb, batch_size=8, crop_scale=0)) for gb in (1, 0))
    assert isinstance(streamed.train, FileBatches) and not isinstance(cached.train, FileBatches)
    assert cached.mean == streamed.mean and cached.std == streamed.std
    for name in ("train", "val", "test"):
        pairs = list(zip(getattr(cached, name), getattr(streamed, name), strict=True))
        assert pairs
        for (a, b), (c, d) in pairs:
            assert torch.equal(a, c) and torch.equal(b, d)
    for loader in (cached.train, streamed.train):
        loader.set_epoch(1, 2)
    for (a, b), (c, d) in zip(cached.train, streamed.train, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_cache_gb_is_one_budget_and_training_images_come_first(tmp_path):
    for part, n in (("train", 8), ("val", 4), ("test", 4)):
        paint(tmp_path / part, n)
    row = 3 * 3 * 16 * 16  # bytes of an image of each colour
    for rows, kept in ((16, ["train", "val", "test"]), (12, ["train", "val"]), (11, ["train"]), (4, ["val"]), (0, [])):
        sets = load_data(config(tmp_path, cache_gb=(rows + 0.5) * row / 1e9))
        assert [name for name in ("train", "val", "test") if type(getattr(sets, name)) is TensorBatches] == kept


def test_workers_stay_from_epoch_to_epoch(tmp_path):
    paint(tmp_path / "all", 8)
    others, workers, passes = set(multiprocessing.active_children()), [], []
    train = load_data(config(tmp_path / "all", cache_gb=0, num_workers=1, batch_size=4)).train
    for epoch in (0, 1):
        train.set_epoch(epoch)
        passes.append(torch.cat([images for images, _ in train]))
        workers.append(set(multiprocessing.active_children()) - others)
    assert workers[0] and workers[0] == workers[1] and not torch.equal(*passes)
    unfinished = iter(train)
    next(unfinished)
    assert torch.equal(torch.cat([images for images, _ in train]), passes[1])
    with pytest.raises(RuntimeError, match="one after the other"):
        next(unfinished)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_vanishes_ends_the_training_with_one_line(tmp_path, num_workers):
    paint(tmp_path / "all", 8)
    train = load_data(config(tmp_path / "all", cache_gb=0, num_workers=num_workers)).train
    train.dataset.files[0][0].unlink()
    with pytest.raises(UserError, match=f"^image {train.dataset.files[0][0]} does not exist.*$"):
        list(train)


def test_unreadable_files_are_left_out_and_named(tmp_path, capsys):
    paint(tmp_path / "all", 20)
    bad = tmp_path / "all" / "red" / "007.png"
    bad.write_text("no")
    sets = load_data(config(tmp_path / "all"))
    assert sum(len(s.labels) for s in (sets.train, sets.val, sets.test)) == 59
    out = capsys.readouterr().out
    assert str(bad) in out and "1 of" in out
    for i in range(8, 16):
        (tmp_path / "all" / "red" / f"{i:03}.png").write_text("no")
    done = run("train.py", "--dataset", "folder", "--data_path", tmp_path / "all", "--image_size", 16, cwd=tmp_path)
    assert_refused(done, "unreadable, more than a tenth", "red")
    assert not (tmp_path / "model").exists()


def test_the_explorer_shows_images_that_can_be_read_each_with_its_class(tmp_path, capsys):
    for part in ("train", "test"):
        paint(tmp_path / part, 3)
    (tmp_path / "test/blue/000.png").write_text("no")
    found_in = SimpleNamespace(classes=("blue", "green", "red"), data_config=lambda: config(tmp_path))
    args = SimpleNamespace(image_path=None, num_images=6)
    chosen = pick_images(SimpleNamespace(args=args, checkpoint=found_in, run_settings={}))
    assert "left out" in capsys.readouterr().out
    assert sorted(label for _, label, _ in chosen) == 2 * ["blue"] + 2 * ["green"] + 2 * ["red"]
    for _, label, image in chosen:
        assert np.asarray(image).mean((0, 1)).argmax() == ["red", "green", "blue"].index(label)


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "hollow", 3)
    (tmp_path / "hollow" / "yellow").mkdir()
    paint(tmp_path / "strange" / "train", 3)
    paint(tmp_path / "strange" / "test", 3)
    (tmp_path / "strange" / "test" / "pink").mkdir()
    for name, words in (
        ("nowhere", ["nowhere"]),
        ("empty", ["no folders"]),
        ("hollow", ["yellow", "no images"]),
        ("strange", ["pink"]),
    ):
        with pytest.raises(UserError) as caught:
            load_data(TrainConfig.create(dataset="folder", data_path=str(tmp_path / name)))
        assert all(word in str(caught.value) for word in [str(tmp_path / name), *words])


def test_hidden_files_at_any_depth_are_no_images(tmp_path):
    for part in ("train", "test"):
        paint(tmp_path / part, 4)
    for split in ("train", "test"):
        for hidden in (".ipynb_checkpoints/3-checkpoint.png", "sub/.cache/a.png", "._000.png", "@eaDir/t.png"):
            (tmp_path / split / "red" / hidden).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "train/red/003.png", tmp_path / split / "red" / hidden)
    sets = load_data(config(tmp_path))
    assert len(sets.train.labels) + len(sets.val.labels) == len(sets.test.labels) == 12
    assert not any("byte" in note for note in sets.notes)


def test_images_in_two_splits_are_counted_and_named(tmp_path):
    for part in ("train", "val", "test"):
        paint(tmp_path / part, 4)
    for i in (0, 1):
        shutil.copy(tmp_path / f"train/red/00{i}.png", tmp_path / f"test/blue/copy{i}.png")
    shutil.copy(tmp_path / "val/red/000.png", tmp_path / "test/red/copy.png")
    notes = [note for note in load_data(config(tmp_path)).notes if "byte for byte" in note]
    assert len(notes) == 2
    assert (
        notes[0].startswith("2 of 15 test images are train images too")
        and str(tmp_path / "test/blue/copy0") in notes[0]
    )
    assert notes[1].startswith("1 of 15 test images are val images too")

    shutil.rmtree(tmp_path / "val")  # and across the cut between training and validation
    shutil.copy(tmp_path / "train/red/000.png", tmp_path / "train/red/004.png")
    folds = [load_data(config(tmp_path, folds=13, fold=fold)).notes for fold in range(13)]
    assert sum("1 of 1 val images are train images too" in " ".join(notes) for notes in folds) == 2


def test_links_to_folders_are_followed_once(tmp_path):
    paint(tmp_path / "elsewhere", 3)
    (tmp_path / "all").mkdir()
    for colour in COLOURS:
        (tmp_path / "all" / colour).symlink_to(tmp_path / "elsewhere" / colour)
    (tmp_path / "all/red/again").symlink_to(tmp_path / "elsewhere/red")
    (tmp_path / "all/red/above").symlink_to(tmp_path / "elsewhere")
    splits = FolderIndex(tmp_path / "all").splits
    assert len(splits["train"]) + len(splits["test"]) == 9


def test_what_is_no_image_is_counted_and_said(tmp_path):
    paint(tmp_path / "all", 5)
    for name in ("a.heic", "b.HEIC", "notes.txt", "c.pdf", "unnamed"):
        (tmp_path / "all/red" / name).touch()
    (tmp_path / "all/red/gone.png").symlink_to(tmp_path / "nowhere.png")
    notes = FolderIndex(tmp_path / "all").notes
    assert notes == [f"{tmp_path / 'all'}: left out 2 .heic, 1 .pdf, 1 .txt, 1 broken link, 1 without suffix"]
    for file in (tmp_path / "all/blue").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(UserError, match="blue has no images, only 5 .heic; "):
        FolderIndex(tmp_path / "all")


def test_a_class_without_a_readable_image_is_refused(tmp_path):
    for part in ("train", "test"):
        paint(tmp_path / part, 20)
    for i in range(1, 20):
        (tmp_path / "train/red" / f"{i:03}.png").unlink()
    (tmp_path / "train/red/000.png").write_text("no")
    with pytest.raises(UserError, match="no training image of 'red' can be read"):
        load_data(config(tmp_path))


def test_a_class_may_be_missing_in_the_test_split(tmp_path):
    for part in ("train", "test"):
        paint(tmp_path / part, 4)
    shutil.rmtree(tmp_path / "test/green")
    for file in (tmp_path / "test/red").iterdir():
        file.unlink()
    sets = load_data(config(tmp_path))
    assert sets.test.labels.tolist() == 4 * [0]
    assert "classes without test images (2): green, red" in sets.notes


def test_every_training_says_classes_and_images_of_each_split(tmp_path):
    paint(tmp_path / "all", 10)
    text = load_data(config(tmp_path / "all")).summary()
    assert text.splitlines() == [
        "3 classes: blue, green, red",
        "train: 22 images of 3 classes",
        "val: 2 images of 2 classes",
        "test: 6 images of 3 classes",
    ]
    digits = load_data(TrainConfig.create(dataset="digits", val_split=0), ("train", "val")).summary().splitlines()
    assert digits[1:] == ["train: 1437 images of 10 classes", "there are no val images"]


def test_the_classes_travel_in_the_checkpoint(tmp_path):
    paint(tmp_path / "all", 20)
    flags = ["--dataset", "folder", "--data_path", "all", "--image_size", 16, "--patch_size", 4, "--embed_dim", 32,
             "--n_layers", 2, "--epochs", 8, "-lr", 2e-3, "--batch_size", 8]  # fmt: skip
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "output/vit-layer2-16-folder/report.json").read_text())
    assert trained["test"]["accuracy"] > 0.9 and trained["test"]["n"] == 12
    found = load_checkpoint(tmp_path / "model/vit-layer2-16-folder")
    assert found.classes == ("blue", "green", "red")
    assert found.predict(Image.new("RGB", (50, 30), COLOURS["green"]))[0][0] == "green"

    command = done.stdout.strip().splitlines()[-1].split()
    tested = run(*command[1:], "--batch_size", 8, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    again = json.loads((tmp_path / "output/vit-layer2-16-folder/test/report.json").read_text())
    assert again["test"] == trained["test"] and again["per_class"][2]["class"] == "red"
    one = run("test.py", "--model_path", "model/vit-layer2-16-folder", "--mode", "cifar-single", cwd=tmp_path)
    assert one.returncode == 0 and "true class: blue" in one.stdout

    shutil.move(tmp_path / "all" / "red", tmp_path / "all" / "crimson")
    assert_refused(run(*command[1:], cwd=tmp_path), "crimson", "red")


@pytest.mark.slow
def test_too_few_images_for_a_test_split_or_for_early_stopping(tmp_path):
    """A fifth of two images, or a tenth of four, is none: that is said, and no command is printed that cannot work."""
    paint(tmp_path / "few", 1)
    shutil.rmtree(tmp_path / "few/green")
    flags = ["--dataset", "folder", "--data_path", "few", "--image_size", 16, "--patch_size", 4, "--embed_dim", 16,
             "--n_layers", 1, "--epochs", 1]  # fmt: skip
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "output/vit-layer1-16-folder/report.json").read_text())
    assert report["data"] == ["2 classes: blue, red", "train: 2 images of 2 classes", *report["data"][2:]]
    assert all(line in done.stdout for line in report["data"]) and report["test"] is None
    assert "there are no test images" in done.stdout and "python test.py" not in done.stdout
    test = ["test.py", "--model_path", "model/vit-layer1-16-folder"]
    for args in ([], ["--mode", "cifar-single"]):
        assert_refused(run(*test, *args, cwd=tmp_path), "--data_path few has no test images")

    paint(tmp_path / "more", 2)
    done = run("train.py", *flags, "--data_path", "more", "--early_stopping", 2, "--folder_name", "x", cwd=tmp_path)
    assert_refused(done, "--early_stopping", "--val_split 0.1 leaves no images")
    assert not (tmp_path / "model/x").exists() and not (tmp_path / "output/x").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have UTF-8 names only")
def test_names_that_the_terminal_cannot_print_end_no_script(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    env, data = dict(os.environ), tmp_path / os.fsdecode(b"d\xfe")
    paint(data, 10)
    (data / "red").rename(data / "猫")
    (data / "猫/003.png").write_text("no")
    for file in (data / "blue").iterdir():
        file.rename(file.with_stem(file.stem + os.fsdecode(b"\xff")))
    flags = ["--image_size", 16, "--patch_size", 4, "--embed_dim", 16, "--n_layers", 1, "--epochs", 1]
    done = run("train.py", "--dataset", "folder", "--data_path", data, *flags, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stdout and r"\u732b/003.png" in done.stdout and r"d\udcfe" in done.stdout
    model = ["--model_path", "model/vit-layer1-16-folder", "--no_image"]
    for args in ([], ["--mode", "custom", "--image_path", data / "blue"]):
        done = run("test.py", *model, *args, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert r"\u732b" in done.stdout


@pytest.mark.slow
def test_real_photographs(tmp_path):
    if not SHARED.exists():
        pytest.skip("Imagenette lies in ../shared/data, which is not here")
    flags = ["--dataset", "folder", "--data_path", SHARED / "imagenette", "--image_size", 32, "--patch_size", 4,
             "--embed_dim", 64, "--n_layers", 3, "--epochs", 12, "-lr", 1e-3, "--batch_size", 32]  # fmt: skip
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "output/vit-layer3-32-folder/report.json").read_text())
    assert report["test"]["n"] == 400 and report["train"]["n"] == 900
    assert report["test"]["ci95"][0] > 0.2  # chance is 0.1
