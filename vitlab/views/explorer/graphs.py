"""The model of the page: three ONNX graphs that share one block of weights, and the runtime that runs them."""

import base64
import copy
import dataclasses
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import VisionTransformer
from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError
from vitlab.export.program import Program, example_images, trace_onnx
from vitlab.files import replacing
from vitlab.views.explorer.measure import EVIDENCE, INSIDE, Evidence, Inside

RUNTIME = "1.30.0"  # of onnxruntime-web
RUNTIME_URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{RUNTIME}.tgz"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as npm's
RUNTIME_FILES = {"ort": "package/dist/ort.wasm.bundle.min.mjs", "wasm": "package/dist/ort-wasm-simd-threaded.wasm"}
SHARED_FROM = 1024  # bytes: smaller constants stay in their graph


def make_graphs(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The graphs "predict" (any number of images), "inside" and "evidence" (one), and their "weights": float32 by byte
    planes. The lowest 8 bits of each weight are dropped, a change of at most 2^-16 of it, which compresses."""
    checkpoint = dataclasses.replace(checkpoint, model=fold_batch_norms(checkpoint.model))
    image = example_images(checkpoint, 1)
    target = torch.zeros(1, dtype=torch.int64)
    evidence = make_fx(Evidence(checkpoint))(image, target)  # with its backward pass written out
    protos = {
        "predict": trace_onnx(Program(checkpoint), (example_images(checkpoint),), names=(["images"], ["logits"])),
        "inside": trace_onnx(Inside(checkpoint), (image,), names=(["images"], list(INSIDE)), dynamic=False),
        "evidence": trace_onnx(evidence, (image, target), names=(["images", "target"], list(EVIDENCE)), dynamic=False),
    }
    weights = share_weights(protos.values())
    return {**{name: proto.SerializeToString() for name, proto in protos.items()}, "weights": weights}


def fold_batch_norms(model: VisionTransformer) -> VisionTransformer:
    """A copy of a model with the batch norms of its stem that follow a convolution computed into it. The exporter does
    so in some graphs and not in others, which then could not share their weights."""
    model = copy.deepcopy(model).eval()
    stages = getattr(model.patch_embed, "stages", nn.Sequential())
    for i, (conv, norm) in enumerate(zip(stages, stages[1:])):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            stages[i], stages[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return model


def share_weights(protos: Iterable["onnx.ModelProto"]) -> bytes:  # noqa: F821
    """Move the large constants of graphs out of them, each different one once, also where another graph has a matrix
    transposed; returns them by byte planes. What the exporter notes on its nodes is left out."""
    places, block = {}, bytearray()
    for proto in protos:
        for node in proto.graph.node:
            node.ClearField("metadata_props")
        proto.graph.ClearField("value_info")
        for tensor in list(proto.graph.initializer):
            if len(tensor.raw_data) < SHARED_FROM or tensor.data_type != tensor.FLOAT:
                continue
            values = np.frombuffer(tensor.raw_data, np.uint32).reshape(tensor.dims)
            if len(tensor.dims) == 2 and (values.T.tobytes(), *values.shape) in places:
                name, stored = tensor.name, f"{tensor.name}.transposed"
                transpose = dict(op_type="Transpose", input=[stored], output=[name], name=f"{name}.transpose")
                proto.graph.node.insert(0, type(proto.graph.node[0])(**transpose))
                tensor.name, values = stored, values.T
                tensor.dims[:] = values.shape
            key = (values.tobytes(), *reversed(values.shape))
            if key not in places:
                places[key] = len(block)
                block += ((values.astype(np.uint64) + 0x80) & 0xFFFFFF00).astype(np.uint32).tobytes()
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            facts = {"location": "weights", "offset": places[key], "length": values.nbytes}
            for field, value in facts.items():
                tensor.external_data.add(key=field, value=str(value))
    return np.frombuffer(bytes(block), np.uint8).reshape(-1, 4).T.tobytes()


def runtime_archive() -> Path:
    """Where onnxruntime-web is kept on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vitlab" / RUNTIME_URL.rsplit("/", 1)[1]


def find_runtime() -> dict[str, bytes]:
    """onnxruntime-web: its script "ort" and its WebAssembly "wasm". From npm's registry, checked by hash, kept in the
    user's cache. Raises UserError, with the place to put it, if it is not there and cannot be downloaded."""
    cache = runtime_archive()
    if not cache.is_file():
        try:
            with urllib.request.urlopen(RUNTIME_URL, timeout=60) as response:
                archive = response.read()
        except (urllib.error.URLError, OSError) as error:
            raise UserError(f"{RUNTIME_URL} cannot be downloaded ({error}); put that file at {cache}") from None
        with replacing(cache) as part:
            part.write_bytes(archive)
    archive = cache.read_bytes()
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != RUNTIME_SHA512:
        raise UserError(f"{cache} is not onnxruntime-web {RUNTIME} (its hash differs); remove it and try again")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {name: tar.extractfile(file).read() for name, file in RUNTIME_FILES.items()}
