"""Single images: files, PIL images, tensors."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from vitlab.cli import UserError


def normalise(images, mean, std):
    """(images - mean) / std, a value a channel."""
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return (images - mean) / std


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
