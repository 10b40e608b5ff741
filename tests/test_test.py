"""test.py: its three modes on a model that train.py made, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_refused, loaded_modules, run
from PIL import Image
from test_checkpoint import timms

from vitlab.catalog import DEFAULT_MODEL
from vitlab.checkpoint import load_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.images import normalise
from vitlab.datasets.official import read_digits
from vitlab.datasets.splits import load_data
from vitlab.views.split_report import print_confusion

MODEL = ["--model_path", "model/vit-layer4-8-digits"]


@pytest.fixture(scope="module")
def root(digits_run):
    return digits_run[0]


def output(root):
    return root / "output" / "vit-layer4-8-digits" / "test"


def test_the_whole_split(root):
    done = run("test.py", *MODEL, cwd=root)
    assert done.returncode == 0, done.stderr
    report = json.loads((output(root) / "report.json").read_text())
    counts = np.array(report["confusion"])
    assert counts.sum() == 360 and counts.trace() / 360 == report["test"]["accuracy"]
    assert counts.sum(axis=1).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    for i, row in enumerate(report["per_class"]):
        assert row["recall"] == pytest.approx(counts[i, i] / counts[i].sum())
        assert f"{row['f1']:.4f}" in done.stdout
    assert report["test"]["f1_macro"] == pytest.approx(np.mean([row["f1"] for row in report["per_class"]]))
    assert " ".join(f"{count:5d}" for count in counts[3]) in done.stdout
    assert "output/vit-layer4-8-digits/test/confusion_matrix.png" in done.stdout
    Image.open(output(root) / "confusion_matrix.png").verify()


def test_a_part_of_it(root):
    done = run("test.py", *MODEL, "--num_test_images", 50, "--output_path", "elsewhere", "--threads", 3, cwd=root)
    assert done.returncode == 0 and "50 images" in done.stdout
    report = json.loads((root / "elsewhere/vit-layer4-8-digits/test/report.json").read_text())
    assert report["cpu"].endswith("3 threads")


@pytest.mark.parametrize("index", [0, 1, 359])
def test_one_image_of_it(root, index):
    done = run("test.py", *MODEL, "--mode", "cifar-single", "--index", index, "--no_image", cwd=root)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((output(root) / f"index-{index}.json").read_text())
    checkpoint = load_checkpoint(root / "model/vit-layer4-8-digits")
    sets = load_data(TrainConfig.create(dataset="digits"))
    assert numbers["true"] == str(sets.test.labels[index].item())
    images = normalise(sets.test.images[index : index + 1] / 255, sets.mean, sets.std)
    shares = checkpoint.model(images).softmax(-1)[0]
    for guess in numbers["top"]:
        assert guess["probability"] == pytest.approx(shares[int(guess["class"])].item(), abs=1e-5)
    picture = f"output/vit-layer4-8-digits/test/index-{index}.png"
    assert picture in done.stdout
    with Image.open(root / picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_my_own_images_and_a_bad_one_among_them(root, tmp_path):
    digits, labels = read_digits(None, train=False)
    for i in range(3):
        enlarged = Image.fromarray(digits[i, 0].numpy()).resize((80, 80), Image.Resampling.BILINEAR)
        enlarged.save(tmp_path / f"digit{i}.png")
    (tmp_path / "broken.jpg").write_text("no")
    (tmp_path / "notes.txt").write_text("not looked at")
    done = run("test.py", *MODEL, "--mode", "custom", "--image_path", tmp_path, "--no_image", cwd=root)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "broken.jpg" in done.stderr
    rows = json.loads((output(root) / "custom/predictions.json").read_text())
    assert [row["image"].rsplit("/", 1)[1] for row in rows] == [f"digit{i}.png" for i in range(3)]
    for row in rows:
        assert len(row["top"]) == 5 and row["top"][0]["probability"] > 0.1
    for i in range(3):
        assert (output(root) / f"custom/digit{i}.png.png").exists()

    first = (output(root) / "custom/predictions.csv").read_bytes()
    alone = run("test.py", *MODEL, "--image_path", tmp_path / "digit0.png", "--no_image", cwd=root)
    assert (output(root) / "custom/predictions.csv").read_bytes() == first
    assert (output(root) / "custom-2/predictions.csv").exists()
    assert alone.returncode == 0 and alone.stdout.splitlines()[0].startswith(f"{tmp_path / 'digit0.png'}: ")
    refused = run("test.py", *MODEL, "--mode", "custom", "--image_path", tmp_path / "broken.jpg", cwd=root)
    assert_refused(refused, "broken.jpg", "cannot be read")
    assert not (output(root) / "custom-3").exists()


def test_many_images_are_predicted_in_batches(root, tmp_path):
    """As one by one, into predictions.csv and predictions.json; without pictures, if so asked."""
    digits, _ = read_digits(None, train=True)
    for i in range(300):
        Image.fromarray(digits[i, 0].numpy()).save(tmp_path / f"{i:03}.png")
    done = run("test.py", *MODEL, "--image_path", tmp_path, "--no_pictures", "--output_path", tmp_path / "o", cwd=root)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "o/vit-layer4-8-digits/test/custom"
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.csv", "predictions.json"]
    assert f"{folder / 'predictions.csv'}" in done.stdout
    rows = list(csv.DictReader((folder / "predictions.csv").open(encoding="utf-8")))
    columns = [f"{name}_{place}" for place in range(2, 6) for name in ("class", "probability")]
    assert list(rows[0]) == ["path", "class", "probability", *columns] and len(rows) == 300
    checkpoint = load_checkpoint(root / "model/vit-layer4-8-digits")
    for row, told in zip(rows, json.loads((folder / "predictions.json").read_text())):
        assert row["path"] == told["image"] and row["class_5"] == told["top"][4]["class"]
    for i in (0, 127, 128, 299):
        ((name, probability), *_) = checkpoint.predict(tmp_path / f"{i:03}.png")
        assert rows[i]["path"] == str(tmp_path / f"{i:03}.png") and rows[i]["class"] == name
        assert float(rows[i]["probability"]) == pytest.approx(probability, abs=1e-5)
    both = checkpoint.predict([str(tmp_path / "000.png"), Image.open(tmp_path / "299.png")], top=1)
    assert [guesses[0][0] for guesses in both] == [rows[0]["class"], rows[299]["class"]]


def test_a_foreign_file_is_tested_with_what_the_flags_say(tmp_path):
    """Mean, std, classes and images of a folder: the accuracy is that of timm's own model."""
    theirs = timms(num_classes=3, global_pool="avg", fc_norm=False)
    torch.save({"net": theirs.state_dict()}, tmp_path / "net.pt")
    correct, names = 0, ["cow", "ant", "bee"]  # in the order of its outputs
    random = np.random.RandomState(0)
    (tmp_path / "names.txt").write_text("\n".join(names))
    for name in names:
        for part, n in (("train", 1), ("test", 20)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = random.randint(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
                if part == "test":
                    batch = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, [0.4] * 3, [0.2] * 3)
                    correct += names[theirs(batch).argmax().item()] == name
    known = (
        "--model_path net.pt --pool mean --n_attention_heads 3 --classes names.txt --mean 0.4 0.4 0.4 --std 0.2 0.2 0.2"
    )
    done = run("test.py", *known.split(), "--dataset", "folder", "--data_path", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 < correct < 60 and f"test accuracy {correct / 60:.4f}" in done.stdout
    done = run("visualize.py", "maps", *known.split(), "--image_path", "data/test/ant/0.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for names, words in (("ant\n", "has 1 classes"), ("a\na\nb\n", "twice"), ("", "empty")):
        (tmp_path / "names.txt").write_text(names)
        assert_refused(run("test.py", *known.split(), "--image_path", "data", cwd=tmp_path), "--classes", words)


def test_the_shipped_model_is_found_from_any_folder(tmp_path):
    Image.effect_noise((40, 40), 60).save(tmp_path / "a.png")
    done = run("test.py", "--image_path", "a.png", "--no_image", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / Path(DEFAULT_MODEL).name / "test/custom/a.png.png").exists()
    done = run("visualize.py", "rollout", "--image_path", "a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_refused(run("test.py", "--model_path", "model/no", cwd=tmp_path), "model/no does not exist")


def test_flags_of_the_architecture_are_checked_not_needed(root):
    fine = run("test.py", *MODEL, "--n_layers", 4, "--patch_size", 2, "--image_size", 8, cwd=root)
    assert fine.returncode == 0, fine.stderr
    assert_refused(run("test.py", *MODEL, "--n_layers", 12, cwd=root), "--n_layers 12", "4")
    assert_refused(run("test.py", *MODEL, "--dataset", "cifar10", cwd=root), "cifar10", "digits")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--mode", "custom"], ["--image_path"]),
        (["--mode", "custom", "--image_path", "nowhere.png"], ["nowhere.png"]),
        (["--mode", "cifar100"], ["cifar100", "cifar-single"]),
        ([*MODEL, "--mode", "cifar-single", "--index", 360], ["360", "0 to 359"]),
        ([*MODEL, "--mode", "cifar-single", "--index", -1], ["-1", "whole number from 0"]),
        ([*MODEL, "--mode", "cifar-single", "--index", "one"], ["one", "whole number"]),
        ([*MODEL, "--index", 3], ["--index", "cifar-single", "not cifar"]),
        ([*MODEL, "--image_path", "x.png"], ["x.png", "does not exist"]),
        ([*MODEL, "--mode", "cifar", "--image_path", "x.png"], ["--image_path", "--mode custom", "not cifar"]),
        ([*MODEL, "--no_pictures"], ["--no_pictures", "custom"]),
        ([*MODEL, "--device", "tpu"], ["tpu", "cpu"]),
        ([*MODEL, "--num_test_images", 361], ["361", "360"]),
        ([*MODEL, "--output_path", "model/vit-layer4-8-digits/best.pt"], ["--output_path"]),
        (["--model_path", "model/none"], ["model/none"]),
        ([*MODEL, "--epochs", 3], ["--epochs"]),
    ],
)
def test_bad_input_is_refused(root, flags, words):
    assert_refused(run("test.py", *flags, cwd=root), *words)


def test_only_what_is_needed_is_imported(root, tmp_path):
    """Each of these takes a good part of a second, torch more than one."""
    assert "torch" not in loaded_modules("test.py", "--help")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    custom = ["--mode", "custom", "--image_path", tmp_path / "red.png", "--no_image"]
    loaded = loaded_modules("test.py", *MODEL, *custom, cwd=root)
    assert "torch" in loaded and not loaded & {"torchvision", "scipy", "sklearn", "pandas"}


def test_of_many_classes_only_confusions_are_listed(capsys):
    counts, names = 2 * np.eye(25, dtype=int), [f"class{i}" for i in range(25)]
    counts[3, 7] = 1
    print_confusion(counts, names)
    assert capsys.readouterr().out.splitlines()[2:] == ["    1  class3 taken for class7"]
