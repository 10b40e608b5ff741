"""visualize.py: each picture of a model that train.py made, and what it refuses."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_refused, loaded_modules, run
from PIL import Image

import visualize
from model import VisionTransformer
from vitlab.attention.maps import features, look, times_uniform
from vitlab.checkpoint import load_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.official import test_image as official_image
from vitlab.datasets.splits import load_data
from vitlab.pictures.tiles import colours, enlarge, overlay
from vitlab.views.image_views import IMAGE_VIEWS
from vitlab.views.model_views import MODEL_VIEWS, draw_filters, draw_positions, silhouette
from vitlab.views.view import View

MODEL = ["--model_path", "model/vit-layer4-8-digits"]
PICTURES = "output/vit-layer4-8-digits/visualize"


@pytest.fixture(scope="module")
def root(digits_run):
    return digits_run[0]


def draw(root, command, *args):
    """The paths that visualize.py printed, each of which is there."""
    done = run("visualize.py", command, *MODEL, *args, cwd=root)
    assert done.returncode == 0, done.stderr
    paths = [root / line for line in done.stdout.splitlines() if line.endswith((".png", ".gif", ".npy", ".json"))]
    assert paths and all(path.is_file() for path in paths), done.stdout
    return paths


def frames(path):
    with Image.open(path) as image:
        assert image.info["loop"] == 0 and path.stat().st_size < 1_500_000
        durations, pixels = [], []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
            pixels.append(np.asarray(image.convert("RGB")).astype(int))
        return durations, pixels


def look_at(root, index):
    """A test image, and what the model computes for it."""
    checkpoint = load_checkpoint(root / "model/vit-layer4-8-digits")
    image, _ = official_image(TrainConfig.create(dataset="digits"), index)
    return image, look(checkpoint.model, checkpoint.batch(image))


def test_gif_runs_over_layers_and_heads(root):
    (path,) = draw(root, "gif", "--index", 3)
    assert path == root / "attention_map_gif/digits-index-3-vit-layer4-8-digits.gif"
    durations, pixels = frames(path)
    assert durations == [1200, *14 * [400], 1200]
    image, inside = look_at(root, 3)
    maps = [times_uniform(head) for layer in inside.from_pooled[0] for head in layer]
    for shown, values in zip(pixels, maps, strict=True):  # the tiles are in the frame, but for the GIF's palette
        for tile in (colours(values, 160), overlay(image, values, 160)):
            assert any(
                abs(shown[60:200, x : x + 160] - tile[7:147]).mean() < 6 for x in range(160, shown.shape[1] - 160)
            )


def test_gif_of_chosen_layers_and_heads(root):
    (path,) = draw(root, "gif", "--layers", 3, "--heads", 1, "mean", "--output_path", "x/y.gif", "--frame_ms", 100)
    assert path == root / "x/y.gif" and frames(path)[0] == [300, 300]


def test_pictures_of_ones_own_images(root, tmp_path):
    for name, colour in (("red", "#ff0000"), ("wide", "#00ff00")):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = run("visualize.py", "maps", *MODEL, "--image_path", tmp_path, "--output_path", "own", cwd=root)
    assert done.returncode == 1 and "broken.png cannot be read" in done.stderr
    assert sorted(path.name for path in (root / "own").iterdir()) == [
        f"{n}-maps-vit-layer4-8-digits.png" for n in ("red", "wide")
    ]


@pytest.mark.parametrize(
    "command, names",
    [
        ("maps", ["maps.png"]),
        ("rollout", ["rollout.png"]),
        ("cls", ["cls.png", "cls-values.png"]),
        ("tokens", ["tokens.png", "tokens.gif"]),
        ("gradcam", ["gradcam.png"]),
        ("hidden", ["hidden.png", "hidden.gif"]),
    ],
)
def test_pictures_of_a_test_image(root, command, names):
    paths = draw(root, command, "--index", 0)
    assert paths == [root / PICTURES / f"digits-index-0-{name}" for name in names]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 300 and np.asarray(image.convert("L")).std() > 20
    with Image.open(paths[0]) as sheet:  # begins with the image itself, in whole pixels, and has no column to spare
        pixels = np.asarray(sheet.convert("RGB"))
    original = enlarge(look_at(root, 0)[0], 160)
    at = [y for y in range(len(pixels) - 160) if np.array_equal(pixels[y : y + 160, 8:168], original)]
    assert at or command == "tokens"  # there patches are framed
    last = pixels[:, -168:-8]
    assert len(paths) > 1 or (last[60:200] != 255).any(-1).mean() > 0.9
    if paths[-1].suffix == ".gif":
        durations, _ = frames(paths[-1])
        assert durations[0] == durations[-1] == 3 * durations[1]  # a rest before it begins again
    if command == "tokens":
        assert len(frames(paths[1])[0]) == 16  # a frame for each patch
    if command == "hidden":
        assert len(frames(paths[1])[0]) == 4  # and for each layer


def test_a_class_changes_its_map_alone(root):
    one, other = (draw(root, "gradcam", "--target", digit, "--output_path", f"t{digit}.png")[0] for digit in (3, 8))
    one, other = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other))
    differ = abs(one[:, : min(one.shape[1], other.shape[1])] - other[:, : min(one.shape[1], other.shape[1])]).sum(
        (0, 2)
    )
    assert differ[170:330].any() and not differ[:160].any()


def test_hidden_values_are_saved(root):
    paths = draw(root, "hidden", "--index", 5, "--save_npy")
    hidden = look_at(root, 5)[1].hidden
    saved = {
        path.name.removeprefix("digits-index-5-hidden-")[:-4]: np.load(path) for path in paths if path.suffix == ".npy"
    }
    assert set(saved) == {name for name in hidden if not name.endswith(".attention")}
    for name, values in saved.items():
        np.testing.assert_allclose(values, hidden[name][0], atol=1e-5)


def test_hidden_values_of_some_layers(root):
    paths = draw(root, "hidden", "--index", 5, "--layers", 1, "--save_npy")
    names = {path.stem.split("-layers-1-")[1] for path in paths if path.suffix == ".npy"}
    blocks = {"blocks.1", *(f"blocks.1.{name}" for name in ("norm1", "attn", "norm2", "mlp"))}
    assert names == {"patch_embed", *blocks}


def test_of_many_filters_it_says_that_some_are_left_out(monkeypatch, tmp_path):
    notes = []
    for width in (128, 132):
        model = VisionTransformer(img_size=8, embed_dim=width, depth=1)
        view = SimpleNamespace(model=model, name="x", save_sheet=lambda *args, note, **options: notes.append(note))
        draw_filters(view)
    assert "first 128" not in notes[0] and "the first 128 of 132 filters" in notes[1]


def test_names_tell_the_model_and_what_was_asked(root, tmp_path):
    """No picture replaces another: not of the same stem, of other heads, of another epoch, nor of another model."""
    (tmp_path / "a").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (30, 30), "#3366cc").save(tmp_path / "a" / name)
    both = draw(root, "maps", "--image_path", tmp_path / "a")
    assert [path.name for path in both] == ["a.jpg-maps.png", "a.png-maps.png", "b-maps.png"]
    assert draw(root, "maps", "--image_path", tmp_path / "a/a.png") == both[1:2]
    asked = [
        draw(root, *args, "--index", 3)[0].name
        for args in (
            ("maps",),
            ("maps", "--heads", "mean"),
            ("maps", "--heads", 0, 1, "--layers", 2),
            ("gradcam", "--target", 8),
        )
    ]
    assert asked == [
        f"digits-index-3-{name}.png"
        for name in ("maps", "maps-heads-mean", "maps-layers-2-heads-0-1", "gradcam-target-8")
    ]
    last = ["--model_path", "model/vit-layer4-8-digits/last.pt"]
    assert draw(root, "maps", "--index", 3, *last)[0].name == "digits-index-3-maps-last.png"
    gif = draw(root, "gif", "--index", 3, "--layers", 0, "--heads", 0, *last)[0]
    assert gif.name == "digits-index-3-vit-layer4-8-digits-last-layers-0-heads-0.gif"


def test_a_silhouette_needs_two_classes(root):
    points = np.random.default_rng(0).random((6, 3))
    assert silhouette(points, np.zeros(6)) is None and silhouette(points, np.arange(6)) is None
    assert -1 <= silhouette(points, np.arange(6) % 2) <= 1
    paths = draw(root, "embeddings", "--num_images", 5)  # too few for t-SNE's usual perplexity
    assert [path.name for path in paths] == ["embeddings-5-images.png", "embeddings-5-images.json"]


@pytest.mark.parametrize("method", [None, "pca"])
def test_embeddings_of_one_class(digits_run, tmp_path, method):
    """As of a folder whose test images are all of one."""
    checkpoint = load_checkpoint(digits_run[0] / "model/vit-layer4-8-digits")
    args = argparse.Namespace(command="embeddings", method=method, num_images=None, output_path=str(tmp_path))
    view = View(checkpoint, args, {"data_path": "data", "device": "cpu"})
    view.test_images = lambda **_: (torch.randn(20, 1, 8, 8), torch.full((20,), 3))
    picture, numbers = MODEL_VIEWS["embeddings"](view)
    Image.open(picture).verify()
    assert json.loads(numbers.read_text())["silhouette"]["features"] is None


def test_embeddings_and_their_silhouette(root):
    from sklearn.metrics import silhouette_score

    paths = draw(root, "embeddings", "--method", "pca")  # of the 2,000 as many as there are
    report = json.loads(paths[1].read_text())
    checkpoint = load_checkpoint(root / "model/vit-layer4-8-digits")
    sets = load_data(TrainConfig.create(dataset="digits"))
    images, labels = sets.test.sample(360)
    assert torch.equal(labels, sets.test.labels)
    expected = silhouette_score(features(checkpoint.model, images).numpy(), labels.numpy())
    assert report["n"] == 360 and report["silhouette"]["features"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("command", ["positions", "filters", "training"])
def test_pictures_of_the_model(root, command):
    (path,) = draw(root, command)
    if command == "training":
        durations, pixels = frames(path)
        assert len(durations) == 4 and durations[0] == durations[-1] == 5 * durations[1]
        assert all(abs(a - b).sum() > 0 for a, b in zip(pixels, pixels[1:]))


def test_one_patch_has_no_other_position():
    model = VisionTransformer(img_size=8, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(UserError, match="digits has one patch"):
        draw_positions(argparse.Namespace(model=model, name="digits"))


def test_faithfulness_is_told_against_random(root):
    done = run("visualize.py", "faithfulness", *MODEL, "--num_images", 20, cwd=root)
    assert done.returncode == 0, done.stderr
    report = json.loads((root / PICTURES / "faithfulness-20-images.json").read_text())
    assert [row["map"] for row in report["rows"]][-1] == "random" and len(report["rows"]) == 6
    for row in report["rows"][:-1]:
        for kind in ("mean_deletion", "mean_insertion", "blur_deletion", "blur_insertion"):
            cell, floor = row[kind], report["rows"][-1][kind]
            assert cell["difference"] == pytest.approx(cell["area"] - floor["area"], abs=1e-6)
            assert cell["ci95"][0] <= cell["difference"] <= cell["ci95"][1]
            assert f"{cell['area']:.3f} ({cell['difference']:+.3f}" in done.stdout
    # a trained model's own evidence: what gradient rollout puts first is missed more than random patches
    assert report["rows"][3]["map"] == "gradient rollout"
    assert report["rows"][3]["mean_deletion"]["ci95"][1] < 0 < report["rows"][3]["mean_insertion"]["ci95"][0]


def test_cifar_and_a_timm_file(cifar_root, tmp_path):
    timm = pytest.importorskip("timm.models.vision_transformer")
    theirs = timm.VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0
    )
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    args = ["--model_path", "theirs.pt", "--dataset", "cifar10", "--n_attention_heads", 3, "--data_path", cifar_root]
    args += ["--pool", "cls"]
    done = run("visualize.py", "gif", *args, "--index", 21, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(frames(tmp_path / "attention_map_gif/cifar-index-21-theirs.gif")[0]) == 6
    assert "true: airplane" in done.stdout


@pytest.mark.parametrize(
    "args, words",
    [
        (["maps", "--layers", 4], ["--layers 4", "0 to 3"]),
        (["maps", "--layers", "x"], ["--layers x", "whole number from 0"]),
        (["gif", "--heads", -1], ["--heads -1", "whole number from 0"]),
        (["gif", "--heads", "mean", 4], ["--heads 4", "0 to 3"]),
        (["rollout", "--heads", "mean", 1], ["--heads mean 1", "numbers alone"]),
        (["cls", "--index", 360], ["--index 360", "0 to 359"]),
        (["cls", "--index", "one"], ["--index one", "whole number"]),
        (["gradcam", "--target", "cat"], ["--target cat", "0 to 9"]),
        (["maps", "--image_path", "none.png"], ["none.png", "does not exist"]),
        (["maps", "--image_path", "model/vit-layer4-8-digits/best.pt"], ["best.pt", "cannot be read as an image"]),
        (["maps", "--index", 1, "--image_path", "x.png"], ["--index", "--image_path"]),
        (["explorer", "--images", 2, "--image_path", "x.png"], ["--images", "--image_path"]),
        (["filters", "--index", 1], ["--index is a flag of gif, maps, rollout", "give it after one of these"]),
        (["maps", "--output_path", "/proc/x"], ["/proc/x"]),
        (["maps", "--output_path", "x.jpg"], ["x.jpg", "maps writes .png"]),
        (["gif", "--output_path", "x.png"], ["x.png", "gif writes .gif"]),
        (["gif", "--frame_ms", 1], ["--frame_ms 1", "20"]),
        (["embeddings", "--method", "umap"], ["--method umap", "pca, tsne or both"]),
        (["faithfulness", "--num_images", 1000], ["--num_images 1000", "2 to 360"]),
        (["embeddings", "--num_images", 0], ["--num_images 0", "5 to 360"]),
        (["tokens", "--model_path", "none"], ["none", "does not exist"]),
        (["tokens", "--layers", 0, 1], ["one layer and one head"]),
        (["dance"], ["dance", "maps"]),
    ],
)
def test_bad_input(root, args, words):
    model = [] if "--model_path" in args or args == ["dance"] else MODEL
    assert_refused(run("visualize.py", args[0], *model, *args[1:], cwd=root), *words)


def test_an_explorer_of_no_image_is_refused(root, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    done = run("visualize.py", "explorer", *MODEL, "--image_path", tmp_path, cwd=root)
    assert_refused(done, "a.png cannot be read as an image", "b.png cannot be read")


def test_each_command_has_its_function():
    assert list(IMAGE_VIEWS) == list(visualize.IMAGE_COMMANDS)
    assert list(MODEL_VIEWS) == list(visualize.MODEL_COMMANDS)


def test_help_needs_no_torch():
    for args in (["--help"], ["gif", "--help"]):
        done = loaded_modules("visualize.py", *args)
        assert "torch" not in done and "vitlab.config" in done


def test_a_model_without_attention(root, tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=10).state_dict(), tmp_path / "resnet.pt")
    assert_refused(
        run("visualize.py", "maps", "--model_path", tmp_path / "resnet.pt", cwd=root), "another architecture"
    )
