"""Real digits, real CIFAR, real image files."""

import collections
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image
from torchvision import datasets
from torchvision.datasets import utils
from torchvision.transforms.v2 import functional as TF

from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets import cifar
from vitlab.datasets.augment import crop_and_flip, grey, seed_of
from vitlab.datasets.cifar import download_cifar, read_cifar
from vitlab.datasets.images import as_channels, normalise, resize, square, to_batch, to_pixels
from vitlab.datasets.official import test_image as official_image
from vitlab.datasets.splits import load_data


def raw(batches):
    """All images of a split as they lie in memory, and the labels."""
    return batches.images, batches.labels


# ------------------------------------------------------------------------------------------ splits


def test_digits_test_split_is_fixed_and_stratified():
    from sklearn.datasets import load_digits

    both = [load_data(TrainConfig.create(dataset="digits", seed=seed)) for seed in (0, 7)]
    for sets in both:
        assert [len(s.labels) for s in (sets.train, sets.val, sets.test)] == [1293, 144, 360]
        assert sets.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert torch.equal(raw(both[0].test)[0], raw(both[1].test)[0])
    assert not torch.equal(raw(both[0].val)[0], raw(both[1].val)[0])

    # nothing is lost, nothing is in two splits: train, val and test are the whole set
    everything = torch.cat([raw(s)[0] for s in (both[0].train, both[0].val, both[0].test)]).flatten(1)
    expected = (load_digits().data * 255 / 16).round()
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, expected.astype(np.uint8)))


def test_validation_is_seeded_stratified_and_may_be_empty():
    def val(**args):
        return load_data(TrainConfig.create(dataset="digits", **args)).val

    assert torch.equal(val(seed=3).images, val(seed=3).images)
    sets = load_data(TrainConfig.create(dataset="digits", val_split=0.5))
    held_out, kept = sets.val.labels.bincount(), sets.train.labels.bincount()
    assert (held_out - kept).abs().max() <= 2
    assert val(val_split=0.0) is None


def test_a_subset_is_stratified_and_checked():
    settings = dict(dataset="digits", num_train_images=200, num_test_images=20)
    sets, other = (load_data(TrainConfig.create(settings, seed=seed)) for seed in (0, 1))
    assert torch.equal(sets.test.images, other.test.images) and not torch.equal(sets.train.images, other.train.images)
    assert len(sets.train.labels) == 180 and len(sets.val.labels) == 20
    assert sets.test.labels.bincount().tolist() == 10 * [2]
    with pytest.raises(UserError, match="9999.*360"):
        load_data(TrainConfig.create(dataset="digits", num_test_images=9999))


def test_cifar_is_what_torchvision_reads(cifar_root):
    for name, official in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        sets = load_data(TrainConfig.create(dataset=name, data_path=str(cifar_root), augment="none", batch_size=500))
        theirs = official(cifar_root, train=False)
        assert sets.classes == tuple(theirs.classes)
        images, labels = next(iter(sets.test))
        assert labels.tolist() == theirs.targets[:500] and labels.dtype == torch.int64
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (sets.mean, sets.std))
        for i in (0, 123):
            pixels = (images[i] * std + mean) * 255
            np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), theirs.data[i], atol=1e-3)
        everything = torch.cat([images for images, _ in sets.train])
        assert len(everything) == 45_000
        np.testing.assert_allclose(everything.mean((0, 2, 3)), 0, atol=0.01)
        np.testing.assert_allclose(everything.std((0, 2, 3)), 1, atol=0.01)


# ----------------------------------------------------------------------------------------- batches


def test_batches_follow_from_seed_epoch_and_place_alone():
    def batches(seed=0, epoch=0, start=0):
        loader = load_data(TrainConfig.create(dataset="digits", seed=seed)).train
        loader.set_epoch(epoch, start)
        return list(loader)

    whole, tail = batches(epoch=2), batches(epoch=2, start=30)
    assert len(whole) == 41 and len(tail) == 11
    assert sum(len(labels) for _, labels in whole) == 1293
    for (a, b), (c, d) in zip(whole[30:], tail):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(whole[0][1], batches(epoch=3)[0][1])
    assert not torch.equal(whole[0][0], batches(epoch=2, seed=1)[0][0])


def test_draws_of_other_kinds_or_keys_are_unrelated():
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (0, 1, 0), (1, 0), (0, 2**32), (10,)]
    seeds = [seed_of(purpose, *key) for purpose in ("order", "augment") for key in keys]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_alternating_flips_mirror_each_image_every_other_epoch():
    loader = load_data(TrainConfig.create(dataset="digits", augment="none", alternate_flip=True)).train
    plain = normalise(loader.images / 255, loader.mean, loader.std)
    known = {bytes(image.numpy()): (i, True) for i, image in enumerate(plain.flip(-1))}
    known.update({bytes(image.numpy()): (i, False) for i, image in enumerate(plain)})
    epochs = []
    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        epochs.append(dict(known[bytes(image.numpy())] for images, _ in loader for image in images))
    assert epochs[0] == epochs[2] and 500 < sum(epochs[0].values()) < 800
    assert all(epochs[0][i] != epochs[1][i] for i in epochs[0])


def test_an_epoch_has_every_image_once():
    loader = load_data(TrainConfig.create(dataset="digits", augment="none")).train
    seen = torch.cat([images for images, _ in loader])
    expected = normalise(loader.images / 255, loader.mean, loader.std)
    assert sorted(map(bytes, seen.numpy())) == sorted(map(bytes, expected.numpy()))


def test_images_are_resized_and_converted_in_the_batch():
    config = TrainConfig.create(dataset="digits", image_size=16, n_channels=3)
    sets = load_data(config)
    images, _ = next(iter(sets.test))
    assert images.shape == (32, 3, 16, 16)
    grey = images * torch.tensor(sets.std).view(3, 1, 1) + torch.tensor(sets.mean).view(3, 1, 1)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    pixels = Image.fromarray(sets.test.images[0, 0].numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(grey[0, 0].numpy() * 255, np.asarray(pixels), atol=7)  # Pillow rounds after each axis
    facts = dict(img_size=16, in_chans=3, mean=sets.mean, std=sets.std)
    single = torch.cat([to_batch(official_image(config, i)[0], **facts) for i in (0, 9)])
    torch.testing.assert_close(single, images[[0, 9]], atol=0.15, rtol=0)  # bilinear would be 0.5 off

    rgb = torch.randint(256, (2, 3, 5, 5), dtype=torch.uint8)
    luma = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in rgb]
    ours = as_channels(rgb, 1)[:, 0].numpy().astype(int)
    assert abs(ours - np.stack([np.asarray(image) for image in luma])).max() <= 1


def test_a_device_may_be_given_and_only_splits_asked_for_are_made():
    sets = load_data(TrainConfig.create(dataset="digits", device="cuda:99"), ("val",), device=torch.device("cpu"))
    assert sets.train is None and sets.test is None
    assert torch.equal(sets.val.images, load_data(TrainConfig.create(dataset="digits")).val.images)


# ------------------------------------------------------- the same pixels, bit for bit, as torchvision


@pytest.fixture(scope="module", params=["random", "cifar"])
def photographs(request):
    """uint8 n x 3 x 32 x 32."""
    if request.param == "random":
        return torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return read_cifar("cifar10", request.getfixturevalue("cifar_root"), train=False)[0][:256]


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("n", [1, 7, None])
def test_resize_and_normalise_are_torchvisions(photographs, n, in_chans):
    pixels = as_channels(photographs[:n], in_chans)
    mean, std = in_chans * (0.4914,), in_chans * (0.2470,)
    for side in (32, 13):
        images = pixels[..., :side, :side].float() / 255
        for batch in (images, crop_and_flip(images, torch.Generator().manual_seed(0))):  # two memory layouts
            assert torch.equal(normalise(batch, mean, std), TF.normalize(batch, mean, std))
            for size in (1, 5, 8, 13, 16, 24, 32, 48, 96):
                expected = TF.resize(batch, [size, size], TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
                assert torch.equal(resize(batch, size), expected)


@pytest.mark.parametrize("in_chans, mode", [(1, "L"), (3, "RGB")])
def test_pixels_of_a_pil_image_are_torchvisions(photographs, in_chans, mode):
    for pixels in photographs[:8]:
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).crop((0, 0, 32, 27))
        for size in (5, 27, 32, 64):
            expected = TF.pil_to_tensor(square(image, size).convert(mode))
            assert torch.equal(to_pixels(image, size, in_chans), expected)


def test_luma_is_pillows_and_in_augmentation_torchvisions(photographs):
    pillow = [np.array(Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")) for pixels in photographs]
    assert (as_channels(photographs, 1)[:, 0].int() - torch.tensor(np.stack(pillow)).int()).abs().max() <= 1
    images = photographs / 255
    torch.testing.assert_close(grey(images), TF.rgb_to_grayscale(images), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------ download, read


@pytest.mark.slow
def test_cifar_is_downloaded_whole_or_not_at_all(cifar_root, server, tmp_path, monkeypatch):
    address, served = server
    archive = served / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(cifar_root / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", utils.calculate_md5(archive))

    root = tmp_path / "data"
    download_cifar("cifar10", root)
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert len(read_cifar("cifar10", root, train=False)[1]) == 10_000

    # an archive that was put there by hand is used without a network
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none")
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    archive.rename(by_hand / archive.name)
    download_cifar("cifar10", by_hand)
    assert (by_hand / "cifar-10-batches-py" / "test_batch").exists()

    # a damaged one is named, and nothing is unpacked
    (by_hand / archive.name).write_bytes(b"half of it")
    (by_hand / "cifar-10-batches-py").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=f"{archive.name} is damaged"):
        download_cifar("cifar10", by_hand)
    assert [path.name for path in by_hand.iterdir()] == [archive.name]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_download_leaves_nothing_behind(server, tmp_path, monkeypatch, existing):
    address, served = server
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/cifar-10-python.tar.gz")
    (served / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    root = tmp_path / "new" / "data"
    if existing:
        root.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="could not be downloaded"):
        download_cifar("cifar10", root)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "_urlretrieve", Mock(side_effect=http.client.BadStatusLine("no HTTP")))  # as of a proxy
        with pytest.raises(UserError, match="could not be downloaded"):
            download_cifar("cifar10", root)
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, file: os.kill(os.getpid(), 2))  # Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        download_cifar("cifar10", root)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--data_path .*file/data: .*; choose a folder that can be written"):
        download_cifar("cifar10", tmp_path / "file" / "data")


def test_each_file_is_hashed_once_and_only_if_read(cifar_root, monkeypatch):
    hashed, check_md5 = collections.Counter(), cifar.check_md5
    monkeypatch.setattr(
        cifar, "check_md5", lambda file, md5: hashed.update([os.path.basename(file)]) or check_md5(file, md5)
    )
    config = TrainConfig.create(dataset="cifar10", data_path=str(cifar_root))
    image, label = official_image(config, 7)
    assert hashed == {"test_batch": 1}
    theirs = datasets.CIFAR10(cifar_root, train=False)
    assert (np.asarray(image) == theirs.data[7]).all() and label == theirs.targets[7]
    hashed.clear()
    load_data(config)
    assert hashed == dict.fromkeys([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 1)


def test_without_a_network_one_line_says_what_to_do(tmp_path):
    env = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    done = run("download.py", "cifar100", "--data_path", tmp_path / "d", env=env)
    assert_refused(done, "cifar100", tmp_path / "d" / "cifar-100-python.tar.gz", "--dataset digits")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_batch_is_named_and_not_opened(cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar_root / "cifar-10-batches-py").iterdir():
        (folder / file.name).symlink_to(file)
    bad = folder / "data_batch_3"
    bad.unlink()
    bad.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    done = run("train.py", "--data_path", tmp_path, "--epochs", 1, cwd=tmp_path)
    assert_refused(done, bad, "damaged", "python download.py cifar10")
    bad.unlink()
    assert_refused(run("train.py", "--data_path", tmp_path, "--epochs", 1, cwd=tmp_path), bad, "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py"]


def test_help_of_download_does_not_wait_for_torch():
    code = "import sys, runpy; sys.argv = ['download.py', '--help']\ntry: runpy.run_path('download.py', run_name="
    code += "'__main__')\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_ignores_data_as_a_folder_and_as_a_link(tmp_path):
    def git(*args):
        return subprocess.run(["git", *args], cwd=repository, check=True, capture_output=True, text=True).stdout

    repository, data, elsewhere = tmp_path / "clone", tmp_path / "clone" / "data", tmp_path / "elsewhere"
    (data / "cifar-10-batches-py").mkdir(parents=True)
    (data / "cifar-10-batches-py" / "test_batch").touch()
    (repository / "vitlab" / "data").mkdir(parents=True)
    (repository / "vitlab" / "data" / "module.py").touch()
    shutil.copy(ROOT / ".gitignore", repository)
    shutil.copy(ROOT / "data" / "README.md", data)
    git("init", "--quiet")
    git("add", "--all")
    assert git("ls-files").split() == [".gitignore", "data/README.md", "vitlab/data/module.py"]
    assert git("check-ignore", "data/cifar-10-batches-py").strip() == "data/cifar-10-batches-py"

    data.rename(elsewhere)
    data.symlink_to(elsewhere)
    assert git("check-ignore", "--no-index", "data").strip() == "data"
    git("add", "--all")
    assert git("ls-files").split() == [".gitignore", "vitlab/data/module.py"]  # a link hides the README, no more
