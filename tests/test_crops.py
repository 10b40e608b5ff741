"""Random crops of the original files in training, the middle of them in evaluation."""

import json

import numpy as np
import pytest
import torch
from conftest import SHARED, run
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets import augment
from vitlab.datasets.batches import FileBatches, TensorBatches
from vitlab.datasets.decoding import crop_at_random
from vitlab.datasets.folders import FolderIndex
from vitlab.datasets.images import open_image, square, to_pixels
from vitlab.datasets.splits import load_data
from vitlab.settings import CROPPING

PHOTOS = [  # 640 x 427; smooth, so that half a pixel to the side makes little difference
    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)) for pixels in load_sample_images().images
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes with eight JPEGs each, of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    for name, photo in zip(("china", "flower"), PHOTOS):
        (root / name).mkdir()
        for i in range(8):
            photo.resize((200 + 10 * i, 150)).rotate(i).save(root / name / f"{i}.jpg")
    return root


def config(root, **args):
    settings = dict(dataset="folder", data_path=str(root), img_size=32, patch_size=8, batch_size=4, num_workers=0)
    return TrainConfig.create(settings, mean=3 * [0.5], std=3 * [0.25], **args)


def epoch(batches, number=0, start=0):
    batches.set_epoch(number, start)
    return [images for images, _ in batches]


def opened(tmp_path, photo=PHOTOS[0], name="photo.jpg", **options):
    photo.save(tmp_path / name, **options)
    return Image.open(tmp_path / name)


def crop(image, size=32, scale=(0.08, 1.0), flip=False, seed=0):
    return crop_at_random(image, size=size, scale=scale, flip=flip, seed=seed)


def difference(image, other):
    """Mean absolute difference of two images, in levels of 255."""
    return np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean()


def test_the_crop_is_torchvisions(tmp_path):
    """The same box, and up to resampling the same pixels as RandomResizedCrop of the decoded file."""
    for seed in range(4):
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop(160)(opened(tmp_path))
        state = torch.get_rng_state()
        assert difference(crop(opened(tmp_path), 160, seed=seed), expected) < 3
        assert torch.equal(torch.get_rng_state(), state)  # the training draws its dropout from there


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    whole = dict(scale=(1.0, 1.0), size=32)
    jpeg, png = opened(tmp_path, quality=95), opened(tmp_path, name="photo.png")
    drafted, exact = crop(jpeg, **whole), crop(png, **whole)
    assert jpeg.size == (80, 54) and png.size == (640, 427)  # 1/8
    assert difference(drafted, exact) < 4


def test_half_are_mirrored_and_a_seed_repeats(tmp_path):
    file = tmp_path / "photo.jpg"
    PHOTOS[0].save(file)
    plain, flipped = ([crop(Image.open(file), flip=flip, seed=seed) for seed in range(20)] for flip in (False, True))
    same = [np.array_equal(a, b) for a, b in zip(plain, flipped)]
    mirrored = [np.array_equal(np.asarray(a)[:, ::-1], b) for a, b in zip(plain, flipped)]
    assert all(a != b for a, b in zip(same, mirrored)) and 4 <= sum(mirrored) <= 16
    assert len({image.tobytes() for image in plain}) == 20


def test_a_rotated_grey_or_transparent_file_is_cropped_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = opened(tmp_path, PHOTOS[0].rotate(180), exif=exif, quality=95)
    assert difference(crop(turned, seed=1), crop(opened(tmp_path, name="photo.png"), seed=1)) < 4
    for mode in ("L", "P", "RGBA", "I;16"):
        photo = PHOTOS[0].convert("L").point(lambda v: v * 257, "I").convert("I;16") if mode == "I;16" else PHOTOS[0]
        assert crop(opened(tmp_path, photo.convert(mode), name="photo.png")).mode == "RGB"


def test_evaluation_shows_the_middle_as_torchvision_does():
    transform = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    for photo in (PHOTOS[0], PHOTOS[1].rotate(90, expand=True)):
        assert difference(square(photo, 224, 0.875), transform(photo)) < 3
    assert difference(square(PHOTOS[0], 224), transform(PHOTOS[0])) > 10


def test_what_does_not_fit_in_memory_is_cropped_at_random(photos):
    for cropped in (config(photos, cache_gb=0), config(photos, crop_scale=0.08)):
        sets = load_data(cropped)
        assert isinstance(sets.train, FileBatches)
        assert (cropped.crop_scale, cropped.crop_pct) == ((0.08, 1.0), 0.875)
        assert any("8% to 100%" in note and "87.5%" in note for note in sets.notes)
        file = FolderIndex(photos).splits["test"][0][0]
        expected = to_pixels(open_image(file), 32, 3, 0.875)
        seen = torch.cat(epoch(sets.test)) * 0.25 + 0.5
        assert (seen * 255).round().byte().eq(expected).flatten(1).all(1).any()
    kept = config(photos)
    assert type(load_data(kept).train) is TensorBatches and kept.crop_scale == () and kept.crop_pct is None


@pytest.mark.parametrize("policy", ["crop", "crop-flip", "trivialaugment"])
def test_crops_follow_from_seed_epoch_and_batch(photos, policy):
    train, again = (load_data(config(photos, crop_scale=0.3, augment=policy)).train for _ in range(2))
    passes = [epoch(train, number) for number in (0, 1)]
    assert not any(torch.equal(a, b) for a, b in zip(*passes))
    assert all(torch.equal(a, b) for a, b in zip(epoch(again, 1, 2), passes[1][2:], strict=True))
    other = load_data(config(photos, crop_scale=0.3, augment=policy, seed=1)).train
    assert not torch.equal(epoch(other)[0], passes[0][0])


def test_a_process_gets_its_rows_of_the_same_batches(photos):
    settings = dict(crop_scale=0.3, augment="randaugment", random_erasing=0.5, num_workers=1)
    train = load_data(config(photos, **settings)).train
    complete = epoch(train, 1)
    rows = [images for images, _ in train.rows_of(lambda n: torch.arange(n // 2, n))]
    assert all(torch.equal(a[len(a) // 2 :], b) for a, b in zip(complete, rows, strict=True))


def test_every_policy_that_crops_has_its_part_after_a_crop():
    assert tuple(augment.AFTER_CROP) == CROPPING
    with pytest.raises(UserError, match="--crop_scale: --augment affine does not crop; choose crop, "):
        TrainConfig.create(dataset="digits", augment="affine", crop_scale=0.5)
    with pytest.raises(UserError, match="^--crop_scale 0.5 0.1: "):
        TrainConfig.create(dataset="cifar10", crop_scale=(0.5, 0.1))
    with pytest.raises(UserError, match="are for image files, and digits has none"):
        load_data(TrainConfig.create(dataset="digits", augment="crop", crop_scale=0.5))


def test_no_file_is_opened_before_it_is_needed(photos, tmp_path):
    for i in range(8):
        for name in ("china", "flower"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.jpg").write_bytes((photos / name / f"{i}.jpg").read_bytes()[: 900 if i else None])
    train = load_data(config(tmp_path, cache_gb=0)).train
    with pytest.raises(UserError, match=r"^\S+\.jpg cannot be read as an image .*truncated.*; give a complete PNG"):
        list(train)
    with pytest.raises(UserError, match="cannot be read as an image"):  # where mean and std are measured
        load_data(TrainConfig.create(config(tmp_path, cache_gb=0).__dict__ | dict(mean=(), std=())))


def test_the_crop_travels_in_the_checkpoint(photos, tmp_path):
    """test.py, predict() and validation see the same pixels; a file of before crop_pct sees the whole short side."""
    flags = ["--dataset", "folder", "--data_path", photos, "--img_size", 32, "--patch_size", 8, "--embed_dim", 16,
             "--n_layers", 1, "--epochs", 1, "--crop_scale", 0.5, "--folder_name", "x",
             "--augment", "randaugment"]  # fmt: skip
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "crop_scale=(0.5, 1.0)" in done.stdout and "random crops of 50% to 100%" in done.stdout
    report = json.loads((tmp_path / "output/x/report.json").read_text())
    checkpoint = load_checkpoint(tmp_path / "model/x")
    sets = load_data(checkpoint.config, ("test",), mean=checkpoint.mean, std=checkpoint.std)
    (images, _), *_ = sets.test
    files = sorted((photos / "china").iterdir())
    batches = [checkpoint.batch(file) for file in files]
    assert any(torch.allclose(batch[0], images[0], atol=1e-6) for batch in batches)
    done = run("test.py", "--model_path", "model/x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = json.loads((tmp_path / "output/x/test/report.json").read_text())
    assert tested["test"] == report["test"]
    contents = read_checkpoint(tmp_path / "model/x/best.pt")
    for name in ("crop_scale", "crop_pct"):
        del contents["config"][name]
    torch.save(contents, tmp_path / "older.pt")
    older = load_checkpoint(tmp_path / "older.pt")
    assert torch.equal(older.batch(files[0])[0], to_older(files[0], older))
    older.config.cache_gb = 0.0
    assert not load_data(older.config, mean=older.mean, std=older.std).train.random_crops


def to_older(file, checkpoint):
    pixels = to_pixels(open_image(file), 32, 3)[None] / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (checkpoint.mean, checkpoint.std))
    return ((pixels - mean) / std)[0]


@pytest.mark.slow
def test_real_photographs_are_cropped_in_workers():
    if not SHARED.exists():
        pytest.skip("Imagenette lies in ../shared/data, which is not here")
    sets = load_data(config(SHARED / "imagenette", cache_gb=0, augment="crop-flip"))
    assert sum(len(images) for images in epoch(sets.train)) == 900
