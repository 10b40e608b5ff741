"""ONNX and torch.export: the model as a program that takes uint8 images and needs nothing of this repository.

write_onnx(checkpoint, "vit.onnx", attention=True)    # onnxruntime: run(None, {"images": uint8 N x C x S x S})
write_pt2(checkpoint, "vit.pt2")                      # torch.export.load("vit.pt2").module()(images)
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from model import VisionTransformer
from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError
from vitlab.files import replacing
from vitlab.pt_files import FORMAT

OPSET, IR_VERSION = 20, 9  # of ONNX: the first with GELU, and its file format; onnxruntime reads them from 1.17 on


class Program(nn.Module):
    """Pixels in, logits out: uint8 B x C x S x S in 0..255 -> B x classes, and with `attention` also B x L x H x N x N.

    Scaling to 0..1 and normalisation are part of it. Raises UserError if a model without attention is to return it.
    """

    def __init__(self, checkpoint: Checkpoint, *, attention: bool = False):
        super().__init__()
        if attention and not isinstance(checkpoint.model, VisionTransformer):
            raise UserError(f"--attention: {checkpoint.path} is a {checkpoint.config.model}, which has none")
        self.model = checkpoint.model.eval()
        self.options = {"return_attention": True} if attention else {}
        self.register_buffer("mean", torch.tensor(checkpoint.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(checkpoint.std).view(1, -1, 1, 1))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as the model takes them."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.model(self.normalise(images), **self.options)


def facts(checkpoint: Checkpoint) -> dict:
    """What a program must know of a model, as plain values for JSON."""
    model, config = checkpoint.model, checkpoint.config
    return {
        "checkpoint": checkpoint.run_name,
        "model": config.model,
        "dataset": config.dataset,
        "classes": list(checkpoint.classes),
        "input": {"name": "images", "dtype": "uint8", "shape": ["N", model.in_chans, model.img_size, model.img_size]},
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "crop_pct": checkpoint.crop_pct,
    }


def example_images(checkpoint: Checkpoint, batch: int = 2) -> torch.Tensor:
    """Black images, uint8 batch x C x S x S, to trace a model with."""
    model = checkpoint.model
    return torch.zeros(batch, model.in_chans, model.img_size, model.img_size, dtype=torch.uint8)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporter's talk about itself."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def trace_onnx(
    program: nn.Module, inputs: tuple[torch.Tensor, ...], *, names: tuple[list[str], list[str]], dynamic: bool = True
) -> "onnx.ModelProto":  # noqa: F821
    """A module as ONNX, by torch's exporter. names: of the inputs and of the outputs. dynamic: the first dimension of
    the first input may be any number.

    Raises UserError if onnx and onnxscript, which few users need, are not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX needs two more packages: pip install onnx onnxscript onnxruntime") from None
    shapes = [{0: torch.export.Dim("batch")} if dynamic and i == 0 else None for i in range(len(inputs))]
    with quietly(), torch.no_grad():
        exported = torch.onnx.export(
            program.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=shapes,
            verbose=False,
        )
    return exported.model_proto


def write_onnx(checkpoint: Checkpoint, path: str | Path, *, attention: bool = False) -> None:
    """Write the model as ONNX: input `images`, outputs `logits` and, if asked for, `attention`; facts() as JSON in the
    metadata. Raises UserError as Program, trace_onnx and replacing do."""
    program = Program(checkpoint, attention=attention)
    outputs = ["logits", "attention"] if attention else ["logits"]
    proto = trace_onnx(program, (example_images(checkpoint),), names=(["images"], outputs))
    proto.ir_version = IR_VERSION
    proto.metadata_props.add(key=FORMAT, value=json.dumps(facts(checkpoint)))
    with replacing(path) as part:
        part.write_bytes(proto.SerializeToString())


def write_pt2(checkpoint: Checkpoint, path: str | Path, *, attention: bool = False) -> None:
    """Write the model as a torch.export program, with facts() as JSON in an extra file of it. Raises UserError as
    Program and replacing do."""
    program = Program(checkpoint, attention=attention)
    with quietly(), torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(program, (example_images(checkpoint),), dynamic_shapes=shapes)
        with replacing(path) as part, open(part, "wb") as file:
            torch.export.save(exported, file, extra_files={f"{FORMAT}.json": json.dumps(facts(checkpoint))})
