"""Images: from files to PIL images to uint8 pixels to normalised tensors, and back.

Only torch and Pillow are needed. torchvision takes a second to import, and `test.py --mode custom` should
start fast; tests/test_data.py checks that the tensors equal those of torchvision bit for bit.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from vitlab.cli import UserError

# ------------------------------------------------------------------------------------------- files


def is_image_file(path: Path) -> bool:
    """Whether a path is a file with a suffix that Pillow knows."""
    return path.suffix.lower() in Image.registered_extensions() and path.is_file()


def image_files(path: str | Path) -> list[Path]:
    """The image file at a path, or all image files in the folder there, sorted.

    Raises UserError if the path does not exist or the folder has no images.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--image_path {path} does not exist; give an image or a folder of images")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if is_image_file(file))
    if not files:
        raise UserError(f"--image_path {path}: no image in that folder")
    return files


def open_images(path: str | Path, errors: list[str]) -> Iterator[tuple[Path, Image.Image]]:
    """Yield (file, PIL image) for each of image_files(path).

    In a folder, unreadable files are skipped and their messages appended to `errors`; a single unreadable
    file raises UserError.
    """
    files = image_files(path)
    for file in files:
        try:
            image = open_image(file)
        except UserError as error:
            if len(files) == 1:
                raise
            errors.append(str(error))
            continue
        yield file, image


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as an upright RGB image: EXIF rotation applied, first frame, transparency on white,
    16 bits scaled to 8.

    Raises UserError, naming the file, if it is missing, damaged, too large or not an image.
    """
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
        raise UserError(f"{path} cannot be read as an image ({reason}); give a complete PNG, JPEG, ...") from None

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, or more
        values = np.asarray(image, dtype=np.float64)
        values = values / 257 if values.max() > 255 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# ---------------------------------------------------------------------------- PIL images and tensors


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` pixels (bicubic, antialiased) and crop the centre: size x size."""
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image, size: int, in_chans: int) -> torch.Tensor:
    """The centre of a PIL image as a uint8 tensor in_chans x size x size (in_chans 1: luma, 3: RGB)."""
    pixels = np.array(square(image, size).convert("L" if in_chans == 1 else "RGB"))
    return torch.from_numpy(pixels).view(size, size, in_chans).permute(2, 0, 1).contiguous()


def to_batch(
    image: Image.Image, *, img_size: int, in_chans: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """A PIL image as a normalised batch of one: float 1 x in_chans x img_size x img_size."""
    return normalise(to_pixels(image, img_size, in_chans)[None] / 255, mean, std)


def to_image(values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Undo normalise: a normalised image in_chans x S x S as a PIL image."""
    mean, std = (torch.tensor(v, device=values.device).view(-1, 1, 1) for v in (mean, std))
    pixels = ((values * std + mean) * 255).round().clamp(0, 255).byte().cpu()
    return from_pixels(pixels)


def from_pixels(pixels: torch.Tensor) -> Image.Image:
    """A uint8 tensor C x H x W (C is 1 or 3) as an RGB PIL image."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB")


# --------------------------------------------------------------------------------- batches of images


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(images - mean) / std of float images B x C x H x W; mean and std have one value per channel."""
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return (images - mean) / std


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Scale float images B x C x H x W to size x size: bilinear, antialiased.

    torchvision's resize gives the same pixels, but for one image or one channel another memory layout, and
    with it other last bits in the convolution that follows.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


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
