"""What benchmark.py times: training steps next to those of other implementations, augmentation, attention extraction,
reading image files.

textbook  separate query, key and value projections, the softmax written out, float32 (on CUDA as TF32), AdamW unfused
timm      timm's VisionTransformer, dtype and optimiser like ours
"""

import contextlib
import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from tqdm import trange

from model import VisionTransformer
from vitlab.attention.maps import times_uniform
from vitlab.config import TrainConfig
from vitlab.datasets.augment import POLICIES
from vitlab.datasets.decoding import count_workers
from vitlab.datasets.shards import pack
from vitlab.datasets.splits import load_data
from vitlab.hardware import autocast, fast_training, to_device
from vitlab.layout import find_layout
from vitlab.models.registry import build_model
from vitlab.pictures import canvas
from vitlab.pictures.tiles import attention_frames
from vitlab.training.optimizers import make_optimizers


class TextbookAttention(nn.Module):
    """Multi-head self-attention as tutorials write it."""

    def __init__(self, config: TrainConfig):
        super().__init__()
        dim, self.num_heads = config.embed_dim, config.num_heads
        self.queries, self.keys, self.values = (nn.Linear(dim, dim, bias=config.qkv_bias) for _ in range(3))
        norm = partial(nn.LayerNorm, dim // self.num_heads, config.norm_eps) if config.qk_norm else nn.Identity
        self.query_norm, self.key_norm = norm(), norm()
        self.dropout, self.out_projection = nn.Dropout(config.attn_drop_rate), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, return_attention: bool = False) -> tuple[torch.Tensor, None]:  # B x N x D
        B, N, D = x.shape
        q, k, v = (
            layer(x).view(B, N, self.num_heads, -1).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        x = self.dropout(torch.softmax(scores, dim=-1)) @ v
        return self.out_projection(x.transpose(1, 2).reshape(B, N, D)), None


def textbook_model(config: TrainConfig) -> nn.Module:
    """Our model with its attention and dropout written the tutorials' way."""
    model = build_model(config)
    for block in model.blocks:
        block.attn = TextbookAttention(config)
        block.mlp.drop = nn.Dropout(config.drop_rate)
    return model


def timm_model(config: TrainConfig) -> nn.Module:
    """timm's VisionTransformer of the same architecture. Raises ImportError if timm is not installed or has no such
    architecture."""
    if config.stem != "linear" or config.head != "linear" or config.pool == "seq" or config.drop_path_rate:
        raise ImportError("a stem, a pooling, a head or stochastic depth of our own")
    from timm.models.vision_transformer import VisionTransformer

    names = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
    model = VisionTransformer(
        **{name: getattr(config, name) for name in (*names, "qkv_bias", "qk_norm", "attn_drop_rate")},
        global_pool="token" if config.pool == "cls" else "avg",
        fc_norm=config.pool == "mean",
    )
    for block in model.blocks:
        block.mlp.drop1 = nn.Dropout(config.drop_rate)
    return model


def make_step(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    images: torch.Tensor,
    labels: torch.Tensor,
    amp: torch.dtype | None,
) -> Callable[[], float]:
    """A function that takes one training step on that batch, in the autocast dtype `amp` (None: float32), waits for
    it, and returns the loss."""

    def step():
        with fast_training(images.device, amp):
            with autocast(images.device, amp):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            return loss.item()

    return step


def make_candidates(
    config: TrainConfig, images: torch.Tensor, labels: torch.Tensor, amp: torch.dtype | None
) -> dict[str, Callable]:
    """One training step of each implementation, by name: "ours", "textbook" and, if it is installed, "timm"."""
    device = images.device
    ours = to_device(build_model(config), device)
    candidates = {"ours": make_step(ours, make_optimizers(ours, config), images, labels, amp)}
    textbook = to_device(textbook_model(config), device)
    unfused = torch.optim.AdamW(textbook.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    candidates["textbook"] = make_step(textbook, [unfused], images, labels, None)
    with contextlib.suppress(ImportError):
        timms = to_device(timm_model(config), device)
        candidates["timm"] = make_step(timms, make_optimizers(timms, config), images, labels, amp)
    return candidates


def time_steps(candidates: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate's steps, name -> one value per round. They take turns, one step each a round, after
    two rounds that are not timed."""
    seconds = {name: [] for name in candidates}
    for number in trange(rounds + 2, desc="rounds", leave=False, disable=None):
        for name, step in candidates.items():
            began = time.perf_counter()
            step()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def median_seconds(action: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of an action that leaves its result on `device`; the first call is not timed."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        action()
        torch.zeros((), device=device).item()  # wait for an accelerator
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def time_operations(
    config: TrainConfig, images: torch.Tensor, labels: torch.Tensor, amp: torch.dtype | None, rounds: int
) -> dict:
    """Where the time of a training step goes: the rate of a matrix product, the whole step, and its stages.

    Each stage (a layer of the stem, a part of a block, the optimisers, the augmentation) runs alone, forward and
    backward, on the input that it has in the model. The parts of a block are measured in the first one and count
    `depth` times. What is left of the step is "the rest": additions, the class token, the head, the loss.

    Returns {"matmul_gflops": GFLOP/s, "seconds": of a step, "stages": [{"stage", "seconds", "gflop"}, ...]}.
    """
    device, model = images.device, to_device(build_model(config), images.device)
    optimizers = make_optimizers(model, config)
    square = torch.randn(2048, 2048, device=device, dtype=amp or torch.float32)
    matmul_seconds = median_seconds(lambda: square @ square, device, rounds)

    def step():
        with autocast(device, amp):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        update()
        model.zero_grad(set_to_none=True)

    def update():
        for optimizer in optimizers:
            optimizer.step()

    stages = [("augmentation", lambda: POLICIES[config.augment](images.clamp(0, 1), torch.Generator()), 1)]
    for name, module, call, count in step_parts(model):
        stages.append((name, forward_and_backward(model, module, call, images, amp), count))
    stages.append(("optimiser", update, 1))

    seconds = median_seconds(step, device, rounds)
    F.cross_entropy(model(images), labels).backward()  # gradients for the optimisers
    rows = []
    for name, action, count in stages:
        with FlopCounterMode(display=False) as flops, attention_written_out(model):
            action()
        once = median_seconds(action, device, rounds)
        rows.append({"stage": name, "seconds": count * once, "gflop": count * flops.get_total_flops() / 1e9})
    rest = seconds - sum(row["seconds"] for row in rows[1:])
    rows.append({"stage": "the rest", "seconds": max(0.0, rest), "gflop": 0.0})
    return {"matmul_gflops": 2 * 2048**3 / matmul_seconds / 1e9, "seconds": seconds, "stages": rows}


@contextlib.contextmanager
def attention_written_out(model: VisionTransformer) -> Iterator[None]:
    """A context in which the first block's attention is computed without the fused kernel, whose operations the counter
    does not know on a CPU."""
    attention = model.blocks[0].attn
    attention.forward = partial(attention.forward, return_attention=True)
    try:
        yield
    finally:
        del attention.forward


def step_parts(model: VisionTransformer) -> list[tuple[str, nn.Module, int, int]]:
    """The parts of a model that take time: (name, module, which of its calls, how many parts are like it)."""
    parts, calls = [], Counter()  # an activation may be called several times
    for name, module in model.patch_embed.named_modules(remove_duplicate=False):
        if not list(module.children()):
            parts.append((f"stem, {name.removeprefix('stages.')}", module, calls[module], 1))
            calls[module] += 1
    block, depth = model.blocks[0], len(model.blocks)
    return parts + [(f"blocks, {name}", getattr(block, name), 0, depth) for name in ("norm1", "attn", "norm2", "mlp")]


def forward_and_backward(
    model: nn.Module, module: nn.Module, call: int, images: torch.Tensor, amp: torch.dtype | None
) -> Callable[[], None]:
    """A function that runs one module of a model alone, forward and backward, on the input of its call number `call`
    when the model sees `images`."""
    inputs = []
    hook = module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with autocast(images.device, amp):
        model(images)
    hook.remove()
    needs_gradient, value = inputs[call].requires_grad, inputs[call].detach()

    def run():
        with autocast(images.device, amp):
            out = module(value.requires_grad_(needs_gradient))
        out = out[0] if isinstance(out, tuple) else out
        if out.requires_grad:
            out.backward(torch.ones_like(out))

    return run


def time_augmentation(images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of each augmentation policy on a batch of that shape, name -> seconds."""
    pixels = torch.rand(images.shape, device=images.device)
    return {
        name: median_seconds(lambda policy=policy: policy(pixels, torch.Generator()), images.device, rounds)
        for name, policy in POLICIES.items()
    }


def time_attention(device: torch.device) -> dict[str, float]:
    """Time attention extraction and a GIF for a 12-block model: what was done -> seconds."""
    model = build_model(TrainConfig.create(depth=12)).to(device).eval()
    images = torch.randn(100, 3, 32, 32, device=device)
    with torch.no_grad():
        model(images[:2], return_attention=True)  # warm up
        began = time.perf_counter()
        _, attention = model(images, return_attention=True)
        maps = times_uniform(attention[:, :, :, 0]).cpu()  # B x L x H x G x G, attention from CLS
    seconds = {"attention of 100 images": time.perf_counter() - began}
    began = time.perf_counter()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    titled = [(f"layer {i}, head {j}", values) for i, layer in enumerate(maps[0]) for j, values in enumerate(layer)]
    frames = attention_frames(picture, titled, title="attention from CLS", caption="")
    with tempfile.TemporaryDirectory() as folder:
        canvas.save_gif(frames, Path(folder) / "benchmark.gif", frame_ms=400)
    return {**seconds, f"a GIF of {len(frames)} frames": time.perf_counter() - began}


def torchvision_loader(config: TrainConfig, files: Sequence[tuple[Path, int]]) -> DataLoader:
    """The usual loader of image files, (path, label): torchvision's ImageFolder, a random-resized crop, a flip,
    float32, normalised."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.img_size, scale=config.crop_scale),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(config.mean, config.std),
        ]
    )
    workers = count_workers(config)
    folder = datasets.ImageFolder(find_layout(config.data_path).train, transform)
    folder.samples = [(str(path), label) for path, label in files]  # without those that are kept for the test
    return DataLoader(
        folder,
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def time_loaders(config: TrainConfig, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds in which "ours" and "torchvision" read all training images of a folder once, one value per round, and
    "shards" the same packed in tar files, if webdataset is installed; and how many images they are. They take turns,
    after a round that is not timed. Raises UserError as load_data does."""
    ours = load_data(config, ("train",)).train
    loaders = {"ours": ours, "torchvision": torchvision_loader(config, ours.dataset.files)}
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("webdataset"):
            pack(config.data_path, Path(folder) / "shards", images_per_shard=100)
            packed = dataclasses.replace(config, dataset="webdataset", data_path=f"{folder}/shards", cache_gb=0)
            loaders["shards"] = load_data(packed, ("train",)).train
        return time_passes(loaders, rounds), len(ours.labels)


def time_passes(loaders: dict[str, Iterable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each pass over each of the loaders, which take turns."""
    seconds = {name: [] for name in loaders}
    for number in trange(rounds + 1, desc="rounds", leave=False, disable=None):
        for name, loader in loaders.items():
            began, n = time.perf_counter(), 0
            for images, _ in loader:
                n += len(images)
            assert n == len(loaders["ours"].labels), name
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds
