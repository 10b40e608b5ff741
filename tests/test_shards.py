"""Shards: packing, reading in one pass by the webdataset library, several processes, and what cannot be read."""

import collections
import io
import itertools
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from conftest import ROOT, assert_refused, run
from PIL import Image
from test_processes import largest_difference, together, train, weights
from webdataset.tariterators import tarfile_samples

from vitlab.checkpoint import load_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.batches import FileBatches, TensorBatches
from vitlab.datasets.shards import pack
from vitlab.datasets.splits import load_data
from vitlab.datasets.streaming import ShardBatches, rounds_before
from vitlab.shards import expand, find_samples, image_of, open_shards

N = 120  # training images; the grey value of an image is its number
STREAM = ("--dataset", "webdataset", "--image_size", 8, "--patch_size", 4, "--cache_gb", 0, "--crop_scale", 0)
SMALL = ("--embed_dim", 8, "--n_layers", 1, "--n_attention_heads", 1, "--batch_size", 16, "--epochs", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and test/ of two classes: even numbers and odd ones."""
    root = tmp_path_factory.mktemp("folder")
    for split, numbers in (("train", range(N)), ("test", range(200, 220))):
        for number in numbers:
            path = root / split / ("even", "odd")[number % 2] / f"image {number:03d}.v1.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), 3 * (number,)).save(path)
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """The same in seven shards and one of test images."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    done = run("vitlab.datasets.shards", folder, out, "--images_per_shard", 18)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"python train.py --dataset webdataset --data_path {out}"
    return out


def load(path, splits=("train",), **args):
    settings = dict(dataset="webdataset", data_path=str(path), img_size=8, batch_size=16, num_workers=0, val_split=0)
    settings.update(cache_gb=0, crop_scale=(0,), augment="none", mean=3 * [0.0], std=3 * [1.0])
    return load_data(TrainConfig.create(settings, **args), splits)


def numbers(images):
    return (images.mean(dim=(1, 2, 3)) * 255).round().int().tolist()


def epoch(batches, number=0, start=0):
    """The numbers of the images of each batch; their labels must be right."""
    batches.set_epoch(number, start)
    found = []
    for images, labels in batches:
        found.append(numbers(images))
        assert [n % 2 for n in found[-1]] == labels.tolist()
    return found


# ------------------------------------------------------------------------------------------- packing


def test_webdataset_reads_what_is_packed(folder, shards):
    """The library's own reader finds the bytes of each file once, with the number of its class."""
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    found = collections.Counter(
        (sample["png"], sample["cls"]) for sample in webdataset.WebDataset(urls, shardshuffle=False)
    )
    files = (folder / "train").rglob("*.PNG")
    assert found == {(file.read_bytes(), b"%d" % (file.parent.name == "odd")): 1 for file in files}
    assert len(urls) == 7


def test_the_index_has_classes_and_counts(shards):
    index = json.loads((shards / "shards.json").read_text())
    assert index["classes"] == ["even", "odd"]
    assert {name: shard["images"] for name, shard in index["shards"].items()} == {
        **{f"train-{number:06d}.tar": 18 for number in range(6)},
        "train-000006.tar": 12,
        "test-000000.tar": 18,
        "test-000001.tar": 2,
    }
    for name, shard in index["shards"].items():
        assert shard["labels"] == [label for _, _, label in find_samples(str(shards / name))]
        assert shard["bytes"] == (shards / name).stat().st_size
        assert {0, 1} == set(shard["labels"])  # not in the order of the classes


def test_packing_again_gives_the_same_bytes(folder, shards, tmp_path):
    pack(folder, tmp_path / "again", images_per_shard=18)
    pack(folder, tmp_path / "other", images_per_shard=18, seed=1)
    for path in shards.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "other/train-000000.tar").read_bytes() != (shards / "train-000000.tar").read_bytes()


def test_a_folder_of_one_tree_gets_the_same_test_split(folder, tmp_path):
    pack(folder / "train", tmp_path / "out")
    index = open_shards(str(tmp_path / "out"))
    assert [len(index.splits[split]) for split in ("train", "test")] == [96, 24]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["DIR and OUT"]),
        (("{folder}",), ["DIR and OUT"]),
        (("{folder}", "{shards}"), ["{shards} exists already", "choose a new folder"]),
        (("{tmp}/none", "{tmp}/out"), ["{tmp}/none is not a folder"]),
        (("{folder}", "{tmp}/out", "--images_per_shard", "0"), ["--images_per_shard 0", "from 1 on"]),
        (("--index", "{shards}"), ["is a folder", "{000..099}.tar"]),
        (("--index", "{tmp}/a.tar"), ["{tmp}/a.tar cannot be read (No such file"]),
        (("--index", "{shards}/train-00000{{0..6}}.tar"), ["{shards}/shards.json is there already", "remove it"]),
        (("--index", "{shards}/train-00000{{0..6}}.tar", "--classes", "{tmp}/none"), ["--classes {tmp}/none"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_cannot_be_packed(args, words, folder, shards, tmp_path):
    def fill(text):
        return re.sub(
            r"{(folder|shards|tmp)}", lambda m: str({"folder": folder, "shards": shards, "tmp": tmp_path}[m[1]]), text
        )

    done = run("vitlab.datasets.shards", *(fill(arg).replace("{{", "{").replace("}}", "}") for arg in args))
    assert_refused(done, *map(fill, words))
    assert not list(tmp_path.iterdir())


def test_shards_of_others(tmp_path):
    """Whatever is in them: an index finds the samples that the library's reader finds."""
    picture = io.BytesIO()
    Image.new("L", (8, 8), 7).save(picture, "JPEG")
    names = "a/1.jpg a/1.cls a/1.json a/2.txt a/3.JPEG a/3.cls __meta__/4.jpg 5.seg.png 5.jpg 5.cls 6.cls .7.jpg"
    names += " 8.cls 8.png"
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"mine-{split}-0.tar", "w") as tar:
            tar.addfile(directory := tarfile.TarInfo("a"))
            directory.type = tarfile.DIRTYPE
            for name in names.split():
                data = b"1" if name.endswith("cls") else picture.getvalue()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path = str(tmp_path / "mine-train-0.tar")
    theirs = [sample for sample in tarfile_samples([{"url": path}]) if image_of(list(sample))]
    assert [sample["__key__"] for sample in theirs] == ["a/1", "a/3", "5", "8"]
    assert len(find_samples(path)) == 4

    (tmp_path / "names").write_text("cat\ndog\n")
    pattern = f"{tmp_path}/mine-{{train,validation}}-0.tar"
    done = run("vitlab.datasets.shards", "--index", pattern, "--classes", tmp_path / "names")
    assert done.stdout.strip() == str(tmp_path / "shards.json"), done.stderr
    index = open_shards(pattern)
    assert index.classes == ("cat", "dog")
    assert {split: [label for _, label in images] for split, images in index.splits.items()} == {
        "train": [1, 1, 1, 1],
        "test": [1, 1, 1, 1],
    }
    assert index.splits["test"][3][0].open().read() == picture.getvalue()


# ------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
def test_each_image_once_an_epoch(shards, num_workers):
    batches = load(shards, num_workers=num_workers).train
    assert isinstance(batches, ShardBatches)
    first, second = epoch(batches), epoch(batches, 1)
    assert len(first) == len(second) == len(batches) == 8
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(N))
    assert first != second
    assert first == epoch(load(shards, num_workers=num_workers).train)


def test_a_folder_whose_name_looks_like_a_protocol(shards, tmp_path, monkeypatch):
    """As the letter of a drive does on Windows."""
    shutil.copytree(shards, tmp_path / "c:" / "shards")
    monkeypatch.chdir(tmp_path)
    assert epoch(load("c:/shards").train) == epoch(load(shards).train)


def test_a_split_that_is_cut_off_is_told(shards):
    sets = load(f"{shards}/train-*.tar", ("train", "test"))
    assert len(sets.train.labels) == N - N // 5 and any("the test split is a fifth" in note for note in sets.notes)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_can_start_at_any_batch(shards, num_workers):
    batches = load(shards, num_workers=num_workers, batch_size=7).train
    complete = epoch(batches, 3)
    for start in (1, 9, 17):
        assert epoch(batches, 3, start) == complete[start:]


def test_crops_and_augmentation_repeat_when_a_run_goes_on(folder, tmp_path):
    """Half of each image is white, so that a crop can be told from another."""
    for file in folder.rglob("*.PNG"):
        copy = tmp_path / "folder" / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(Image.open(file))
        pixels[:, :4] = 255
        Image.fromarray(pixels).save(copy)
    pack(tmp_path / "folder", tmp_path / "out", images_per_shard=18)
    batches = load(tmp_path / "out", crop_scale=(0.08, 1.0), augment="trivialaugment").train
    batches.set_epoch(2)
    complete = list(batches)
    batches.set_epoch(2, 5)
    assert all(torch.equal(again[0], images[0]) for again, images in zip(batches, complete[5:], strict=True))
    batches.set_epoch(3)
    assert len({images.double().sum().item() for images, _ in [*complete, *batches]}) == 16


def test_validation_images_are_not_trained_on(shards):
    sets = load(shards, ("train", "val", "test"), val_split=0.25)
    held_out = list(itertools.chain(*epoch(sets.val)))
    assert len(held_out) == 30 and isinstance(sets.val, FileBatches)
    assert sorted(itertools.chain(held_out, *epoch(sets.train))) == list(range(N))
    assert sorted(itertools.chain(*epoch(sets.test))) == list(range(200, 220))


def test_sample_is_of_the_data_set(shards):
    images, labels = load(shards).train.sample(40)
    assert [n % 2 for n in numbers(images)] == labels.tolist()
    assert len(set(numbers(images))) == 40


def test_alternating_flips(folder, tmp_path):
    """An image that is mirrored in one epoch is not in the next."""
    for number in range(40):
        pixels = np.full((8, 8, 3), number, dtype=np.uint8)
        pixels[:, 0] = 255
        path = tmp_path / "folder" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    pack(tmp_path / "folder", tmp_path / "out", images_per_shard=10)
    batches = load(tmp_path / "out", alternate_flip=True).train
    sides = []
    for number in range(2):
        batches.set_epoch(number)
        images = torch.cat([images for images, _ in batches])
        sides.append(dict(zip(numbers(images[:, :, :, 3:4]), (images[:, 0, 0, 0] == 1).tolist())))
    assert len(sides[0]) == 32 and 0 < sum(sides[0].values()) < 32
    assert all(sides[0][number] != sides[1][number] for number in sides[0])


def test_a_set_that_fits_is_read_once(shards):
    sets = load(shards, ("train", "test"), cache_gb=1)
    assert type(sets.train) is type(sets.test) is TensorBatches
    assert sorted(itertools.chain(*epoch(sets.train))) == list(range(N))


def test_a_pattern_names_some_of_the_shards(shards):
    sets = load(f"{shards}/train-{{000001..000003}}.tar", ("train", "test"))
    assert len(sets.train.labels) == 43 and len(sets.test.labels) == 11  # a fifth of 54
    sets = load(f"{shards}/{{train,test}}-*.tar", ("train", "test"))
    assert len(sets.train.labels) == N and len(sets.test.labels) == 20


def test_rounds_before():
    """Which rounds can be left out: worker 0 hands over 40 images in chunks of 16, worker 1 three."""
    assert [rounds_before([40, 3], n) for n in (0, 18, 19, 34, 35, 42, 43)] == [
        (0, 0), (0, 18), (1, 0), (1, 15), (2, 0), (2, 7), (3, 0)
    ]  # fmt: skip


# --------------------------------------------------------------------------------- several processes

EPOCHS = """
import json, sys
sys.path.insert(0, {tests!r})
from test_shards import load, numbers
from vitlab import processes

def main():
    batches = load({shards!r}, num_workers=2, batch_size=12).train
    epochs = []
    for number, start in ((0, 0), (1, 0), (1, 6)):
        batches.set_epoch(number, start)
        shares = list(processes.shares(batches, before=1))
        assert all(share.own == len(share.labels) - 1 for share in shares)
        assert all(share.labels[0] == share.labels[-1] for share in shares)
        epochs.append([[numbers(share.images[1:]), share.whole] for share in shares])
    open(f"{{processes.rank()}}.json", "w").write(json.dumps(epochs))

if __name__ == "__main__":  # workers import this file too
    with processes.joined():
        main()
"""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_together_see_each_image_once(shards, tmp_path, count):
    (tmp_path / "epochs.py").write_text(EPOCHS.format(tests=str(ROOT / "tests"), shards=str(shards)))
    done = together(tmp_path / "epochs.py", cwd=tmp_path, each=[()] * count)
    assert [process.returncode for process in done] == [0] * count, done[0].stderr
    first, second, rest = zip(*(json.loads((tmp_path / f"{number}.json").read_text()) for number in range(count)))
    for shares in (first, second):
        assert [len(batches) for batches in shares] == [10] * count
        assert sorted(n for batches in shares for found, _ in batches for n in found) == list(range(N))
        for step in zip(*shares):
            assert {whole for _, whole in step} == {sum(len(found) for found, _ in step)}
    assert first != second
    assert all(again == batches[6:] for again, batches in zip(rest, second))


@pytest.mark.slow
def test_two_processes_resume_exactly(shards, tmp_path):
    args = (*STREAM, *SMALL, "--data_path", shards, "--num_workers", 1, "--mixup", 1, "--stem", "whitened")
    train(tmp_path, *args, "--ema_decay", 0.9, "--save_every_n_epochs", 1, "--folder_name", "run")
    whole = weights(tmp_path, "run")
    train(tmp_path, "--resume", "model/run/ViT_model_001.pt")
    assert largest_difference(whole, weights(tmp_path, "run")) == 0
    report = json.loads((tmp_path / "output/run/report.json").read_text())
    assert report["test"]["n"] == 20 and report["hardware"].endswith("2 processes")


def test_more_processes_than_shards(shards):
    batches = load(f"{shards}/train-000000.tar").train
    batches.stream.processes = 2
    with pytest.raises(UserError, match="1 shards for 2 processes: one has 0 images .* pack smaller shards"):
        next(batches.shares())


# ------------------------------------------------------------------------------------- from end to end


@pytest.mark.slow
def test_train_test_and_look(shards, tmp_path):
    done = run("train.py", *STREAM, *SMALL, "--data_path", shards, "--folder_name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 108 images" in done.stdout and "val: 12 images" in done.stdout
    test = run("test.py", "--model_path", "model/run", cwd=tmp_path)
    accuracy = json.loads((tmp_path / "output/run/report.json").read_text())["test"]["accuracy"]
    assert f"test accuracy {accuracy:.4f}" in test.stdout, test.stdout + test.stderr
    pattern = ("--model_path", "model/run", "--index", 3, "--data_path", f"{shards}/{{train,test}}-*.tar")
    single = run("test.py", "--mode", "cifar-single", *pattern, cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    maps = run("visualize.py", "maps", *pattern, cwd=tmp_path)
    assert (tmp_path / "output/run/visualize/shards-index-3-maps.png").exists(), maps.stderr
    assert load_checkpoint(tmp_path / "model/run").classes == ("even", "odd")


# ------------------------------------------------------------------------------- what cannot be read


def copy(shards, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    for path in shards.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def damage(path, data):
    path.write_bytes(data(path.read_bytes()))


def edit(path, change):
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


BROKEN = {  # what happens to the folder, and what is said; {} is the folder
    "missing": (lambda out: (out / "train-000002.tar").unlink(), "shard {}/train-000002.tar: No such file"),
    "torn": (lambda out: damage(out / "train-000002.tar", lambda data: data[:5000]), "has 5,000 bytes, not"),
    "overwritten": (
        lambda out: damage(out / "train-000002.tar", lambda data: data[:2048] + b"x" * (len(data) - 2048)),
        "shard {}/train-000002.tar has 1 images, not 18 as in shards.json; copy it again",
    ),
    "no tar file": (
        lambda out: damage(out / "train-000002.tar", lambda data: b"x" * len(data)),
        "shard {}/train-000002.tar cannot be read (",
    ),
    "zeros": (
        lambda out: damage(out / "train-000002.tar", lambda data: bytes(len(data))),
        "has 0 images, not 18",
    ),
    "no image": (
        lambda out: damage(out / "train-000002.tar", lambda data: data.replace(b"IHDR", b"XXXX", 1)),
        "{}/train-000002.tar, image 0 cannot be read as an image",
    ),
    "no index": (
        lambda out: (out / "shards.json").unlink(),
        "--data_path {}: there is no shards.json; run: python -m vitlab.datasets.shards --index '{}/*.tar'",
    ),
    "no JSON": (lambda out: damage(out / "shards.json", lambda data: data[:100]), "{}/shards.json is damaged"),
    "no classes": (lambda out: edit(out / "shards.json", lambda index: index.pop("classes")), "damaged (KeyError"),
    "no split": (
        lambda out: edit(out / "shards.json", lambda index: index["shards"]["train-000000.tar"].update(split="dev")),
        "train-000000.tar has no split or size",
    ),
    "labels": (
        lambda out: edit(out / "shards.json", lambda index: index["shards"]["train-000000.tar"].update(labels=[7])),
        "train-000000.tar has labels beyond the 2 classes",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_shards(kind, num_workers, shards, tmp_path):
    out = copy(shards, tmp_path)
    change, words = BROKEN[kind]
    change(out)
    with pytest.raises(UserError, match=re.escape(words.replace("{}", str(out)))):
        epoch(load(out, num_workers=num_workers).train)


@pytest.mark.slow
def test_a_damaged_shard_ends_a_training_in_one_line(shards, tmp_path):
    out = copy(shards, tmp_path)
    change, words = BROKEN["overwritten"]
    change(out)
    done = run("train.py", *STREAM, *SMALL, "--data_path", out, cwd=tmp_path)
    assert_refused(done, words.format(out), "copy it again, or pack it again")
    assert not list(tmp_path.glob("model/*/best.pt"))


@pytest.mark.parametrize(
    ("data_path", "words"),
    [
        ("{}/train-{{000000..000009}}.tar", "/shards.json; remove that file and run"),
        ("{}/test-{{000000..000001}}.tar", "no shard of training images"),
        ("none/{{0..3}}.tar", "none is not there; give a folder"),
        ("{}/train-{{0..", "is no pattern"),
        ("{}/none-*.tar", "none-*.tar is not there"),
        ("{}/nowhere", "/nowhere is neither a folder nor a .tar file"),
        ("{}/train-{{0..3}}.tgz", "/train-0.tgz is neither a folder nor a .tar file"),
        ("https://example.org/{{000..099}}.tar", "shards are read from a disk"),
        ("pipe:cat {}/train-000000.tar", "shards are read from a disk"),
    ],
)
def test_patterns_that_name_no_shards(data_path, words, shards):
    with pytest.raises(UserError, match=re.escape(words)):
        open_shards(data_path.format(shards))


def test_a_backslash_divides_folders_on_windows():
    assert list(map(str, expand(r"there\{0..1}.tar"))) == [r"there\0.tar", r"there\1.tar"]


def test_without_the_library(shards, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install webdataset"):
        open_shards(str(shards))
