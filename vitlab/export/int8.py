"""Weights of 8 bits for an ONNX file, by onnxruntime's dynamic quantisation, and what that costs in accuracy."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError
from vitlab.datasets.splits import load_data
from vitlab.export.program import quietly, write_onnx
from vitlab.files import replacing, write_json
from vitlab.hardware import describe_cpu

NUM_IMAGES = 2000  # test images that the accuracy is measured on
BATCH_SIZE = 50


def import_onnxruntime():
    """The package; UserError with the remedy where it is missing."""
    try:
        import onnxruntime.quantization
    except ImportError:
        raise UserError("--int8 needs two more packages: pip install onnx onnxruntime") from None
    return onnxruntime


def load_test_pixels(checkpoint: Checkpoint, data_path: str) -> tuple[np.ndarray, np.ndarray]:
    """Up to NUM_IMAGES test images, spread evenly over the split, uint8 n x C x S x S, and their labels n. Raises
    UserError if the data set is not known or not there."""
    config = checkpoint.data_config(data_path=data_path, device="cpu")
    data = load_data(config, splits=("test",), mean=checkpoint.mean, std=checkpoint.std)
    if not data.test:
        raise UserError(f"--int8 measures accuracy on test images, and {config.data_path} has none")
    images, labels = data.test.sample(min(NUM_IMAGES, len(data.test.labels)))
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (checkpoint.mean, checkpoint.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).byte().numpy(), labels.numpy()


def quantise(source: str | Path, target: str | Path) -> None:
    """Write the ONNX file `source` again with the weights of its matrix products in int8, one scale for each output.
    The products are of integers: activations are quantised as they come. Convolutions stay in float32."""
    quantization = import_onnxruntime().quantization
    kinds = dict(weight_type=quantization.QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    with quietly():
        quantization.quantize_dynamic(source, target, per_channel=True, **kinds)


def measure_onnx(path: str | Path, pixels: np.ndarray, labels: np.ndarray) -> dict:
    """{"mb", "accuracy", "ms"} of an ONNX file in onnxruntime on the CPU: its size, the share of images that it gets
    right, and milliseconds an image in batches of BATCH_SIZE, of the fastest half of the batches."""
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    guesses, seconds = [], []
    for first in range(0, len(pixels), BATCH_SIZE):
        batch, start = pixels[first : first + BATCH_SIZE], time.perf_counter()
        guesses.append(session.run(["logits"], {"images": batch})[0].argmax(1))
        seconds.append((time.perf_counter() - start) / len(batch))
    fastest = sorted(seconds)[: max(1, len(seconds) // 2)]
    accuracy = float((np.concatenate(guesses) == labels).mean())
    return {"mb": Path(path).stat().st_size / 1e6, "accuracy": accuracy, "ms": 1000 * sum(fastest) / len(fastest)}


def write_int8(checkpoint: Checkpoint, path: str | Path, data_path: str, *, attention: bool = False) -> list[str]:
    """Write the model as ONNX with weights of 8 bits, and beside it NAME.json, which compares it with float32 by size,
    accuracy and speed; returns that as two lines, and where it is. Nothing is written if the test images are not there.
    Raises UserError as write_onnx does."""
    pixels, labels = load_test_pixels(checkpoint, data_path)
    with tempfile.TemporaryDirectory() as folder, replacing(path) as part:
        write_onnx(checkpoint, source := Path(folder) / "float32.onnx", attention=attention)
        quantise(source, part)
        measured = {"float32": measure_onnx(source, pixels, labels), "int8": measure_onnx(part, pixels, labels)}
    about = {"hardware": describe_cpu(), "n": len(labels)}
    lines = [
        f"{name}: {found['mb']:.2f} MB, {found['accuracy']:.2%} of {len(labels):,} test images, "
        f"{found['ms']:.2f} ms an image on this CPU"
        for name, found in measured.items()
    ]
    return [*lines, str(write_json(Path(path).with_suffix(".json"), {**about, **measured}))]
