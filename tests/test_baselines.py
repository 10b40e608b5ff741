"""baselines.py: the architectures, and that train.py, test.py and visualize.py take them."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import assert_refused, run
from PIL import Image

from vitlab.attention.attribution import grad_cam
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.official import read_digits
from vitlab.datasets.splits import load_data
from vitlab.models.baselines import FeedForward, SimpleCNN, TinyCNN
from vitlab.models.registry import MODELS, build_model, cam_layer, count_flops, count_parameters

BASELINES = [name for name in MODELS if name != "vit"]
TINY = ["--dataset", "digits", "--num_train_images", 200, "--epochs", 2]


def test_simple_cnn_is_what_its_docstring_says():
    torch.manual_seed(0)
    model = SimpleCNN().eval()
    for norm in (model.features.norm0, model.features.norm3):
        torch.nn.init.normal_(norm.running_mean)
    x = images = torch.randn(2, 3, 32, 32)
    state = model.state_dict()
    for i in range(4):
        x = F.conv2d(x, state[f"features.conv{i}.weight"], state[f"features.conv{i}.bias"], padding=1)
        norm = [state[f"features.norm{i}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *norm).relu()
        if i < 3:
            x = F.max_pool2d(x, 2)
    assert x.shape == (2, 256, 4, 4)
    x = F.avg_pool2d(x, 2).flatten(1)
    x = F.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()
    expected = F.linear(x, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)
    assert model.drop.p == 0.3 and model.fc1.out_features == 512


def test_tiny_cnn_and_mlp_by_hand():
    model = TinyCNN(num_classes=7)
    assert count_parameters(model) == (27 * 16 + 16) + (9 * 16 * 32 + 32) + (32 * 8 * 8 * 7 + 7)
    model = FeedForward(img_size=8, in_chans=1, num_classes=3, hidden_sizes=(20, 10))
    assert count_parameters(model) == (64 * 20 + 20) + (20 * 10 + 10) + (10 * 3 + 3)
    assert count_flops(model) == 2 * (64 * 20 + 20 * 10 + 10 * 3)
    x = torch.randn(4, 1, 8, 8)
    first, second = model.layers.fc0, model.layers.fc1
    torch.testing.assert_close(model.eval()(x), model.head(second(first(x.flatten(1)).relu()).relu()))


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_resnets_with_a_stem_for_small_images(name, parameters):
    model = build_model(TrainConfig.create(model=name, dataset="cifar10"))
    assert count_parameters(model) == parameters  # those of the literature's ResNets for CIFAR
    seen = []
    model.layer1.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model.eval()(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32)]


@pytest.mark.parametrize("name", BASELINES)
def test_each_takes_the_settings_it_names(name):
    config = TrainConfig.create(dataset="digits", model=name)
    model = build_model(config)
    assert (model.img_size, model.in_chans) == (8, 1) and model.eval()(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert config.folder_name == f"{name}-8-digits"
    again = TrainConfig.create(yaml.safe_load(yaml.safe_dump(vars(config))))  # what a run leaves as config.yaml
    assert again == config
    layer = cam_layer(config.model, model)
    if name == "mlp":
        assert layer is None
    else:
        maps = grad_cam(model, torch.randn(2, 1, 8, 8), layer=layer)
        side = {"simple_cnn": 2, "tiny_cnn": 4, "resnet18": 2, "resnet50": 2}[name]  # the last is 1 x 1 but in tiny_cnn
        assert maps.shape == (2, side, side)


@pytest.mark.parametrize(
    ("name", "path"), [("simple_cnn", "features"), ("tiny_cnn", "features.4"), ("resnet18", "layer4")]
)
def test_grad_cam_is_drawn_on_the_last_map_before_pooling(name, path):
    model = build_model(TrainConfig.create(model=name, dataset="cifar10"))
    assert model.training and cam_layer(name, model) is model.get_submodule(path) and model.training


def test_settings_of_another_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="--n_layers 3: mlp has no such setting"):
        TrainConfig.create(model="mlp", n_layers=3)
    with pytest.raises(UserError, match="--hidden_sizes"):
        TrainConfig.create(hidden_sizes=[3])
    assert TrainConfig.create(model="simple_cnn").drop_rate == 0.3
    assert build_model(TrainConfig.create(model="simple_cnn", dropout=0.1)).drop.p == 0.1
    assert_refused(run("train.py", "--model", "alexnet"), "alexnet", "simple_cnn", "resnet50")
    assert_refused(run("train.py", "--model", "tiny_cnn", "--image_size", 2, "--no_test"), "image size 2", "tiny_cnn")
    assert_refused(run("train.py", "--model", "mlp", "--visualizers", "hidden"), "--visualizers", "mlp")
    done = run("train.py", *TINY, "--model", "mlp", "--optimizer", "muon", cwd=tmp_path)
    assert_refused(done, "--optimizer muon", "adamw")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A folder in which train.py trained simple_cnn on digits."""
    root = tmp_path_factory.mktemp("cnn")
    done = run("train.py", *TINY, "--model", "simple_cnn", "--ema_decay", 0.9, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


def test_train_test_and_resume(cnn, tmp_path):
    path = cnn / "model/simple_cnn-8-digits"
    report = json.loads((cnn / "output/simple_cnn-8-digits/report.json").read_text())
    assert report["test"]["accuracy"] > 0.5
    tested = run("test.py", "--model_path", path, cwd=cnn)
    assert tested.returncode == 0, tested.stderr
    again = json.loads((cnn / "output/simple_cnn-8-digits/test/report.json").read_text())["test"]
    for name in ("loss", "calibration_error"):  # convolutions of another memory layout
        assert again.pop(name) == pytest.approx(report["test"].pop(name))
    assert again == report["test"]

    # begun again behind the first epoch it is bit for bit the same, batch norm's statistics too
    flags = ["--model", "simple_cnn", "--ema_decay", 0.9, "--no_test", "--save_every_n_epochs", 1, "--resume"]
    ends = []
    for start in ("auto", "model/simple_cnn-8-digits/ViT_model_001.pt"):
        done = run("train.py", *TINY, *flags, start, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ends.append(read_checkpoint(tmp_path / "model/simple_cnn-8-digits/last.pt")["model"])
    assert "going on after 1 epochs" in done.stdout
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    wrong = run("train.py", *TINY, "--model", "tiny_cnn", "--resume", path / "last.pt", cwd=tmp_path)
    assert_refused(wrong, "--model", "simple_cnn")


def test_pictures_of_a_cnn_and_of_an_mlp(cnn, tmp_path):
    path = cnn / "model/simple_cnn-8-digits"
    Image.new("RGB", (30, 20), "#3366cc").save(tmp_path / "own.png")
    done = run("test.py", "--mode", "custom", "--image_path", "own.png", "--model_path", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("visualize.py", "gradcam", "--index", 3, "--model_path", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "output/simple_cnn-8-digits/visualize/digits-index-3-gradcam.png")
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert_refused(run("visualize.py", "gif", "--model_path", path), "gif", "simple_cnn", "gradcam")

    done = run("train.py", *TINY, "--model", "mlp", "--hidden_sizes", 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "model/mlp-8-digits"
    assert load_checkpoint(path).model.layers.fc0.out_features == 32
    done = run("test.py", "--mode", "cifar-single", "--model_path", path, "--no_image", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "output/mlp-8-digits/test/index-1.png")
    both = Image.open(tmp_path / "output/simple_cnn-8-digits/test/custom/own.png.png")
    assert picture.width < both.width  # alone: an MLP has no map
    assert_refused(run("visualize.py", "gradcam", "--model_path", path), "mlp", "training")
    assert_refused(run("test.py", "--model_path", path, "--n_layers", 3), "--n_layers", "mlp")
    assert_refused(run("test.py", "--model_path", path, "--model", "vit"), "--model", "mlp")


def test_fine_tuning_a_cnn(cnn, tmp_path):
    flags = ["--model", "simple_cnn", "--no_test", "--init_from", cnn / "model/simple_cnn-8-digits"]
    done = run("train.py", *TINY, *flags, cwd=tmp_path)
    assert done.returncode == 0 and "tensors used" in done.stdout, done.stderr
    flags = ["--no_test", "--model", "vit", "--init_from", cnn / "model/simple_cnn-8-digits"]
    assert_refused(run("train.py", *TINY, *flags, cwd=tmp_path), "--init_from", "is a simple_cnn")


def test_folds_are_a_partition_in_the_classes_proportions():
    held, n = [], 0
    for fold in range(5):
        sets = load_data(TrainConfig.create(dataset="digits", folds=5, fold=fold), splits=("train", "val"))
        images = sets.val.images.flatten(1)
        held.append(images)
        n += len(images)
        assert len(sets.train.labels) + len(images) == 1437
        counts = sets.val.labels.bincount(minlength=10)
        assert counts.min() >= 26 and counts.max() <= 31, counts
    whole, _ = read_digits(None, train=True)
    assert n == 1437
    rows = sorted(row.tobytes() for row in torch.cat(held).numpy())
    assert rows == sorted(row.tobytes() for row in whole.flatten(1).numpy())
    with pytest.raises(UserError, match="--fold 5"):
        TrainConfig.create(dataset="digits", folds=5, fold=5)
    with pytest.raises(UserError, match="--fold 1: it needs --folds"):
        TrainConfig.create(dataset="digits", fold=1)
