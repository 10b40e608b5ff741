"""What all commands of visualize.py share: the model, the images that it is shown, and where pictures go."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from model import VisionTransformer
from vitlab.attention.maps import Look, describe_pool, look
from vitlab.catalog import AT_DATA_PATH
from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError, whole_number
from vitlab.datasets import images
from vitlab.datasets.official import test_image
from vitlab.datasets.splits import load_data
from vitlab.hardware import find_device
from vitlab.layout import image_suffixes
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas
from vitlab.pictures.tiles import TIMES_UNIFORM, Scale, Tile, sheet

DEFAULT_INDEX = 21  # of the test image that is drawn if the user names none
WITHOUT_ATTENTION = ("gradcam", "training")  # the commands for models that are not Vision Transformers
FORMATS = {  # of the commands that write other files than .png
    "gif": (".gif",),
    "training": (".gif",),
    "explorer": (".html",),
    "tokens": (".png", ".gif"),
    "hidden": (".png", ".gif"),
}
FILES = ".png .gif .html .htm .jpg .jpeg .webp .bmp .tif .tiff .pdf .svg .mp4".split()  # with these, it names a file
ASKED = ("layers", "heads", "target", "method")  # the flags that file names tell, if they are given


def patch_steps(side: int) -> range:
    """The rows (or columns) of a grid of patches of which tiles are drawn: all up to 15, then every second, ..."""
    return range(0, side, max(1, side // 8))


def picture_names(files: Sequence[Path], folder: Path) -> list[str]:
    """How the pictures of image files in a folder are called: by the file's place in the folder, without its suffix
    unless another image differs in nothing else."""

    def without_suffix(file: Path) -> str:
        return file.relative_to(folder).with_suffix("").as_posix()

    around = {*files, *(file for file in folder.iterdir() if file.suffix.lower() in image_suffixes())}
    counts = Counter(without_suffix(file).casefold() for file in around)  # some disks do not tell a.png from A.png
    return [
        without_suffix(file) if counts[without_suffix(file).casefold()] == 1 else file.relative_to(folder).as_posix()
        for file in files
    ]


@dataclass
class Subject:
    """One image and what the model makes of it."""

    name: str  # "cifar-index-21", or that of picture_names; begins the names of its pictures
    image: Image.Image  # square
    batch: torch.Tensor  # 1 x in_chans x img_size x img_size, normalised, on the model's device
    predictions: list[tuple[str, float]]  # (class, probability), best first
    label: str | None  # the true class, if it is known
    look: Look | None  # B = 1, float32 on the CPU; None for a model without attention

    @property
    def verdict(self) -> str:
        """The likeliest class with its probability, and the true class if it is known."""
        name, probability = self.predictions[0]
        return f"{name} {probability:.1%}" + (f" (true: {self.label})" if self.label else "")


class View:
    """A checkpoint's model on its device, the flags of visualize.py, and where the pictures go.

    run_settings: data_path and device. Raises UserError if the device is not there, if the command needs
    attention and the model has none, or if --output_path names a file of another format.
    """

    def __init__(self, checkpoint: Checkpoint, args: argparse.Namespace, run_settings: dict):
        self.checkpoint, self.args, self.run_settings = checkpoint, args, run_settings
        self.model = checkpoint.model.to(find_device(run_settings["device"]))
        self.run_name, file = checkpoint.run_name, checkpoint.path
        # of a run's files that are not its best.pt: last.pt, and those of earlier epochs
        self.epoch = [file.stem] if file.is_file() and file.stem not in ("best", self.run_name) else []
        self.name = "-".join([self.run_name, *self.epoch])
        self.unreadable: list[str] = []  # a line for each image of --image_path that could not be read
        if isinstance(self.model, VisionTransformer):
            self.depth, self.num_heads = len(self.model.blocks), self.model.blocks[0].attn.num_heads
            self.pooled = describe_pool(self.model)
        else:
            self._check_command()
        self.output_path = Path(args.output_path) if args.output_path else None
        self.output_file = self._find_output_file()

    def _find_output_file(self) -> Path | None:
        """--output_path if it names a file; UserError if that is of another format than the command's."""
        path, formats = self.output_path, FORMATS.get(self.args.command, (".png",))
        if path is None or path.is_dir() or path.suffix.lower() not in FILES:
            return None
        if path.suffix not in formats:
            written = " and ".join(formats)
            raise UserError(
                f"--output_path {path}: {self.args.command} writes {written}; give such a name, or a folder"
            )
        return path

    def _check_command(self) -> None:
        """UserError if the command needs attention, or a convolution that the model does not have."""
        kind = self.checkpoint.config.model
        possible = [name for name in WITHOUT_ATTENTION if name != "gradcam" or cam_layer(kind, self.model)]
        if self.args.command not in possible:
            raise UserError(
                f"{self.args.command}: {self.args.model_path} is a {kind}; of it there are {' and '.join(possible)}"
            )

    def file(self, stem: str, suffix: str, folder: Path | None = None) -> Path:
        """Where a picture goes: to --output_path if it is a file of that suffix, else into that file's folder, into
        the folder --output_path, or by default into `folder` or output/NAME/visualize/. Its name is the stem, the model
        where the folder does not tell it, and the flags of ASKED: what differs is never written to the same file."""
        if self.output_file and self.output_file.suffix == suffix:
            return self.output_file
        by_default = Path("output") / self.run_name / "visualize"
        place = self.output_file.parent if self.output_file else self.output_path or folder or by_default
        model = self.epoch if place == by_default else [self.name]
        return place / f"{'-'.join([stem, *model, *self.asked()])}{suffix}"

    def asked(self) -> Iterator[str]:
        """The flags of ASKED that are given, and their values, as parts of a file name."""
        for flag in ASKED:
            value = getattr(self.args, flag, None)
            if value is not None:
                values = value if isinstance(value, list) else [self.target() if flag == "target" else value]
                yield from (flag, *(re.sub(r"[^\w.-]", "_", str(value)) for value in values))

    def save_sheet(
        self,
        stem: str,
        rows: Sequence[Sequence[Tile]],
        *,
        title: str,
        note: str = "",
        scale: Scale | None = TIMES_UNIFORM,
    ) -> Path:
        """Write rows of tiles as one picture, STEM.png; returns its path."""
        return canvas.save_image(sheet(rows, title=title, note=note, scale=scale), self.file(stem, ".png"))

    def title(self, subject: Subject, heading: str) -> str:
        """The title of a sheet about one image."""
        return f"{self.name}, {heading}\n{subject.name}: {subject.verdict}"

    def layers(self, default: str) -> list[int]:
        """--layers, or by `default` "all" of them, the "last", or the "first middle last". Raises UserError if the
        model has no such layer."""
        last = self.depth - 1
        if self.args.layers:
            return [whole_number("--layers", high=last)(layer) for layer in self.args.layers]
        return {
            "all": list(range(self.depth)),
            "last": [last],
            "first middle last": sorted({0, self.depth // 2, last}),
        }[default]

    def heads(self, default: Sequence[int | str]) -> list[int | str]:
        """--heads, or the default: numbers, and "mean" for the mean of all heads. Raises UserError if the model has
        no such head."""
        in_range = whole_number("--heads", high=self.num_heads - 1)
        return [head if head == "mean" else in_range(head) for head in self.args.heads or default]

    def target(self) -> str | None:
        """The name of the class --target, which is given by name or number; None without the flag."""
        target, classes = self.args.target, self.checkpoint.classes
        if target is None or target in classes:
            return target
        if target.isdecimal() and int(target) < len(classes):
            return classes[int(target)]
        names = f" ({', '.join(classes)})" if len(classes) <= 20 else ""
        raise UserError(f"--target {target}: give a class from 0 to {len(classes) - 1}{names}")

    def subjects(self) -> Iterator[Subject]:
        """The images of --image_path, or the test image --index. Files of a folder that cannot be read are listed in
        `unreadable`."""
        if self.args.image_path:
            path, files = Path(self.args.image_path), images.image_files(self.args.image_path)
            if self.output_file and len(files) > 1:
                raise UserError(f"--output_path {self.output_path} is one file for {len(files)} images; give a folder")
            names = dict(zip(files, picture_names(files, path if path.is_dir() else path.parent)))
            for file, image in images.open_images(path, self.unreadable):
                yield self._subject(names[file], image, side=max(224, self.model.img_size))
        else:
            index = DEFAULT_INDEX if self.args.index is None else self.args.index
            config = self.checkpoint.data_config(**self.run_settings)
            image, label = test_image(config, index)
            place = Path(config.data_path).resolve()
            if config.dataset == "webdataset" and not place.is_dir():
                place = place.parent  # of a pattern
            dataset = place.name if config.dataset in AT_DATA_PATH else config.dataset.removesuffix("10")
            yield self._subject(
                f"{dataset}-index-{index}", image, side=self.model.img_size, label=self.checkpoint.classes[label]
            )

    def _subject(self, name: str, image: Image.Image, *, side: int, label: str | None = None) -> Subject:
        """Run the model on one image, which is drawn at side x side."""
        batch, inside = self.checkpoint.batch(image), None
        if isinstance(self.model, VisionTransformer):
            inside = look(self.model, batch).cpu()
            logits = inside.logits
        else:
            with torch.no_grad():
                logits = self.model(batch)
        drawn = images.square(image, side, self.checkpoint.crop_pct)
        return Subject(name, drawn, batch, self.checkpoint.name(logits[0]), label, inside)

    def test_images(self, *, low: int, default: int) -> tuple[torch.Tensor, torch.Tensor]:
        """--num_images test images, spread evenly over the split, and their labels: normalised n x in_chans x S x S,
        and int64 n. At least `low`; `default` says how many without the flag, or all if there are fewer."""
        config = self.checkpoint.data_config(**self.run_settings)
        data = load_data(config, splits=("test",), mean=self.checkpoint.mean, std=self.checkpoint.std)
        total = len(data.test.labels) if data.test else 0
        if total < low:
            raise UserError(f"{self.args.command} needs {low} test images, and {config.data_path} has {total}")
        n = min(default, total) if self.args.num_images is None else self.args.num_images
        return data.test.sample(whole_number("--num_images", low=low, high=total)(n))
