"""Augmentation of a whole batch at once, on the device the batch is on.

    images = POLICIES["crop-flip"](images, generator)

A policy takes images B x C x H x W (floats in 0..1) and a torch.Generator of the same device, and
returns as many of the same shape; each image gets a draw of its own.
"""

import math

import torch
import torch.nn.functional as F


def uniform(n, low, high, images, generator):
    """n draws from low..high, on the device of `images`."""
    return torch.rand(n, generator=generator, device=images.device) * (high - low) + low


def crop_and_flip(images, generator, *, padding=4, flip=True):
    """A random crop of the image padded with black, and for half of them its mirror image
    (the standard CIFAR augmentation: He et al., arXiv:1512.03385, section 4.2)."""
    B, _, H, W = images.shape
    device = images.device
    tops, lefts = torch.randint(2 * padding + 1, (2, B, 1), generator=generator, device=device)
    rows = torch.arange(H, device=device) + tops  # B x H
    columns = torch.arange(W, device=device).expand(B, W)
    if flip:
        mirror = torch.rand(B, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirror, W - 1 - columns, columns)
    columns = columns + lefts
    padded = F.pad(images, 4 * [padding])
    which = torch.arange(B, device=device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_affine(images, generator, *, degrees=10.0, shift=0.05, scale=0.1):
    """A random rotation (-degrees..degrees), shift (a fraction of the side, either way) and scaling
    (1 - scale .. 1 + scale), bilinear, black outside."""
    B = len(images)
    angle = uniform(B, -degrees, degrees, images, generator) * (math.pi / 180)
    zoom = uniform(B, 1 - scale, 1 + scale, images, generator)
    x, y = uniform((2, B), -shift, shift, images, generator) * 2  # grid_sample's side is 2 long
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    inverse = torch.stack([torch.stack([cos, sin, x], -1), torch.stack([-sin, cos, y], -1)], dim=1)  # B x 2 x 3
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


POLICIES = {
    "none": lambda images, generator: images,
    "crop": lambda images, generator: crop_and_flip(images, generator, flip=False),
    "crop-flip": crop_and_flip,
    "affine": random_affine,
}
