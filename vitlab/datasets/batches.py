"""Batches on the device: of a tensor, or of files."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from vitlab.datasets import augment
from vitlab.datasets.folders import _Decoded
from vitlab.datasets.images import normalise


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
                images = augment.POLICIES[self.augment](images, generator)
                if self.random_erasing:
                    images = augment.random_erasing(images, generator, probability=self.random_erasing, value=self.mean)
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
