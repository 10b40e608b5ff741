"""How a Vision Transformer works, in six diagrams.

    python -m demos.diagrams                        # demos/diagrams/*.png, in half a minute
    python -m demos.diagrams --output_path DIR

Nothing is made up: the numbers are those of a small model (2 blocks 16 wide, 4 heads), which is trained
on scikit-learn's digits first, for one validation image of them. D is 16 here, H 4, P 16 patches of 2 x 2
pixels, N 17 tokens.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import torch

from demos.drawing import BLUE, FAINT, GREEN, INK, VERMILLION, Drawing
from model import VisionTransformer
from vitlab.attention.maps import look
from vitlab.cli import Parser, run_cli
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.files import writable_folder
from vitlab.models.registry import build_model
from vitlab.training.loop import fit

QKV = {"query": BLUE, "key": VERMILLION, "value": GREEN}
HEADS = ("#56b4e9", "#e69f00", "#cc79a7", "#555555")


# ----------------------------------------------------------------------------------- what is drawn


def trained_model(epochs: int = 15) -> tuple[VisionTransformer, torch.Tensor]:
    """A small model of digits, trained on the spot, and a validation image 1 x 1 x 8 x 8."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.create(
            **dict(stem="linear", pool="cls", embed_dim=16, depth=2, num_heads=4, drop_rate=0.0),
            **dict(dataset="digits", augment="none", epochs=epochs, learning_rate=5e-3, no_test=True),
            **dict(device="cpu", amp="off", model_path=folder, output_path=folder),
        )
        sets, model = load_data(config, splits=("train", "val")), build_model(config)
        with contextlib.redirect_stdout(io.StringIO()):  # without its progress
            fit(model, sets, config)
    images, _ = next(iter(sets.val))
    return model.eval().requires_grad_(False), images[24:25]  # a two


def patches_of(image: torch.Tensor, size: int) -> torch.Tensor:
    """The patches of an image 1 x C x S x S as rows: P x C * size * size."""
    return torch.nn.functional.unfold(image, size, stride=size)[0].T


class Example:
    """A model and what it computes for one image, with a name for everything that is drawn."""

    def __init__(self, model: VisionTransformer, image: torch.Tensor):
        self.model, self.image = model, image  # 1 x 1 x 8 x 8
        inside = look(model, image)
        self.hidden, self.attention = inside.hidden, inside.attention[0]  # L x H x N x N
        self.tokens = torch.cat([model.cls_token[0], self.hidden["patch_embed"][0]])  # N x D, before the positions

    def qkv(self, i: int) -> torch.Tensor:
        """Queries, keys and values of block i, which count from 0: 3 x H x N x D/H."""
        attn = self.model.blocks[i].attn
        qkv = attn.qkv(self.hidden[f"blocks.{i}.norm1"][0])  # N x 3D
        return qkv.unflatten(1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)


# ------------------------------------------------------------------------------------ the diagrams


def patch_embedding(example: Example, path: Path) -> Path:
    model, image, tokens = example.model, example.image, example.hidden["patch_embed"][0]
    conv, G = model.patch_embed.proj, model.grid_size
    size = conv.kernel_size[0]
    flat = patches_of(image, size)  # P x 4
    weight = conv.weight.flatten(1).T  # 4 x D
    assert torch.allclose(flat @ weight + conv.bias, tokens, atol=1e-5)

    page = Drawing("Patch embedding: an image becomes a list of tokens", 3.95)
    top, tall, limits, chosen = 1.05, 1.76, (image.min(), image.max()), divmod(9, 4)
    x, cell, apart, gap = 0.3, tall / 8, (tall - 0.3) / 8, 0.1
    page.matrix(x, top, image[0, 0], cell, kind="grey", lines=False)
    page.caption(x + tall / 2, top, "8 × 8 pixels, cut into 16")
    page.arrow((x + tall + 0.08, top + tall / 2), (x + tall + 0.42, top + tall / 2))
    right = x + tall + 0.5
    page.caption(right + tall / 2, top, "16 patches of 2 × 2")
    for place, patch in enumerate(flat):
        row, column = divmod(place, G)
        left, upper = right + column * (2 * apart + gap), top + row * (2 * apart + gap)
        page.matrix(left, upper, patch.view(size, size), apart, kind="grey", limits=limits, lines=False)
        page.frame(x + 2 * cell * column, top + 2 * cell * row, 2 * cell, 2 * cell, color=FAINT, lw=1.0)
        if (row, column) == chosen:
            page.frame(left, upper, 2 * apart, 2 * apart, color=VERMILLION, lw=3)
    page.frame(x + 2 * cell * chosen[1], top + 2 * cell * chosen[0], 2 * cell, 2 * cell, color=VERMILLION, lw=3)
    page.arrow((right + tall + 0.08, top + tall / 2), (right + tall + 0.42, top + tall / 2))

    x, cell = right + tall + 0.5, tall / 16
    for values, words, after, room, kind in (
        (flat, "as rows", "×", 0.34, "grey"),
        (weight, "weights", "+ b =", 0.6, "signed"),
        (tokens, "16 tokens", "", 0, "signed"),
    ):
        upper = top + (tall - cell * len(values)) / 2
        wide, _ = page.matrix(x, upper, values, cell, kind=kind)
        page.caption(x + wide / 2, upper, words)
        page.size(x + wide / 2, top + tall, values)
        if len(values) == len(tokens):
            page.frame(x, top + (chosen[0] * G + chosen[1]) * cell, wide, cell, color=VERMILLION, lw=2.2)
        page.text(x + wide + room / 2, top + tall / 2, after, size=13)
        x += wide + room
    page.footer("PatchEmbed in model.py does this in one convolution, whose kernel and stride are the patch size.")
    return page.save(path)


def cls_and_positions(example: Example, path: Path) -> Path:
    tokens, positions, G = example.tokens, example.model.pos_embed[0], example.model.grid_size
    page = Drawing("The CLS token in front, and a position added to every token", 4.2)
    top, cell, x = 1.05, 0.118, 0.85
    tall = cell * len(tokens)
    page.text(x - 0.08, top + cell / 2, "CLS", color=VERMILLION, ha="right", weight="bold")
    for place in (1, 6, 11, 16):
        page.text(x - 0.08, top + cell * (place + 0.5), str(place), size=10, color=FAINT, ha="right")
    for values, words, after, room in (
        (tokens, "CLS and 16 patches", "+", 0.42),
        (positions, "positions", "=", 0.42),
        (tokens + positions, "what block 1 reads", "", 0.4),
    ):
        wide, _ = page.matrix(x, top, values, cell)
        page.frame(x, top, wide, cell, color=VERMILLION, lw=2.2)
        page.caption(x + wide / 2, top, words)
        page.size(x + wide / 2, top + tall, values)
        page.text(x + wide + room / 2, top + tall / 2, after, size=16)
        x += wide + room

    alike = torch.nn.functional.cosine_similarity(positions[1:, None], positions[None, 1:], dim=2)  # P x P
    gap = 0.07
    small = (tall - (G - 1) * gap) / G**2
    for place, row in enumerate(alike):
        left, upper = x + place % G * (G * small + gap), top + place // G * (G * small + gap)
        page.matrix(left, upper, row.view(G, G), small, limits=(-1, 1), lines=False)
    page.caption(x + tall / 2, top, "which positions are alike")
    page.text(x + tall / 2, top + tall + 0.2, "cosine of each with all 16", size=10, color=FAINT)
    page.footer("CLS and positions are learned; the positions start from sines and cosines of row and column.")
    return page.save(path)


def projection(example: Example, path: Path, block: int = 1, token: int = 10) -> Path:
    attn, x = example.model.blocks[block].attn, example.hidden[f"blocks.{block}.norm1"][0, token]
    D, H = len(x), attn.num_heads
    results = example.qkv(block)[:, :, token].flatten(1)  # 3 x D
    page = Drawing("Query, key and value: three projections of one token", 4.95)
    top, cell = 1.05, 0.125
    tall = cell * D
    page.text(1.2, top + tall / 2, f"token {token},\nafter the\nblock's first\nnorm", ha="right")
    for i, (name, color) in enumerate(QKV.items()):
        weight, bias = attn.qkv.weight[i * D : (i + 1) * D].T, attn.qkv.bias[i * D : (i + 1) * D]
        assert torch.allclose(x @ weight + bias, results[i], atol=1e-5)
        left, below = 1.65 + i * 2.83, top + tall + 0.5
        page.matrix(left - 0.35, top, x[:, None], cell)
        page.text(left - 0.11, top + tall / 2, "×", size=14)
        page.matrix(left, top, weight, cell, frame=color)
        page.caption(left + tall / 2, top, f"{name} weights, {D} × {D}", color=color)
        page.arrow((left + tall / 2, top + tall + 0.05), (left + tall / 2, below - 0.04), color=color)
        page.text(left + tall / 2 + 0.12, top + tall + 0.22, "+ b", ha="left", color=color)
        page.matrix(left, below, results[i], cell)
        for head in range(H):
            page.frame(left + head * tall / H, below, tall / H, cell, color=color, lw=1.8)
            page.text(left + (head + 0.5) * tall / H, below + 0.28, f"head {head + 1}", size=8.5, color="#666666")
        page.text(left - 0.08, below + cell / 2, name, color=color, ha="right", weight="bold")
    page.footer(
        "The token, a column, weighs the rows of each matrix; their sum, plus b, is the row below. model.py keeps",
        f"the three matrices in one, attn.qkv. Each head has {D // H} of the {D} values of every query, key and value.",
    )
    return page.save(path)


def attention(example: Example, path: Path, block: int = 1, head: int = 2) -> Path:
    q, k, v = example.qkv(block)[:, head]  # each N x D/H
    scores = q @ k.T / q.shape[1] ** 0.5
    shares = scores.softmax(dim=1)
    assert torch.allclose(shares, example.attention[block, head], atol=1e-5)

    page = Drawing(r"One attention head:  softmax$(\,Q K^\top / \sqrt{d}\,)\;V$", 6.2)
    top, cell, x = 1.1, 0.109, 0.3
    tall = cell * len(q)
    for values, words, after, room, color, kind in (
        (q, "Q", "×", 0.3, BLUE, "signed"),
        (k.T, r"$K^\top$", r"$/\,\sqrt{d}\;=$", 0.68, VERMILLION, "signed"),
        (scores, "scores", "softmax", 0.76, None, "signed"),
        (shares, "attention", "×", 0.3, None, "share"),
        (v, "V", "=", 0.3, GREEN, "signed"),
        (shares @ v, "new", "", 0, None, "signed"),
    ):
        upper = top + (tall - cell * len(values)) / 2
        wide, _ = page.matrix(x, upper, values, cell, kind=kind, frame=color)
        page.caption(x + wide / 2, upper, words, color=color or INK, size=12)
        page.size(x + wide / 2, top + tall, values)
        middle = top + tall / 2
        page.text(x + wide + room / 2, middle - 0.2 * (after == "softmax"), after, size=12)
        if after == "softmax":
            page.arrow((x + wide + 0.1, middle), (x + wide + room - 0.1, middle))
        if values is shares:
            page.frame(x, top, wide, cell, color=VERMILLION)
        x += wide + room

    # the row of CLS, at the places of the patches
    row, G = shares[0], example.model.grid_size
    upper, side, x, most = top + tall + 0.85, 1.6, 4.05, row.max()
    page.text(
        0.3,
        upper + side / 2,
        f"The framed first row is where CLS looks.\n"
        f"It sums to 1: {100 * row[0]:.0f} % go to CLS itself, the\n"
        "rest to the 16 patches, drawn here at\ntheir places.",
        ha="left",
    )
    for values, left, words in (
        (row[:1, None], x, "CLS"),
        (row[1:].view(G, G), x + 0.75, "the patches, in %"),
    ):
        wide, _ = page.matrix(left, upper, values, side / G, kind="share", limits=(0, most))
        page.percent(left, upper, values, side / G, most=most)
        page.caption(left + wide / 2, upper, words)
    page.matrix(x + side + 1.3, upper, example.image[0, 0], side / 8, kind="grey", lines=False)
    page.caption(x + side * 1.5 + 1.3, upper, "the image")
    page.footer(
        f"Query i meets key j in row i, column j; d, here {q.shape[1]}, is their length. In attention, bright is more."
    )
    return page.save(path)


def heads(example: Example, path: Path, block: int = 1) -> Path:
    attn, (_, _, v) = example.model.blocks[block].attn, example.qkv(block)  # v: H x N x D/H
    maps = example.attention[block]  # H x N x N
    news = maps @ v
    joined = news.transpose(0, 1).flatten(1)  # N x D
    out = joined @ attn.proj.weight.T + attn.proj.bias
    assert torch.allclose(out, example.hidden[f"blocks.{block}.attn"][0], atol=1e-5)

    page = Drawing("Several heads look at once; one projection joins what they found", 6.05)
    top, cell, big, lower, start = 1.45, 0.072, 0.106, 3.35, 3.5
    tall, D, H = cell * len(out), out.shape[1], len(maps)
    narrow = cell * D / H
    for h, color in enumerate(HEADS):
        x = 0.3 + h * 2.42
        page.caption(x + 1.08, top - 0.3, f"head {h + 1}", weight="bold")
        page.caption(x + tall / 2, top, "attention", size=10)
        page.matrix(x, top, maps[h], cell, kind="share", lines=False, frame=color)
        for values, sign, words in ((v[h], "×", "V"), (news[h], "=", "new")):
            x += (tall if sign == "×" else narrow) + 0.23
            page.text(x - 0.115, top + tall / 2, sign, size=12)
            page.matrix(x, top, values, cell, frame=color if sign == "=" else GREEN)
            page.caption(x + narrow / 2, top, words, size=10)
        page.arrow((x + narrow / 2, top + tall + 0.04), (start + (h + 0.5) * big * D / H, lower - 0.03), color=color)
    x = start
    for values, words, after, room in (
        (joined, "side by side", "×", 0.36),
        (attn.proj.weight.T, "output weights", "+ b =", 0.66),
        (out, "added to the tokens", "", 0),
    ):
        wide, _ = page.matrix(x, lower, values, big)
        page.text(x + wide / 2, lower + big * len(out) + 0.27, words, va="baseline")
        page.text(x + wide + room / 2, lower + big * len(out) / 2, after, size=13)
        x += wide + room
    for h, color in enumerate(HEADS):
        page.frame(start + h * big * D / H, lower, big * D / H, big * len(out), color=color, lw=2.4)
    page.text(
        0.3,
        lower + big * len(out) / 2,
        f"Each head has query, key and\nvalue weights of its own, and so\nits own attention (bright: more).\n"
        f"It writes {D // H} of the {D} columns, and\nthe output weights mix them.",
        ha="left",
    )
    page.footer()
    return page.save(path)


def layer_norm(example: Example, path: Path, block: int = 1, token: int = 3) -> Path:
    norm, x = example.model.blocks[block].norm1, example.hidden[f"blocks.{block - 1}"][0, token]
    normed = (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt()
    scaled = normed * norm.weight + norm.bias
    assert torch.allclose(scaled, norm(x), atol=1e-5)

    page = Drawing("Layer norm: each token on its own gets mean 0 and standard deviation 1", 4.75)
    zero, wide, unit = 2.45, 2.6, 0.46
    for i, (values, words, formula) in enumerate(
        (
            (x, "a token", "$x$"),
            (normed, "normed", r"$(x - \mathrm{mean})\;/\;\mathrm{std}$"),
            (scaled, "scaled and shifted", r"$\times\;\mathrm{weight} + \mathrm{bias}$"),
        )
    ):
        left, mean, std = 0.65 + i * 3.2, values.mean().item(), values.std(correction=0).item()
        page.text(left + wide / 2, 0.9, words, weight="bold")
        page.text(left + wide / 2, 1.18, formula, size=12)
        page.bars(left, zero, values.tolist(), wide, unit, mean=mean, std=std)
        numbers = f"mean {mean:.2f}, std {std:.2f}".replace("-0.00", "0.00").replace("-", "−")
        page.text(left + wide / 2, zero + 1.3, numbers)
    page.footer(
        f"Bars: the {len(x)} values of token {token} before block {block + 1}. Dashed: their mean. Grey: one standard "
        "deviation to each side.",
        "Weight and bias are learned, one of each for every place in the token; they start as 1 and 0.",
        colours=False,
    )
    return page.save(path)


DIAGRAMS = (patch_embedding, cls_and_positions, projection, attention, heads, layer_norm)


def main():
    parser = Parser(description="Draw how a Vision Transformer works.")
    here = os.path.relpath(Path(__file__).parent / "diagrams")
    parser.add_argument("--output_path", default=here, help="folder of the pictures (default: %(default)s)")
    folder = writable_folder(Path(parser.parse_args().output_path), "--output_path")
    example = Example(*trained_model())
    for draw in DIAGRAMS:
        print(draw(example, folder / f"{draw.__name__}.png"))


if __name__ == "__main__":
    run_cli(main)
