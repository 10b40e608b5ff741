"""Batches on the device: from one tensor, or from image files."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from vitlab.cli import UserError
from vitlab.datasets import augment
from vitlab.datasets.decoding import DecodedFiles, stack_pixels
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
        policies: Mapping[str, augment.Policy] = augment.POLICIES,
        alternate_flip: bool = False,
        random_erasing: float = 0.0,
        seed: int = 0,
    ):
        self.images, self.labels = images, labels  # uint8 n x C x H x W, int64 n
        self.batch_size, self.img_size, self.mean, self.std = batch_size, img_size, mean, std
        self.augment, self.random_erasing, self.seed = augment, random_erasing, seed
        self.alternate_flip, self.policies = alternate_flip, policies
        self.generator = torch.Generator()
        self.set_epoch(0)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def _random(self, purpose: str, *key: int) -> torch.Generator:
        """The generator, restarted for what is drawn from (seed, *key)."""
        return self.generator.manual_seed(augment.seed_of(purpose, self.seed, *key))

    def _pixels(
        self, batches: Sequence[torch.Tensor], generator: Callable[..., augment.Generator] | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield batches of uint8 images, given by their places in the set. generator(i, purpose): one for batch i, of
        training images whose files are cropped at random."""
        for places in send_all(batches, self.images.device):
            yield self.images[places]

    def _mirrored(self) -> torch.Tensor | None:
        """Which images of the set this epoch mirrors, bool n x 1 x 1 x 1, if flips alternate: a random half in even
        epochs, the other half in odd ones (Jordan, arXiv:2404.00498, section 3.6)."""
        if not self.alternate_flip:
            return None
        half = torch.rand(len(self.labels), generator=self._random("flip")) < 0.5
        return (half ^ bool(self.epoch % 2))[:, None, None, None]

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.linspace(0, len(self.labels) - 1, min(n, len(self.labels))).round().long()
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number for its workers
            pixels = self._pixels(places.split(self.batch_size))
            images = torch.cat([batch.float() / 255 for batch in pixels])
        images = normalise(resize(images, self.img_size), self.mean, self.std)
        return images, self.labels[places.to(self.labels.device)]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.rows_of(torch.arange)

    def rows_of(self, choose: Callable[[int], torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the current epoch, but of each only the rows choose(its length), int64: as in the complete
        batch, at a share of the cost."""
        n = len(self.labels)
        order = torch.randperm(n, generator=self._random("order", self.epoch)) if self.augment else torch.arange(n)
        whole = order.split(self.batch_size)[self.start :]
        rows = [choose(len(places)) for places in whole]
        chosen = [places[some] for places, some in zip(whole, rows)]
        labels = [self.labels[places] for places in send_all(chosen, self.labels.device)]
        mirrored = self._mirrored()

        def generator(i: int, purpose: str) -> augment.Generator:
            restarted = self._random(purpose, self.epoch, self.start + i)
            if torch.equal(rows[i], torch.arange(len(whole[i]))):
                return restarted
            return augment.GeneratorOfRows(restarted, len(whole[i]), rows[i])

        for i, pixels in enumerate(self._pixels(chosen, generator if self.augment else None)):
            yield self._finish(pixels, chosen[i], mirrored, functools.partial(generator, i, "augment")), labels[i]

    def _finish(
        self,
        pixels: torch.Tensor,
        places: torch.Tensor,
        mirrored: torch.Tensor | None,
        generator: Callable[[], augment.Generator],
    ) -> torch.Tensor:
        """uint8 pixels of the images at those places as a batch: mirrored, augmented, resized and normalised."""
        images = pixels.float().div_(255)
        if mirrored is not None:
            images = torch.where(send(mirrored[places], images.device), images.flip(-1), images)
        if self.augment:
            draws = generator()
            images = self.policies[self.augment](images, draws)
            if self.random_erasing:
                images = augment.random_erasing(images, draws, probability=self.random_erasing, value=self.mean)
        return normalise(resize(images, self.img_size), self.mean, self.std, inplace=True)


def send_all(batches: Sequence[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    """send() for several tensors, in one copy."""
    return send(torch.cat(list(batches)), device).split([len(batch) for batch in batches]) if batches else []


class FileBatches(TensorBatches):
    """The same for image files that do not fit in memory: decoded for each batch, in worker processes that stay from
    one epoch to the next. One pass at a time: the next one ends it.

    crop_scale: of training images, a random crop with a share of the file's area between these two, in place of the
        policy's crop of the decoded image; None: none. crop_pct: of what evaluation sees, see images.square."""

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        labels: torch.Tensor,
        *,
        in_chans: int,
        num_workers: int,
        crop_pct: float | None = None,
        crop_scale: tuple[float, float] | None = None,
        **options,
    ):
        super().__init__(None, labels, **options)
        self.dataset = DecodedFiles(files, self.img_size, in_chans, crop_pct)
        self.random_crops = bool(crop_scale)
        if crop_scale:
            self.policies = augment.AFTER_CROP
            self.dataset.scale, self.dataset.flip = crop_scale, augment.flips(self.augment)
        self.passes, self.requests = 0, _Requests()
        self.loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=self.requests,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=labels.device.type == "cuda",
            collate_fn=stack_pixels,
            generator=torch.Generator(),  # for the workers' seeds; the global one belongs to the training
        )

    def _pixels(
        self, batches: Sequence[torch.Tensor], generator: Callable[..., augment.Generator] | None = None
    ) -> Iterator[torch.Tensor]:
        def request(i: int) -> list:
            places = batches[i].tolist()
            if not (generator and self.random_crops):
                return places
            seeds = augment.integers(2**62, (len(places),), generator(i, "crop"))  # a crop's draws follow from its seed
            return list(zip(places, seeds.tolist()))

        self.requests.batches = map(request, range(len(batches)))
        self.passes = this_pass = self.passes + 1
        for pixels in self.loader:
            if isinstance(pixels, str):
                raise UserError(pixels)
            yield send(pixels, self.labels.device)
            if self.passes != this_pass:
                raise RuntimeError("another pass over these batches has begun meanwhile; make one after the other")


class _Requests:
    """What a DataLoader is to ask its workers for in the next pass: the items of each batch."""

    batches: Iterable[list] = ()

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches)
