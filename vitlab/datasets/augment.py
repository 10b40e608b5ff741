"""Augmentation of a complete batch at once, on the device where the batch is.

    images = POLICIES["randaugment"](images, generator)

A policy takes images B x C x H x W (floats in 0..1) and returns images of the same shape; each image gets its own
draw. All draws come from a torch.Generator on the CPU, so that a seed means the same on every device and an
accelerator never waits for them.

Why not a library: the draws here follow from (seed, epoch, batch), which makes a resumed run exact; torchvision
draws one operation per call from the global generator, and kornia is not on the project's list of packages.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from vitlab.config import TrainConfig
from vitlab.hardware import constant, send


@dataclass(frozen=True)
class GeneratorOfRows:
    """A generator for some rows of a batch. It draws for the whole batch, so that an image gets the same numbers
    whichever process augments it."""

    generator: torch.Generator
    batch_size: int
    rows: torch.Tensor  # int64 B


Generator = torch.Generator | GeneratorOfRows


def draw(function: Callable, *args: int, shape: Sequence[int], generator: Generator) -> torch.Tensor:
    """function(*args, shape, generator=generator). The last dimension counts the images."""
    if isinstance(generator, GeneratorOfRows):
        shape = (*shape[:-1], generator.batch_size)
        return function(*args, shape, generator=generator.generator)[..., generator.rows]
    return function(*args, shape, generator=generator)


def uniform(shape: Sequence[int], low: float, high: float, generator: Generator) -> torch.Tensor:
    """Uniform draws between low and high."""
    return draw(torch.rand, shape=shape, generator=generator) * (high - low) + low


def integers(high: int, shape: Sequence[int], generator: Generator) -> torch.Tensor:
    """Whole numbers from 0 to high - 1."""
    return draw(torch.randint, high, shape=shape, generator=generator)


# ------------------------------------------------------------------------------------ crop, flip, move


def crop_and_flip(
    images: torch.Tensor, generator: Generator, *, padding: int = 4, mode: str = "constant", flip: bool = True
) -> torch.Tensor:
    """Crop each image at random after padding it with black (or by another mode of F.pad), and mirror half of them.

    The standard CIFAR augmentation: He et al., arXiv:1512.03385, section 4.2."""
    B, _, H, W = images.shape
    tops, lefts = integers(2 * padding + 1, (2, B), generator).unsqueeze(-1)
    rows = torch.arange(H) + tops  # B x H
    columns = torch.arange(W).expand(B, W)
    if flip:
        mirror = uniform((B,), 0, 1, generator)[:, None] < 0.5
        columns = torch.where(mirror, W - 1 - columns, columns)
    columns = columns + lefts
    padded = F.pad(images, 4 * [padding], mode=mode)
    rows, columns, which = (send(index, images.device) for index in (rows, columns, torch.arange(B)))
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def warp(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Apply an affine map to each image: bilinear, black outside.

    inverse: B x 2 x 3, the map from a pixel of the result to the pixel of the image that is shown there, in
    pixels from the centre (x to the right, y down).
    """
    H, W = images.shape[-2:]
    half = torch.tensor([W / 2, H / 2])
    unit = inverse.clone()  # the same map in coordinates from -1 to 1
    unit[:, :, :2] *= half / half[:, None]
    unit[:, :, 2] /= half
    grid = F.affine_grid(send(unit, images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def random_affine(
    images: torch.Tensor, generator: Generator, *, degrees: float = 8.0, shift: float = 0.04, scale: float = 0.08
) -> torch.Tensor:
    """Rotate each image at random (by up to `degrees` either way), shift it (by up to this fraction of its side) and
    scale it (between 1 - scale and 1 + scale)."""
    B, side = len(images), images.shape[-1]
    angle = uniform((B,), -degrees, degrees, generator).deg2rad()
    zoom = uniform((B,), 1 - scale, 1 + scale, generator)
    x, y = uniform((2, B), -shift * side, shift * side, generator)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    return warp(images, torch.stack([cos, sin, x, -sin, cos, y], dim=-1).view(B, 2, 3))


# ------------------------------------------------------------- the operations of AutoAugment's family
# A colour operation takes images (B x C x H x W in 0..1) and one magnitude per image (B); the result is that of
# torchvision's function of the same name.


def blend(images: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """factor * images + (1 - factor) * other, clamped to 0..1."""
    factor = factor.view(-1, 1, 1, 1)
    return (images * factor + other * (1 - factor)).clamp(0, 1)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma of RGB images as B x 1 x H x W; grey images as they are. The weights are torchvision's, see as_channels."""
    if images.shape[1] == 1:
        return images
    return (images * constant((0.2989, 0.587, 0.114), images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return blend(images, torch.zeros_like(images), factor)


def color(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return blend(images, grey(images), factor)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return blend(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    C = images.shape[1]
    kernel = (
        constant((1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0), images.device).view(3, 3).div(13).expand(C, 1, 3, 3)
    )
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel, groups=C)
    return blend(images, smooth, factor)


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    step = (2 ** (8 - bits)).view(-1, 1, 1, 1)
    return ((images * 255).round().div(step, rounding_mode="floor") * step) / 255


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 1 - images, images)


def autocontrast(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def equalize(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    B, C, H, W = images.shape
    values = (images * 255).round().long().flatten(2)  # B x C x HW
    counts = values.new_zeros(B, C, 256).scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (H * W - last).div(255, rounding_mode="floor")  # B x C x 1
    below = counts.cumsum(2) - counts
    table = (below + step // 2).div(step.clamp_min(1), rounding_mode="floor").clamp(0, 255)
    return torch.where(step > 0, table.gather(2, values), values).view(B, C, H, W).to(images.dtype) / 255


COLOUR = (brightness, color, contrast, sharpness, posterize, solarize, autocontrast, equalize)
GEOMETRIC = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
N_OPS = len(GEOMETRIC) + len(COLOUR)


def geometric(op: torch.Tensor, magnitude: torch.Tensor, size: int) -> torch.Tensor:
    """The maps n x 2 x 3 (for warp) of n geometric operations: op (indices into GEOMETRIC) and magnitude, both n."""
    matrix = torch.eye(2, 3).repeat(len(op), 1, 1)
    at = {name: (op == i).nonzero().flatten() for i, name in enumerate(GEOMETRIC)}
    corner = size / 2  # shears leave the top left corner where it is
    for name, row, column in (("shear_x", 0, 1), ("shear_y", 1, 0)):
        matrix[at[name], row, column] = magnitude[at[name]]
        matrix[at[name], row, 2] = magnitude[at[name]] * corner
    for name, row in (("translate_x", 0), ("translate_y", 1)):
        matrix[at[name], row, 2] = -magnitude[at[name]].trunc()
    angle = magnitude[at["rotate"]].deg2rad()
    matrix[at["rotate"], :, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    return matrix


def apply_ops(images: torch.Tensor, op: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Apply one operation to each image: op (indices into GEOMETRIC, then COLOUR) and magnitude, both B, on the CPU."""
    out = images.clone()
    moved = ((op > 0) & (op < len(GEOMETRIC))).nonzero().flatten()
    if len(moved):
        index = send(moved, images.device)
        out[index] = warp(images[index], geometric(op[moved], magnitude[moved], images.shape[-1]))
    for i, colour in enumerate(COLOUR, start=len(GEOMETRIC)):
        chosen = (op == i).nonzero().flatten()
        if len(chosen):
            index = send(chosen, images.device)
            out[index] = colour(images[index], send(magnitude[chosen], images.device))
    return out


def magnitudes(
    op: torch.Tensor,
    level: torch.Tensor,
    generator: Generator,
    *,
    shear: float,
    shift: float,
    degrees: float,
    factor: float,
    bits: int,
) -> torch.Tensor:
    """The magnitude of each image's operation `op` at strength `level` (0..1), all of length B.

    The keywords are the magnitudes at strength 1: shear, shift in pixels, rotation in degrees, change of a factor,
    bits removed."""
    sign = integers(2, (len(op),), generator) * 2.0 - 1
    signed = sign * level
    table = torch.stack(
        [level, signed * shear, signed * shear, signed * shift, signed * shift, signed * degrees]
        + 4 * [1 + signed * factor]
        + [8 - (level * bits).round(), 1 - level, level, level]
    )  # N_OPS x B
    return table.gather(0, op[None])[0]


def randaugment(images: torch.Tensor, generator: Generator, *, num_ops: int = 2, level: float = 9 / 30) -> torch.Tensor:
    """RandAugment (Cubuk et al., arXiv:1909.13719): num_ops random operations in a row, all of strength `level`;
    ranges as in torchvision."""
    side = images.shape[-1]
    for _ in range(num_ops):
        op = integers(N_OPS, (len(images),), generator)
        strength = torch.full((len(images),), level)
        ranges = dict(shear=0.3, shift=150 / 331 * side, degrees=30, factor=0.9, bits=4)
        images = apply_ops(images, op, magnitudes(op, strength, generator, **ranges))
    return images


def trivialaugment(images: torch.Tensor, generator: Generator) -> torch.Tensor:
    """TrivialAugment, wide (Mueller & Hutter, arXiv:2103.10158): one random operation of a random strength; ranges as
    in torchvision, but shifts at most by the side of the image."""
    op = integers(N_OPS, (len(images),), generator)
    strength = integers(31, (len(images),), generator) / 30
    ranges = dict(shear=0.99, shift=min(32, images.shape[-1]), degrees=135, factor=0.99, bits=6)
    return apply_ops(images, op, magnitudes(op, strength, generator, **ranges))


def unchanged(images: torch.Tensor, generator: Generator) -> torch.Tensor:
    return images


def random_erasing(
    images: torch.Tensor, generator: Generator, *, probability: float, value: Sequence[float]
) -> torch.Tensor:
    """With this probability, fill a random rectangle of an image with `value` (one number per channel): 2 to 33 % of
    the area, sides in a ratio of 0.3 to 3.3.

    Zhong et al., arXiv:1708.04896, algorithm 1; a rectangle too long for the image is cut to its side."""
    B, _, H, W = images.shape
    area = uniform((B,), 0.02, 0.33, generator) * H * W
    ratio = uniform((B,), math.log(0.3), math.log(3.3), generator).exp()
    height, width = ((area * ratio).sqrt().round().clamp(1, H), (area / ratio).sqrt().round().clamp(1, W))
    top = (uniform((B,), 0, 1, generator) * (H - height + 1)).floor()
    left = (uniform((B,), 0, 1, generator) * (W - width + 1)).floor()
    chosen = uniform((B,), 0, 1, generator) < probability
    rows, columns = torch.arange(H), torch.arange(W)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None]) & chosen[:, None]  # B x H
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    box = send(in_rows[:, None, :, None] & in_columns[:, None, None, :], images.device)  # B x 1 x H x W
    return torch.where(box, constant(tuple(value), images.device).view(1, -1, 1, 1), images)


Policy = Callable[[torch.Tensor, Generator], torch.Tensor]
POLICIES: dict[str, Policy] = {
    "none": unchanged,
    "crop": lambda images, generator: crop_and_flip(images, generator, flip=False),
    "crop-flip": crop_and_flip,
    "translate": lambda images, generator: crop_and_flip(images, generator, padding=2, mode="reflect", flip=False),
    "affine": random_affine,
    "randaugment": lambda images, generator: randaugment(crop_and_flip(images, generator), generator),
    "trivialaugment": lambda images, generator: trivialaugment(crop_and_flip(images, generator), generator),
}


AFTER_CROP: dict[str, Policy] = {  # what a policy does to images that are random crops, mirrored or not, of their files
    "crop": unchanged,
    "crop-flip": unchanged,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}


def flips(policy: str) -> bool:
    """Whether a policy that crops mirrors images too."""
    return policy != "crop"


# ---------------------------------------------------------------------------------- mixing two images


def make_mix(config: TrainConfig) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899), by torchvision.

    Returns a function (images, labels B, epoch, batch) -> (images, class shares B x C), which with probability
    1 - config.mix_prob returns both unchanged; None if config.mixup and config.cutmix are 0.
    Each image is mixed with the one before it. Its draws follow from (seed, epoch, batch) and are the same for all
    images.
    """
    if not config.mixup and not config.cutmix:
        return None
    kinds = {v2.MixUp: (config.mixup, 1 - config.mix_switch_prob), v2.CutMix: (config.cutmix, config.mix_switch_prob)}
    mixes = {
        kind(alpha=alpha, num_classes=config.num_classes): share for kind, (alpha, share) in kinds.items() if alpha
    }
    shares = list(mixes.values()) if len(mixes) > 1 else None
    apply = v2.RandomApply([v2.RandomChoice(list(mixes), p=shares)], p=config.mix_prob)

    def mix(images: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
            torch.default_generator.manual_seed(seed_of("mix", config.seed, epoch, batch))
            return apply(images, labels)

    return mix


def seed_of(purpose: str, *key: int) -> int:
    """A seed, 0 to 2**63 - 1, for what is drawn and a key of whole numbers: a hash, so that seeds of different draws
    and keys are unrelated."""
    words = " ".join([purpose, *map(str, key)])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
