"""Images: from files to PIL images to uint8 pixels to normalised tensors, and back.

Only torch and Pillow are needed. torchvision takes a second to import, and `test.py --mode custom` should
start fast; tests/test_data.py checks that the tensors equal those of torchvision bit for bit.
"""

import collections
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vitlab.cli import UserError
from vitlab.hardware import constant
from vitlab.layout import image_suffixes, is_hidden

ORIENTATION = ExifTags.Base.Orientation

# ------------------------------------------------------------------------------------------- files


def find_images(folder: str | Path) -> tuple[list[Path], collections.Counter]:
    """The image files at any depth of a folder, sorted, and how many other files there are of which suffix.

    Hidden files and folders are left out. Links to folders are followed; a folder that was read already, or that
    `folder` lies in, is not read again. UserError if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); change its permissions, or move it away")

    files, others = [], collections.Counter()
    known = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        for path in (Path(place, name) for name in names if not is_hidden(name)):
            if not os.path.isfile(path):
                others["broken link"] += 1
            elif (suffix := path.suffix.lower()) in image_suffixes():
                files.append(path)
            else:
                others[suffix or "without suffix"] += 1
    return sorted(files), others


def count_others(others: collections.Counter) -> str:
    """'3 .heic, 1 .txt': the second result of find_images in words."""
    return ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items(), key=lambda item: (-item[1], item[0])))


def image_files(path: str | Path) -> list[Path]:
    """The image file at a path, or all image files at any depth of the folder there, sorted.

    Raises UserError if the path does not exist or the folder has no images.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--image_path {path} does not exist; give an image or a folder of images")
    if not path.is_dir():
        return [path]
    files, others = find_images(path)
    if not files:
        only = f", only {count_others(others)}" if others else ""
        raise UserError(f"--image_path {path}: no image in that folder{only}; give one with PNG, JPEG, ... files")
    return files


def open_images(path: str | Path, errors: list[str]) -> Iterator[tuple[Path, Image.Image]]:
    """Yield (file, PIL image) for each of image_files(path).

    In a folder, unreadable files are skipped and their messages appended to `errors`, and files that are no images are
    counted in a line; a single unreadable file raises UserError.
    """
    files = image_files(path)
    if len(files) > 1 and (others := find_images(path)[1]):
        print(f"{path}: left out {count_others(others)}")
    for file in files:
        try:
            image = open_image(file)
        except UserError as error:
            if len(files) == 1:
                raise
            errors.append(str(error))
            continue
        yield file, image


def upright(image: Image.Image) -> Image.Image:
    """A PIL image as an upright RGB image: first frame, EXIF rotation applied, then to_rgb."""
    image.seek(0)
    return upright_frame(image)


def upright_frame(image: Image.Image) -> Image.Image:
    """The same of the frame that an image is at, which stays as it is."""
    rgb = to_rgb(image)  # first, because what is turned no longer tells its format
    rgb.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


class ImageSource(Protocol):
    """An image that is no file of its own, but a row of a table or a part of a tar file. str() says where it is."""

    place: str  # the same within its set, wherever that lies

    def open(self) -> BinaryIO:
        """Its encoded bytes, as a file that is open for reading. Raises UserError if they are not to be had."""


def open_image(path: str | Path | ImageSource, read: Callable[[Image.Image], Image.Image] = upright) -> Image.Image:
    """Read an image file: read(the opened PIL image), by default the upright RGB image.

    Raises UserError, naming the file, if it is missing, damaged, too large or not an image.
    """
    path = Path(path) if isinstance(path, str) else path
    file = path if isinstance(path, Path) else path.open()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return read(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{path} is over {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first") from None
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; check --image_path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except Exception as error:  # decoders raise whatever they like
        is_empty = isinstance(error, UnidentifiedImageError) and isinstance(path, Path) and not path.stat().st_size
        reason = "the file is empty" if is_empty else " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); give a complete PNG, JPEG, ...") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as RGB with 8 bits: transparency on white, grey of more bits scaled by what the file can hold, not
    by what it holds. UserError if that is not known, as of floating-point pixels."""
    if image.mode == "F" or image.mode.startswith("I"):
        brightest = 2 ** grey_bits(image) - 1
        values = np.asarray(image, dtype=np.float64) * (255 / brightest)
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def grey_bits(image: Image.Image) -> int:
    """Bits a pixel of an image of Pillow's modes I;16, I and F; UserError if black and white have no fixed values."""
    tags = getattr(image, "tag_v2", {})  # of TIFF
    is_unsigned = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) == (1,)
    if image.mode.startswith("I;16") and is_unsigned:
        return tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16
    raise UserError("its pixels are floating-point, signed or 32-bit numbers, of no fixed range: save 8 or 16 bits")


# ---------------------------------------------------------------------------- PIL images and tensors


def square(image: Image.Image, size: int, crop_pct: float = 1.0) -> Image.Image:
    """Scale the short side to size / crop_pct pixels (bicubic, antialiased) and crop the centre: size x size."""
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC, bleed=(1 - crop_pct) / 2)


def to_pixels(image: Image.Image, size: int, in_chans: int, crop_pct: float = 1.0) -> torch.Tensor:
    """The centre of a PIL image as a uint8 tensor in_chans x size x size (in_chans 1: luma, 3: RGB)."""
    image = image if image.mode in ("L", "RGB") else to_rgb(image)
    return to_tensor(square(image, size, crop_pct), in_chans)


def to_tensor(image: Image.Image, in_chans: int) -> torch.Tensor:
    """All of a PIL image, L or RGB, as a uint8 tensor in_chans x H x W."""
    channels = image.convert("L" if in_chans == 1 else "RGB").split()
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


def to_batch(
    image: Image.Image,
    *,
    img_size: int,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = 1.0,
) -> torch.Tensor:
    """A PIL image as a normalised batch of one: float 1 x in_chans x img_size x img_size."""
    return normalise(to_pixels(image, img_size, in_chans, crop_pct)[None] / 255, mean, std)


def to_image(values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Undo normalise: a normalised image in_chans x S x S as a PIL image."""
    mean, std = (torch.tensor(v, device=values.device).view(-1, 1, 1) for v in (mean, std))
    pixels = ((values * std + mean) * 255).round().clamp(0, 255).byte().cpu()
    return from_pixels(pixels)


def from_pixels(pixels: torch.Tensor) -> Image.Image:
    """A uint8 tensor C x H x W (C is 1 or 3) as an RGB PIL image."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB")


# --------------------------------------------------------------------------------- batches of images


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], *, inplace: bool = False
) -> torch.Tensor:
    """(images - mean) / std of float images B x C x H x W; mean and std have one value per channel. `inplace` saves the
    time that new memory takes, where nobody else needs the images."""
    mean, std = (constant(tuple(v), images.device).view(1, -1, 1, 1) for v in (mean, std))
    return (images.sub_(mean) if inplace else images - mean).div_(std)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Scale float images B x C x H x W, in 0..1, to size x size: bicubic, antialiased, as `square` does to files
    (which Pillow rounds after each axis).

    torchvision's resize gives the same pixels, but for one image or one channel another memory layout, and
    with it other last bits in the convolution that follows.
    """
    if images.shape[-2:] == (size, size):
        return images
    scaled = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp_(0, 1)  # beside an edge it overshoots


def as_channels(images: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Convert uint8 images B x C x H x W between grey and RGB; those that have in_chans channels are returned as is."""
    if images.shape[1] == in_chans:
        return images
    if in_chans == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R 601 luma as in Pillow's convert("L") (to within 1): 0.299, rounded. augment.grey has torchvision's 0.2989
    # instead, unrounded, because the operations there follow torchvision's. Either would change the other's pixels.
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(1, keepdim=True).round().to(images.dtype)
