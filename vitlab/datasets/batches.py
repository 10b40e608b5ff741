"""Batches on the device: from one tensor, or from image files."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vitlab.cli import UserError
from vitlab.datasets import augment
from vitlab.datasets.folders import DecodedFiles
from vitlab.datasets.images import normalise, resize
from vitlab.hardware import send


class Batches(Protocol):
    """What training and evaluation need of a split. Any class with these members can take the place of those below.

    Batches are pairs on the device: images (float B x C x S x S, normalised) and labels (int64 B).
    """

    labels: torch.Tensor  # int64 n, on the device: the labels of all images, in the order of the data set

    def __len__(self) -> int:
        """Batches per epoch; the last one may be smaller."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the current epoch."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next pass that of `epoch`, from its batch number `start` on. Order and augmentation must follow
        from (seed, epoch, batch) alone, so that a resumed run repeats the uninterrupted one exactly."""

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, labels) of at most n images, spread evenly over the split and not augmented."""


class TensorBatches:
    """Batches of a split that is held as one uint8 tensor on the device.

    With a policy `augment` it is a training split: a new order each epoch, and each batch augmented; alternate_flip
    mirrors half of the images in one epoch and the other half in the next. All follow
    from (seed, epoch, batch) alone, so that a run can start at any batch of any epoch.
    """

    def __init__(
        self,
        images: torch.Tensor | None,
        labels: torch.Tensor,
        *,
        batch_size: int,
        img_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: str | None = None,
        alternate_flip: bool = False,
        random_erasing: float = 0.0,
        seed: int = 0,
    ):
        self.images, self.labels = images, labels  # uint8 n x C x H x W, int64 n
        self.batch_size, self.img_size, self.mean, self.std = batch_size, img_size, mean, std
        self.augment, self.random_erasing, self.seed = augment, random_erasing, seed
        self.alternate_flip = alternate_flip
        self.generator = torch.Generator()
        self.set_epoch(0)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def _random(self, *key: int) -> torch.Generator:
        """The generator, restarted from (seed, *key). SeedSequence makes neighbouring numbers unrelated seeds."""
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)[0] >> 1))
        return self.generator

    def _pixels(self, order: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield batches of uint8 images, in the given order of indices."""
        order = send(order, self.images.device)
        for indices in order.split(self.batch_size):
            yield self.images[indices]

    def _mirrored(self, order: torch.Tensor) -> torch.Tensor:
        """Which images of `order` this epoch mirrors, n x 1 x 1 x 1: a random half of the set in even epochs, the other
        half in odd ones (Jordan, arXiv:2404.00498, section 3.6)."""
        first_half = torch.rand(len(self.labels), generator=self._random(2**32)) < 0.5
        return (first_half ^ bool(self.epoch % 2))[order].view(-1, 1, 1, 1)

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.linspace(0, len(self.labels) - 1, min(n, len(self.labels))).round().long()
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number for its workers
            images = torch.cat([pixels.float() / 255 for pixels in self._pixels(places)])
        images = normalise(resize(images, self.img_size), self.mean, self.std)
        return images, self.labels[places.to(self.labels.device)]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n = len(self.labels)
        order = torch.randperm(n, generator=self._random(self.epoch)) if self.augment else torch.arange(n)
        order = order[self.start * self.batch_size :]
        labels = self.labels[send(order, self.labels.device)].split(self.batch_size)
        mirrored = self._mirrored(order).split(self.batch_size) if self.alternate_flip else None
        for batch, pixels in enumerate(self._pixels(order), start=self.start):
            images = pixels.float() / 255
            if mirrored:
                images = torch.where(send(mirrored[batch - self.start], images.device), images.flip(-1), images)
            if self.augment:
                generator = self._random(self.epoch, batch)
                images = augment.POLICIES[self.augment](images, generator)
                if self.random_erasing:
                    images = augment.random_erasing(images, generator, probability=self.random_erasing, value=self.mean)
            yield normalise(resize(images, self.img_size), self.mean, self.std), labels[batch - self.start]


class FileBatches(TensorBatches):
    """The same for image files that do not fit in memory: decoded for each batch, in worker processes."""

    def __init__(
        self, files: Sequence[tuple[Path, int]], labels: torch.Tensor, *, in_chans: int, num_workers: int, **options
    ):
        super().__init__(None, labels, **options)
        self.dataset, self.num_workers = DecodedFiles(files, self.img_size, in_chans), num_workers

    def _pixels(self, order: torch.Tensor) -> Iterator[torch.Tensor]:
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(self.dataset, order.tolist()),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_stack_pixels,
            generator=torch.Generator(),  # for the workers' seeds; the global one belongs to the training
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise UserError(pixels)
            yield send(pixels, self.labels.device)


def _stack_pixels(items: list[tuple]) -> torch.Tensor | str:
    """The images of DecodedFiles' items as one batch, or the error of one that has become unreadable (at module level,
    so that worker processes can find it)."""
    errors = [error for _, _, error in items if error]
    return errors[0] if errors else torch.stack([pixels for pixels, _, _ in items])
