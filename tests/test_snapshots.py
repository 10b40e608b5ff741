"""--visualizers of train.py: pictures of fixed images while a model learns."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_refused, run
from PIL import Image, ImageSequence

from vitlab.attention.maps import features, look
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.config import SETTINGS, TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.training.snapshots import VISUALIZERS, Snapshots

KINDS = ("token_attn_maps", "cls_heatmap", "hidden", "cls_dim_reduction")
SHORT = ["--dataset", "digits", "--num_train_images", 300, "--epochs", 3, "--folder_name", "r", "--pool", "cls"]
LOOK = [
    "--visualizers",
    "token_attn_maps",
    "cls_heatmap",
    "hooks",
    "cls_dim_reduction",
    "--visualize_every_n_epochs",
    2,
]


@pytest.fixture(scope="module")
def run_with_pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    done = run(
        "train.py", *SHORT, *LOOK, "--save_npy", "--visualize_layers", 1, 3, "--log_backend", "tensorboard",
        "--save_every_n_epochs", 2, cwd=root, curves=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done


def test_pictures_every_n_epochs_and_at_the_end(run_with_pictures):
    root, done = run_with_pictures
    for kind in KINDS:
        for epoch in (2, 3):
            path = f"output/r/visualizers/{kind}-epoch-{epoch:03d}.png"
            assert path in done.stdout
            Image.open(root / path).verify()
        assert not (root / f"output/r/visualizers/{kind}-epoch-001.png").exists()
        with Image.open(root / f"output/r/{kind}.gif") as gif:
            assert gif.n_frames == 2 and gif.info["loop"] == 0
        assert f"output/r/{kind}.gif" in done.stdout
    with Image.open(root / "output/r/training.gif") as gif:
        assert gif.n_frames == 3


def test_the_numbers_are_those_of_the_model_at_that_epoch(run_with_pictures):
    root, _ = run_with_pictures
    contents = read_checkpoint(root / "model/r/last.pt")
    model = load_checkpoint(root / "model/r").model
    model.load_state_dict(contents["model"])
    config = TrainConfig.create(dataset="digits", num_train_images=300, pool="cls")
    images, _ = load_data(config).val.sample(4)
    inside = look(model, images)

    def saved(kind):
        return np.load(root / f"output/r/visualizers/{kind}-epoch-003.npy")

    np.testing.assert_allclose(saved("token_attn_maps"), inside.attention[0, [1, 3]].mean(1), atol=1e-5)
    np.testing.assert_allclose(saved("cls_heatmap"), inside.attention[:, [1, 3], :, 0], atol=1e-5)
    values = saved("hidden")
    assert values.shape == (2, 5, 17, 64)
    np.testing.assert_allclose(values[1, 0], inside.hidden["blocks.3.norm1"][0], atol=1e-4)
    np.testing.assert_allclose(values[1, 4], inside.hidden["blocks.3"][0], atol=1e-4)
    points, _ = load_data(config).val.sample(1000)
    assert len(points) == 30  # all there are
    np.testing.assert_allclose(saved("cls_dim_reduction"), features(model, points), atol=1e-4)


def test_every_choice_of_the_flag_is_drawn():
    assert set(KINDS) == set(VISUALIZERS) == set(SETTINGS["visualizers"].choices) - {"hooks"}


def test_tensorboard_has_them(run_with_pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_with_pictures[0] / "output/r/tensorboard"), size_guidance={"images": 0}).Reload()
    assert set(KINDS) <= set(events.Tags()["images"])
    assert [event.step for event in events.Images("hidden")] == [2 * 9, 3 * 9]


def test_looking_does_not_disturb_the_training(run_with_pictures, tmp_path):
    done = run("train.py", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "output/r/visualizers").exists()
    with_pictures, without = (
        read_checkpoint(root / "model/r/last.pt")["model"] for root in (run_with_pictures[0], tmp_path)
    )
    assert all(torch.equal(without[name], value) for name, value in with_pictures.items())


def test_without_validation_it_looks_at_training_images(tmp_path):
    args = [*SHORT[:4], "--epochs", 1, "--folder_name", "r", "--val_split", 0, "--visualizers", "cls_heatmap"]
    done = run("train.py", *args, "--save_npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "output/r/visualizers/cls_heatmap-epoch-001.npy").shape == (4, 3, 4, 16)


def test_a_run_that_goes_on_from_earlier_loses_the_later_pictures(run_with_pictures, tmp_path):
    root = shutil.copytree(run_with_pictures[0], tmp_path / "copy")
    more = ["--epochs", 4, "--visualize_every_n_epochs", 4]  # SHORT says 3
    done = run("train.py", "--resume", "model/r/ViT_model_002.pt", *more, cwd=root)
    assert done.returncode == 0, done.stderr
    left = {path.name for path in (root / "output/r/visualizers").glob("*.png")}
    assert left == {f"{kind}-epoch-{epoch:03d}.png" for kind in KINDS for epoch in (2, 4)}


def test_frames_are_in_the_order_of_the_epochs(tmp_path):
    for grey, number in ((0, 990), (100, 1000), (200, 1010)):
        Image.new("L", (8, 8), grey).save(tmp_path / f"hidden-epoch-{number:03d}.png")
    written = SimpleNamespace(kinds=["hidden"], folder=tmp_path, config=SimpleNamespace(output_folder=tmp_path))
    with Image.open(Snapshots.write_gifs(written)[0]) as gif:
        frames = [gif.convert("L").getpixel((0, 0)) for gif in ImageSequence.Iterator(gif)]
    assert frames == [0, 100, 200]


def test_bad_input(tmp_path):
    assert_refused(run("train.py", *SHORT, "--visualizers", "dance", cwd=tmp_path), "--visualizers 'dance'", "hidden")
    assert_refused(run("train.py", *SHORT, "--visualize_layers", 9, cwd=tmp_path), "--visualize_layers 9", "0 to 3")
    few = ["--num_train_images", 12, "--visualizers", "cls_dim_reduction"]
    assert_refused(run("train.py", *SHORT, *few, cwd=tmp_path), "cls_dim_reduction needs two images")
    assert not list(tmp_path.iterdir())
