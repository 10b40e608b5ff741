"""Decoding image files in worker processes: their middle for evaluation, a random crop for training."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from tqdm import tqdm

from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.images import ORIENTATION, ImageSource, open_image, to_pixels, to_rgb, to_tensor


def crop_at_random(image: Image.Image, *, size: int, scale: tuple[float, float], flip: bool, seed: int) -> Image.Image:
    """A random-resized crop of an opened image file, size x size (bilinear): a share of its area between the two of
    `scale`, its sides in a ratio of 3/4 to 4/3 (Szegedy et al., arXiv:1409.4842, section 6; by torchvision). With
    `flip`, half of them are mirrored. All draws follow from the seed.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop has more pixels than it needs."""
    image.seek(0)
    if image.getexif().get(ORIENTATION, 1) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
        torch.default_generator.manual_seed(seed)
        box = v2.RandomResizedCrop(size, scale=scale).make_params([image])
        mirrored = flip and torch.rand(()).item() < 0.5
    width, height = image.size
    image.draft(None, (width * size // box["width"], height * size // box["height"]))
    x, y = image.width / width, image.height / height  # 1, or how much smaller it is decoded
    left, top = box["left"] * x, box["top"] * y
    corners = (left, top, min(left + box["width"] * x, image.width), min(top + box["height"] * y, image.height))
    image = image if image.mode == "RGB" else to_rgb(image)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=corners)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


class PathArray(Sequence):
    """Pairs of path and label in two arrays: of a list, each worker process would come to hold a copy, because Python
    writes to every object that it looks at. The paths of ImageNet take 0.4 GB as a list."""

    def __init__(self, files: Sequence[tuple[Path, int]]):
        self.paths = np.array([os.fsencode(path) for path, _ in files], dtype=np.bytes_)
        self.labels = np.array([label for _, label in files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Path, int]:
        return Path(os.fsdecode(self.paths[i])), int(self.labels[i])


class DecodedFiles(torch.utils.data.Dataset):
    """Image files as (uint8 in_chans x size x size, label, None); an unreadable one as (None, label, its error).

    An item is asked for by its number i, which shows its middle, or by (i, seed), which shows a random crop
    (crop_at_random, with `scale` and `flip`)."""

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        size: int,
        in_chans: int,
        crop_pct: float | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = False,
    ):
        self.files = PathArray(files) if all(isinstance(file, Path) for file, _ in files) else files
        self.size, self.in_chans = size, in_chans
        self.crop_pct, self.scale, self.flip = crop_pct or 1.0, scale, flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor | None, int, str | None]:
        i, seed = item if isinstance(item, tuple) else (item, None)
        path, label = self.files[i]
        try:
            return self.read(path, seed), label, None
        except UserError as error:
            return None, label, str(error)

    def read(self, path: Path | ImageSource, seed: int | None) -> torch.Tensor:
        """The middle of an image, or with a seed a random crop. Raises UserError if it cannot be read."""
        if seed is None:
            return to_pixels(open_image(path), self.size, self.in_chans, self.crop_pct)
        options = dict(size=self.size, scale=self.scale, flip=self.flip, seed=seed)
        return to_tensor(open_image(path, lambda image: crop_at_random(image, **options)), self.in_chans)


def stack_pixels(items: Sequence[tuple]) -> torch.Tensor | str:
    """The images of DecodedFiles' items as one batch, or the error of one that cannot be read."""
    errors = [error for _, _, error in items if error]
    return errors[0] if errors else torch.stack([pixels for pixels, _, _ in items])


def stack_readable(items: Sequence[tuple]) -> tuple[torch.Tensor | None, list[str | None]]:
    """The readable images of DecodedFiles' items as one tensor (None if there are none), and the error of each item, or
    None. A tensor for each image would take a file descriptor each on its way from the worker."""
    readable = [pixels for pixels, _, error in items if not error]
    return torch.stack(readable) if readable else None, [error for _, _, error in items]


def count_workers(config: TrainConfig) -> int:
    """config.num_workers, but at most one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(config.num_workers, cores)


def fit_in_memory(files: Sequence, config: TrainConfig, room: float) -> bool:
    """Whether the pixels of so many images take at most `room` bytes."""
    return len(files) * config.in_chans * config.img_size**2 <= room


def decode(
    files: Sequence[tuple[Path, int]], config: TrainConfig, split: str, room: float
) -> tuple[torch.Tensor | None, torch.Tensor, list[tuple[Path, int]]]:
    """Decode image files once, in worker processes, if their pixels take at most `room` bytes.

    Returns the images (uint8 n x in_chans x img_size x img_size), the labels (int64 n) and the n readable files.
    The images are None if they do not fit; no file is opened then, and FileBatches decodes them for each batch.

    Unreadable files are left out and named; more than a tenth of them raises UserError.
    """
    if not fit_in_memory(files, config, room):
        return None, torch.tensor([label for _, label in files]), list(files)
    size, in_chans = config.img_size, config.in_chans
    images = torch.empty(len(files), in_chans, size, size, dtype=torch.uint8)
    loader = torch.utils.data.DataLoader(
        DecodedFiles(files, size, in_chans, config.crop_pct),
        batch_size=32,
        num_workers=count_workers(config),
        collate_fn=stack_readable,
    )
    readable, errors, remaining = [], [], iter(files)
    with tqdm(total=len(files), desc=f"decode {split}", leave=False, disable=None, unit="image") as bar:
        for pixels, errors_of_batch in loader:
            if pixels is not None:
                images[len(readable) : len(readable) + len(pixels)] = pixels
            readable += [file for error, file in zip(errors_of_batch, remaining) if not error]
            errors += filter(None, errors_of_batch)
            bar.update(len(errors_of_batch))
    for error in errors:
        print(f"left out: {error}")
    if len(errors) > len(files) / 10:
        raise UserError(
            f"{len(errors)} of {len(files)} {split} images are unreadable, more than a tenth; mend or remove them; the "
            f"first: {errors[0]}"
        )
    if errors:
        print(f"{split}: {len(errors)} of {len(files)} images left out")
    return images[: len(readable)], torch.tensor([label for _, label in readable]), readable
