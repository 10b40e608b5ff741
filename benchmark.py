"""Speed of a training step, beside its peers.

    python benchmark.py                       # the default model, batch 128, on the device there is
    python benchmark.py --device cpu --rounds 20

The candidates take turns, one step each a round, so that a machine that slows down slows all of
them. Each ratio is taken round by round; the median and the middle half are printed and written to
output/benchmark/report.json.

    ours      model.py, bf16 where the device has it (--amp), fused AdamW
    textbook  separate query, key and value projections, softmax written out, float32, AdamW unfused
    timm      timm's VisionTransformer, dtype and optimiser as ours (where timm is installed)

Then each augmentation policy's time, as a share of our step, and the time of looking into a model of
12 blocks: the attention of 100 images, and a GIF of it.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import trange

from vitlab.attention.maps import to_grid
from vitlab.catalog import ARGUMENTS
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import SETTINGS, TrainConfig, add_flags
from vitlab.datasets.augment import POLICIES
from vitlab.files import write_json
from vitlab.hardware import autocast, describe_hardware, find_device, pick_amp
from vitlab.models.registry import build_model
from vitlab.pictures import canvas
from vitlab.pictures.tiles import attention_frames
from vitlab.training.optimizers import make_optimizers


class TextbookAttention(nn.Module):
    """Multi-head self-attention as tutorials write it."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.queries, self.keys, self.values, self.out_projection = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x, return_attention=False):
        B, N, D = x.shape
        q, k, v = (
            layer(x).view(B, N, self.num_heads, -1).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        x = torch.softmax(scores, dim=-1) @ v
        return self.out_projection(x.transpose(1, 2).reshape(B, N, D)), None


def textbook(config):
    """Our model with its attention and dropout written the tutorials' way."""
    model = build_model(config)
    for block in model.blocks:
        block.attn = TextbookAttention(config.embed_dim, config.num_heads)
        block.mlp.drop = nn.Dropout(config.drop_rate)
    return model


def timm_model(config):
    """timm's VisionTransformer of the same architecture; ImportError where timm has none."""
    if config.stem != "linear" or config.head != "linear" or config.pool == "seq" or config.drop_path_rate:
        raise ImportError("a stem, a pooling, a head or stochastic depth of our own")
    from timm.models.vision_transformer import VisionTransformer

    names = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
    model = VisionTransformer(
        **{name: getattr(config, name) for name in (*names, "qkv_bias", "attn_drop_rate")},
        global_pool="token" if config.pool == "cls" else "avg",
    )
    for block in model.blocks:
        block.mlp.drop1 = nn.Dropout(config.drop_rate)
    return model


def make_step(model, optimizer, images, labels, amp):
    """A function that takes one training step, and waits for it."""

    def step():
        with autocast(images.device, amp):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def seeing(device):
    """Seconds for looking into a model of 12 blocks: a dict of what -> seconds."""
    config = TrainConfig.create(depth=12)
    model = build_model(config).to(device).eval()
    images = torch.randn(100, 3, 32, 32, device=device)
    with torch.no_grad():
        model(images[:2], return_attention=True)  # warm up
        began = time.perf_counter()
        _, attention = model(images, return_attention=True)
        maps = to_grid(attention[:, :, :, 0]).cpu()  # B x L x H x G x G
    seconds = {"attention of 100 images": time.perf_counter() - began}
    began = time.perf_counter()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    each = [(f"layer {i}, head {j}", values) for i, layer in enumerate(maps[0]) for j, values in enumerate(layer)]
    frames = attention_frames(picture, each, title="attention from CLS", captions=("", ""), note="")
    with tempfile.TemporaryDirectory() as folder:
        canvas.save_gif(frames, Path(folder) / "benchmark.gif", frame_ms=400)
    return {**seconds, f"a GIF of {len(frames)} frames": time.perf_counter() - began}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--rounds", default="12", help="timed rounds, after two untimed (default: %(default)s)")
    add_flags(parser, ("batch_size", "learning_rate", "device", "amp", "output_path", *ARGUMENTS["vit"]))
    flags = vars(parser.parse_args())
    rounds = flags.pop("rounds")
    if not rounds.isdecimal() or int(rounds) < 1:
        raise UserError(f"--rounds {rounds}: give a whole number from 1 on")
    config = TrainConfig.create({name: value for name, value in flags.items() if name in SETTINGS})
    device = find_device(config.device)
    amp = pick_amp(device, config.amp)
    images = torch.randn(config.batch_size, config.in_chans, config.img_size, config.img_size, device=device)
    labels = torch.randint(config.num_classes, (config.batch_size,), device=device)

    candidates = {}
    ours = build_model(config).to(device)
    candidates["ours"] = make_step(ours, make_optimizers(ours, config)[0], images, labels, amp)
    plain = textbook(config).to(device)
    unfused = torch.optim.AdamW(plain.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    candidates["textbook"] = make_step(plain, unfused, images, labels, None)
    with contextlib.suppress(ImportError):
        theirs = timm_model(config).to(device)
        candidates["timm"] = make_step(theirs, make_optimizers(theirs, config)[0], images, labels, amp)

    seconds = {name: [] for name in candidates}
    for number in trange(int(rounds) + 2, desc="rounds", leave=False, disable=None):
        for name, step in candidates.items():
            began = time.perf_counter()
            step()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)

    print(
        f"{describe_hardware(device)}, {'bf16' if amp else 'float32'}, torch {torch.__version__}, "
        f"batch {config.batch_size}, {rounds} rounds"
    )
    report = {
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "config": vars(config),
        "steps": {},
    }
    for name, times in seconds.items():
        ratios = sorted(other / own for other, own in zip(times, seconds["ours"]))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        speed = config.batch_size / statistics.median(times)
        words = "" if name == "ours" else f"; ours is {middle:.2f} times as fast (middle half {low:.2f} to {high:.2f})"
        print(f"{name:>8}: {speed:6.0f} images/s{words}")
        report["steps"][name] = {"seconds": times, "images_per_second": speed, "ours_is_faster_by": [low, middle, high]}
    pixels = torch.rand(images.shape, device=device)
    step_seconds = statistics.median(seconds["ours"])
    report["augmentation"] = {}
    for name, policy in POLICIES.items():
        shares = []
        for _ in range(int(rounds)):
            began = time.perf_counter()
            policy(pixels, torch.Generator()).flatten()[0].item()  # item: wait for an accelerator
            shares.append((time.perf_counter() - began) / step_seconds)
        share = statistics.median(shares)
        print(f"{name:>14}: {share:6.1%} of our step")
        report["augmentation"][name] = {"share_of_step": share}
    report["seeing"] = seeing(device)
    for what, seconds in report["seeing"].items():
        print(f"{what}: {seconds:.2f} s")
    print(write_json(Path(config.output_path) / "benchmark" / "report.json", report))


if __name__ == "__main__":
    run_cli(main)
