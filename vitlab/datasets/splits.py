"""A named data set -> train, validation and test batches, already on the device.

    python -m vitlab.datasets.splits cifar10                   # download and verify CIFAR-10 into ./data, nothing else
    python -m vitlab.datasets.splits cifar100 --data_path DIR

    python train.py --dataset folder --data_path DIR     # your own images: see FolderIndex

From Python:

    sets = load(TrainConfig.create(dataset="digits"))
    for images, labels in sets.train:        # float B x C x H x W normalised, int64 B
        ...

A set that fits lives as one uint8 tensor on the device; cropping, flipping, resizing and
normalising happen there, a batch at a time.
"""

import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tqdm import tqdm

from vitlab.config import Parser, TrainConfig, UserError, run_cli
from vitlab.datasets.augment import POLICIES, random_erasing

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
""".split()


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a set before it is read. `mean` and `std` are those of its training images,
    a value a channel, for images in 0..1; `defaults` are the settings that suit it."""

    classes: tuple
    img_size: int
    in_chans: int
    mean: tuple
    std: tuple
    augment: str
    defaults: dict


DATASETS = {
    "cifar10": DatasetInfo(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        img_size=32,
        in_chans=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment="crop-flip",
        defaults={},
    ),
    "cifar100": DatasetInfo(
        classes=tuple(CIFAR100_CLASSES),
        img_size=32,
        in_chans=3,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        defaults={},
    ),
    "digits": DatasetInfo(
        classes=tuple("0123456789"),
        img_size=8,
        in_chans=1,
        mean=(0.3059,),
        std=(0.3762,),
        augment="affine",
        defaults=dict(patch_size=2, embed_dim=64, depth=4, batch_size=32, learning_rate=2e-3, stem="conv", pool="seq"),
    ),
    "folder": DatasetInfo(  # the classes are the folders' names, mean and std are measured
        classes=(),
        img_size=64,
        in_chans=3,
        mean=(),
        std=(),
        augment="crop-flip",
        defaults=dict(patch_size=8),
    ),
}


TEST_SEED = 0  # of what is cut off for testing: the same images, whatever the seed of a training


# ---------------------------------------------------------------------------------------- reading


def stratified_order(labels, seed):
    """A seeded order of the indices in which every prefix holds the classes in proportion."""
    labels = np.asarray(labels)
    order = np.random.RandomState(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)  # spread evenly over 0..1
    return order[np.argsort(place[order], kind="stable")]


def read_digits(data_path, train):
    """scikit-learn's 1,797 handwritten digits, 8 x 8; a fixed, stratified fifth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = stratified_order(bunch.target, TEST_SEED)
    mine = np.sort(order[360:] if train else order[:360])
    images = (bunch.images[mine] * (255 / 16)).round().astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(bunch.target[mine]).long()


def _cifar_class(name):
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def download_cifar(name, data_path):
    """Make sure that `data_path` holds the set, whole: downloaded, or unpacked from the official
    archive lying there. Every file's md5 is compared with the published one before it is used.

    Raises UserError where there is no network, or where a file of the set is missing or damaged.
    """
    cifar, root = _cifar_class(name), Path(data_path)
    folder, archive = root / cifar.base_folder, root / cifar.filename
    if folder.exists():
        files = [*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]]
        for file, md5 in files:
            if not (folder / file).is_file():
                raise UserError(
                    f"{folder / file} is missing; remove {folder} and run: python -m vitlab.datasets.splits {name}"
                )
            if _md5(folder / file) != md5:
                raise UserError(
                    f"{folder / file} is damaged (its md5 is not the published one) and was not opened; "
                    f"remove {folder} and run: python -m vitlab.datasets.splits {name}"
                )
        return
    if archive.exists() and _md5(archive) != cifar.tgz_md5:
        raise UserError(f"{archive} is damaged (its md5 is not the published one); remove it and run again")

    try:
        root.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        raise UserError(f"--data_path {data_path}: {error.strerror}; choose a folder that can be written") from None
    try:
        if archive.exists():
            shutil.copyfile(archive, workshop / cifar.filename)
        cifar(workshop, download=True)  # downloads with a progress bar, checks the md5, unpacks
        (workshop / cifar.base_folder).rename(folder)
    except (OSError, RuntimeError) as error:
        if folder.exists():  # of another process, which was faster
            return download_cifar(name, data_path)
        raise UserError(
            f"{name} could not be had from {cifar.url} ({error}); put the archive by hand at {archive}, "
            "or train without a download: --dataset digits"
        ) from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def read_cifar(name, data_path, train):
    download_cifar(name, data_path)
    split = _cifar_class(name)(data_path, train=train)
    return torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)


def read_split(name, data_path, train):
    """A named set's images (uint8 n x C x H x W) and labels (int64 n), in the official order."""
    if name == "digits":
        return read_digits(data_path, train)
    return read_cifar(name, data_path, train)


# ------------------------------------------------------------------------------- folders of images


class FolderIndex:
    """The images below a folder, by split and class: `.classes` and `.splits`, a dict from "train",
    "val" and "test" to lists of (path, class index); "val" is None where it is to be cut from train.

    DIR/train/CLASS/* with DIR/val or DIR/test: the one that is there is the test split; of both, val/
    is the validation split. Or one tree, DIR/CLASS/*: a stratified fifth, always the same, is the test split.

    Raises UserError where there are no classes, an empty one, or one that train/ does not know.
    """

    def __init__(self, data_path):
        root = Path(data_path)
        if not root.is_dir():
            raise UserError(f"--data_path {root} is not a folder; give one with a folder of images for each class")
        parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
        if "train" in parts and len(parts) == 1:
            raise UserError(f"--data_path {root} has train/ alone; add test/ or val/, or give the folder train/ itself")
        top = parts.get("train", root)
        self.classes = tuple(sorted(f.name for f in top.iterdir() if f.is_dir() and not f.name.startswith(".")))
        if not self.classes:
            raise UserError(f"--data_path {root}: no folders in {top}; put the images of each class into one")

        if "train" in parts:
            found = {name: self._list(folder) for name, folder in parts.items()}
            self.splits = {
                "train": found["train"],
                "val": found["val"] if "test" in found and "val" in found else None,
                "test": found["test"] if "test" in found else found["val"],
            }
        else:
            files = self._list(root)
            order = stratified_order([label for _, label in files], TEST_SEED)
            n_test = round(len(files) / 5)
            held_out, kept = sorted(order[:n_test]), sorted(order[n_test:])
            self.splits = {"train": [files[i] for i in kept], "val": None, "test": [files[i] for i in held_out]}

    def _list(self, folder):
        suffixes = Image.registered_extensions()
        strange = {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")} - set(self.classes)
        if strange:
            raise UserError(f"{folder} has the class {sorted(strange)[0]!r}, which the training images lack; move it")
        files = []
        for label, name in enumerate(self.classes):
            inside = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
            mine = [(path, label) for path in inside if path.suffix.lower() in suffixes and path.is_file()]
            if not mine:
                raise UserError(f"{folder / name} has no images; fill it, or remove it everywhere")
            files += mine
        return files


class _Decoded(torch.utils.data.Dataset):
    """Files decoded to uint8 C x S x S; an unreadable one gives its error instead."""

    def __init__(self, files, size, in_chans):
        self.files, self.size, self.in_chans = files, size, in_chans

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        try:
            return to_pixels(open_image(path), self.size, self.in_chans), label, None
        except UserError as error:
            return None, label, str(error)


def workers(config):
    """config.num_workers, but no more than this process may have cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(config.num_workers, cores)


def decode(files, config, what):
    """Decode image files in worker processes, each once: (uint8 n x C x S x S, int64 n, the readable
    files). The images are None where they would take more than config.cache_gb; they are then
    decoded again for each batch.

    Unreadable files are left out and named; more than a tenth of them is a UserError.
    """
    size, channels = config.img_size, config.in_chans
    fits = len(files) * channels * size**2 <= config.cache_gb * 1e9
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8) if fits else None
    loader = torch.utils.data.DataLoader(
        _Decoded(files, size, channels), batch_size=32, num_workers=workers(config), collate_fn=list
    )
    good, bad = [], []
    with tqdm(total=len(files), desc=f"decode {what}", leave=False, disable=None, unit="image") as bar:
        for i, (pixels, _, error) in enumerate(item for batch in loader for item in batch):
            bar.update()
            if error:
                bad.append(error)
                continue
            if fits:
                images[len(good)] = pixels
            good.append(files[i])
    for error in bad:
        print(f"left out: {error}")
    if len(bad) > len(files) / 10:
        raise UserError(f"{len(bad)} of {len(files)} {what} images are unreadable, the first: {bad[0]}")
    if bad:
        print(f"{what}: {len(bad)} of {len(files)} images left out")
    return images[: len(good)] if fits else None, torch.tensor([label for _, label in good]), good


# ---------------------------------------------------------------------------------------- batches


def as_channels(images, in_chans):
    """Grey images as RGB, or RGB as grey (ITU-R 601 luma); others as they are."""
    if images.shape[1] == in_chans:
        return images
    if in_chans == 3:
        return images.expand(-1, 3, -1, -1)
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(1, keepdim=True).round().to(images.dtype)


def channel_statistics(values, in_chans):
    """mean or std, a value a channel, for a model of `in_chans`."""
    return tuple(values) if len(values) == in_chans else in_chans * (sum(values) / len(values),)


def resize(images, size):
    """Images B x C x H x W (floats in 0..1) at size x size: bilinear, antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def normalise(images, mean, std):
    """(images - mean) / std, a value a channel."""
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return (images - mean) / std


class TensorBatches:
    """Batches of a set held as one uint8 tensor on the device.

    With `augment` it is a training set: a new order each epoch, each batch augmented. Both follow
    from (seed, epoch, batch) alone, so that a run can start at any batch of any epoch: set_epoch().
    """

    def __init__(self, images, labels, *, batch_size, img_size, mean, std, augment=None, random_erasing=0.0, seed=0):
        self.images, self.labels = images, labels  # uint8 n x C x H x W, int64 n
        self.batch_size, self.img_size, self.mean, self.std = batch_size, img_size, mean, std
        self.augment, self.random_erasing, self.seed = augment, random_erasing, seed
        self.generator = torch.Generator()
        self.set_epoch(0)

    def __len__(self):
        """Batches an epoch; the last may be smaller."""
        return math.ceil(len(self.labels) / self.batch_size)

    def set_epoch(self, epoch, start=0):
        """Let the next pass be that epoch, from its batch `start` on."""
        self.epoch, self.start = epoch, start

    def _random(self, *key):
        """Restart the generator from (seed, key): well mixed, also for neighbouring numbers."""
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)[0] >> 1))
        return self.generator

    def _pixels(self, order):
        """The uint8 images of each batch, in that order of the indices."""
        order = order.to(self.images.device)
        for chosen in order.split(self.batch_size):
            yield self.images[chosen]

    def sample(self, n):
        """(images, labels) of n images spread evenly over the set, not augmented."""
        places = torch.linspace(0, len(self.labels) - 1, min(n, len(self.labels))).round().long()
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number for its workers
            images = torch.cat([pixels.float() / 255 for pixels in self._pixels(places)])
        images = normalise(resize(images, self.img_size), self.mean, self.std)
        return images, self.labels[places.to(self.labels.device)]

    def __iter__(self):
        n = len(self.labels)
        order = torch.randperm(n, generator=self._random(self.epoch)) if self.augment else torch.arange(n)
        order = order[self.start * self.batch_size :]
        labels = self.labels[order.to(self.labels.device)].split(self.batch_size)
        for batch, pixels in enumerate(self._pixels(order), start=self.start):
            images = pixels.float() / 255
            if self.augment:
                generator = self._random(self.epoch, batch)
                images = POLICIES[self.augment](images, generator)
                if self.random_erasing:
                    images = random_erasing(images, generator, probability=self.random_erasing, value=self.mean)
            yield normalise(resize(images, self.img_size), self.mean, self.std), labels[batch - self.start]


def _stack_pixels(items):  # a function with a name: worker processes must find it
    return torch.stack([pixels for pixels, _, _ in items])


class FileBatches(TensorBatches):
    """The same of image files too many for memory: decoded for each batch, in worker processes."""

    def __init__(self, files, labels, *, in_chans, num_workers, **more):
        super().__init__(None, labels, **more)
        self.dataset, self.num_workers = _Decoded(files, more["img_size"], in_chans), num_workers

    def _pixels(self, order):
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(self.dataset, order.tolist()),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_stack_pixels,
            generator=torch.Generator(),  # for the workers' seeds: the global one is the training's
        )
        for pixels in loader:
            yield pixels.to(self.labels.device, non_blocking=True)


@dataclass
class Splits:
    """The three splits of a set (None: empty, or not asked for) and what a model of it must know."""

    train: TensorBatches | None
    val: TensorBatches | None
    test: TensorBatches | None
    classes: tuple
    mean: tuple
    std: tuple


def describe(dataset, data_path):
    """What is known of a set before it is read; the classes of a folder are those below it."""
    if dataset != "folder":
        return DATASETS[dataset]
    return dataclasses.replace(DATASETS["folder"], classes=FolderIndex(data_path).classes)


def load(config, splits=("train", "val", "test"), *, mean=None, std=None):
    """The data set of a config as Splits, on the device of the config; mean and std, where given,
    take the place of the set's own.

    Validation is a seeded, stratified cut of the training images (a folder may bring its own), or,
    with config.folds, one of as many such parts.
    Raises UserError where the set cannot be had.
    """
    info, device = describe(config.dataset, config.data_path), config.pick_device()
    index = FolderIndex(config.data_path).splits if config.dataset == "folder" else None

    def read(split):
        """(images or None, labels, files or None) of the official training or test images."""
        if index:
            return decode(index[split], config, split)
        return *read_split(config.dataset, config.data_path, train=split == "train"), None

    def subset(labels, n, what, seed):
        if n is not None and n > len(labels):
            raise UserError(f"--num_{what}_images {n}: {config.dataset} has {len(labels)}; leave the flag out for all")
        return torch.from_numpy(stratified_order(labels, seed)[:n])

    def batches(source, chosen, augment=None):
        """The images at the places `chosen`, as batches."""
        if not len(chosen):
            return None
        images, labels, files = source
        options = dict(batch_size=config.batch_size, img_size=config.img_size, mean=mean, std=std, seed=config.seed)
        options.update(augment=augment, random_erasing=config.random_erasing)
        labels = labels[chosen].to(device)
        if images is None:
            files, more = [files[i] for i in chosen], dict(in_chans=config.in_chans, num_workers=workers(config))
            return FileBatches(files, labels, **more, **options)
        return TensorBatches(as_channels(images[chosen], config.in_chans).to(device), labels, **options)

    chosen = {}  # split -> (where from, which places)
    if "train" in splits or "val" in splits:
        source = read("train")
        places = subset(source[1], config.num_train_images, "train", config.seed)
        own = index["val"] if index and config.val_split and not config.folds else None
        share = 0 if own else 1 / config.folds if config.folds else config.val_split
        first, last = (round(len(places) * share * i) for i in (config.fold, config.fold + 1))
        if last - first == len(places):
            raise UserError(f"--val_split {config.val_split:g} leaves none of {last} images to train on; lower it")
        chosen["train"] = source, torch.cat([places[:first], places[last:]]).sort().values
        chosen["val"] = source, places[first:last].sort().values
        if own:
            source = read("val")
            chosen["val"] = source, torch.arange(len(source[1]))
    if "test" in splits:
        source = read("test")
        chosen["test"] = source, subset(source[1], config.num_test_images, "test", TEST_SEED).sort().values

    if info.mean:
        mean = mean or channel_statistics(info.mean, config.in_chans)
        std = std or channel_statistics(info.std, config.in_chans)
    elif mean is None:
        mean, std = measure(*chosen["train"], config)
    return Splits(
        train=batches(*chosen["train"], config.augment) if "train" in chosen else None,
        val=batches(*chosen["val"]) if "val" in chosen else None,
        test=batches(*chosen["test"]) if "test" in chosen else None,
        classes=info.classes,
        mean=mean,
        std=std,
    )


def test_image(config, index):
    """(PIL image, label) of one image of the test split, by its place in the official order; UserError
    with the range where it is not there."""
    if config.dataset == "folder":
        files = FolderIndex(config.data_path).splits["test"]
        labels = [label for _, label in files]
    else:
        images, labels = read_split(config.dataset, config.data_path, train=False)
    if not 0 <= index < len(labels):
        raise UserError(f"--index {index}: {config.dataset} has test images 0 to {len(labels) - 1}")
    if config.dataset == "folder":
        return open_image(files[index][0]), labels[index]
    return Image.fromarray(images[index].permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB"), int(labels[index])


def image_files(path):
    """The image files that a path means: itself, or those in that folder; UserError where there are none."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"--image_path {path} does not exist; give an image or a folder of images")
    if not path.is_dir():
        return [path]
    known = Image.registered_extensions()
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in known)
    if not files:
        raise UserError(f"--image_path {path}: no image in that folder")
    return files


def open_images(path, bad):
    """(file, PIL image) of each of image_files(path). In a folder, what cannot be read is left out, and
    the line that says so added to the list `bad`; a single file that cannot be read is a UserError."""
    files = image_files(path)
    for file in files:
        try:
            image = open_image(file)
        except UserError as error:
            if len(files) == 1:
                raise
            bad.append(str(error))
            continue
        yield file, image


def measure(source, places, config, most=2000):
    """mean and std, a value a channel, of (at most 2,000 of) the training images in 0..1."""
    images, _, files = source
    some = places[:: math.ceil(len(places) / most)]
    if images is None:
        decoded = _Decoded(files, config.img_size, config.in_chans)
        images, some = torch.stack([decoded[i][0] for i in some.tolist()]), slice(None)
    pixels = images[some].double() / 255
    return tuple(pixels.mean((0, 2, 3)).tolist()), tuple(pixels.std((0, 2, 3)).clamp_min(1e-3).tolist())


# ----------------------------------------------------------------------------------- single images


def open_image(path):
    """An image file as PIL sees it, upright, as RGB: the first frame, transparency on white, 16 bits
    scaled to 8. UserError, naming the file, where it is none or damaged."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.seek(0)
                image = ImageOps.exif_transpose(image)
                image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{path} is over {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first") from None
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; check --image_path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = error if path.stat().st_size else "the file is empty"
        raise UserError(f"{path} cannot be read as an image ({reason}); give a whole PNG, JPEG, ...") from None

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, or more
        values = np.asarray(image, dtype=np.float64)
        values = values / 257 if values.max() > 255 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def square(image, size):
    """The middle of a PIL image as size x size pixels: short side to `size` (antialiased), then the
    centre crop."""
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)


def to_pixels(image, size, in_chans):
    """The middle of a PIL image as uint8 in_chans x size x size."""
    pixels = np.array(square(image, size).convert("L" if in_chans == 1 else "RGB"))
    return torch.from_numpy(pixels).view(size, size, in_chans).permute(2, 0, 1).contiguous()


def to_batch(image, *, img_size, in_chans, mean, std):
    """A PIL image as a normalised batch of one: float 1 x in_chans x img_size x img_size."""
    return normalise(to_pixels(image, img_size, in_chans)[None] / 255, mean, std)


def to_image(values, mean, std):
    """A normalised image in_chans x S x S as a PIL image."""
    mean, std = (torch.tensor(v, device=values.device).view(-1, 1, 1) for v in (mean, std))
    pixels = ((values * std + mean) * 255).round().clamp(0, 255).byte().cpu()
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB")


if __name__ == "__main__":

    def main():
        parser = Parser(description="Download and verify a data set.")
        parser.add_argument("name", metavar="NAME", help="cifar10 or cifar100")
        parser.add_argument("--data_path", default=TrainConfig.data_path, help="where to (default: %(default)s)")
        args = parser.parse_args()
        if args.name not in ("cifar10", "cifar100"):
            raise UserError(f"dataset {args.name!r} cannot be downloaded; choose cifar10 or cifar100")
        download_cifar(args.name, args.data_path)
        print(f"{args.name}: whole, in {Path(args.data_path) / _cifar_class(args.name).base_folder}")

    run_cli(main)
