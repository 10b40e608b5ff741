"""One HTML file from the sources beside this one, a model, and what it computes for some images."""

import base64
import gzip
import html
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from vitlab.attention.maps import describe_pool
from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError
from vitlab.datasets.images import open_images, to_pixels
from vitlab.datasets.official import list_split
from vitlab.export.program import Program
from vitlab.files import write_text
from vitlab.pictures.tiles import TIMES_MEAN, TIMES_UNIFORM, Scale
from vitlab.views.explorer.graphs import find_runtime, make_graphs
from vitlab.views.explorer.measure import RANDOM_ORDERS, TESTED, measure, removal_curves
from vitlab.views.view import View

SOURCES = Path(__file__).parent
MODULES = "data model pixels state draw panels belief tour own app".split()  # those that others import come first
PACKINGS = {  # others: float32
    "pixels": "u8",
    "attention": "rows",
    "rollout": "rows",
    "similarity": "cosine",
    "curves": "share",
}
NUM_IMAGES = 10  # test images, if the user does not say how many
MOST_TARGETS = 20  # with more classes, evidence is computed beforehand for the likeliest of each image, and so many


def pack(values: torch.Tensor, packing: str) -> bytes:
    """An array as bytes: "u8" and "f32" as they are; "rows" with 8 bits, 255 being the row's largest value, then the
    scale of each row in float32; "cosine" with 8 bits for -1 to 1, "share" for 0 to 1. Padded to 4 bytes."""
    array, scales = values.detach().numpy(), b""
    if packing == "f32":
        return array.astype("<f4").tobytes()
    if packing == "rows":
        scale = (array.max(-1, keepdims=True) / 255).astype("<f4")
        array, scales = array / scale.clip(1e-12), scale.tobytes()
    elif packing == "cosine":
        array = (array + 1) * 127.5
    elif packing == "share":
        array = array * 255
    codes = array.round().clip(0, 255).astype(np.uint8).tobytes()
    return codes + bytes(-len(codes) % 4) + scales


def choose_targets(shares: torch.Tensor) -> list[int]:
    """The classes for which evidence is computed, of the probabilities n x C of the images: the likeliest of each, then
    those with the highest probabilities, MOST_TARGETS in all if there are not more of the former."""
    likeliest = shares.argmax(1).tolist()
    ordered = dict.fromkeys([*likeliest, *shares.amax(0).argsort(descending=True).tolist()])
    return list(ordered)[: max(MOST_TARGETS, len(set(likeliest)))]


def pack_images(checkpoint: Checkpoint, images: list[tuple[str, str | None, Image.Image]]) -> tuple[bytes, dict]:
    """What the page shows of the images, (name, true class or None, image): the bytes, and where they lie."""
    model, block, entries, heads = checkpoint.model, bytearray(), [], []
    pixels_of_all = [to_pixels(image, model.img_size, model.in_chans, checkpoint.crop_pct) for _, _, image in images]
    with torch.no_grad():
        shares = torch.stack([Program(checkpoint)(pixels[None])[0].softmax(-1) for pixels in pixels_of_all])
    targets = choose_targets(shares)
    progress = tqdm(zip(images, pixels_of_all), desc="images", total=len(images), leave=False, disable=None)
    for (name, label, _), pixels in progress:
        found = measure(checkpoint, pixels, targets)
        curves = removal_curves(checkpoint, pixels, found)
        heads.append(torch.stack([found["distance"], found["entropy"]]))
        arrays = {"pixels": pixels.permute(1, 2, 0), **found, "curves": curves}
        entry = {"name": name, "label": label, "arrays": {}}
        for key, values in arrays.items():
            packing = PACKINGS.get(key, "f32")
            entry["arrays"][key] = {"packing": packing, "offset": len(block), "shape": list(values.shape)}
            block += pack(values, packing)
        entries.append(entry)
    means = dict(zip(("distance", "entropy"), torch.stack(heads).mean(0).flatten(1).tolist()))  # L * H values each
    return bytes(block), {"images": entries, "targets": targets, "means": means}


def model_facts(checkpoint: Checkpoint) -> dict:
    """What the page must know of the model."""
    model, config = checkpoint.model, checkpoint.config
    return {
        "name": checkpoint.run_name,
        "dataset": config.dataset,
        "classes": list(checkpoint.classes),
        "size": model.img_size,
        "channels": model.in_chans,
        "cropPct": checkpoint.crop_pct,
        "grid": model.grid_size,
        "layers": len(model.blocks),
        "heads": model.blocks[0].attn.num_heads,
        "width": model.pos_embed.shape[-1],
        "tokens": model.pos_embed.shape[1],
        "hasCls": model.has_cls,
        "pool": model.pool,
        "pooled": describe_pool(model),
        "head": config.head,
        "stem": config.stem,
        "tested": list(TESTED),
        "randomOrders": RANDOM_ORDERS,
        "meanColour": [round(255 * value) for value in checkpoint.mean],
        "scales": {"uniform": colour_scale(TIMES_UNIFORM), "mean": colour_scale(TIMES_MEAN), "cosine": COSINE},
    }


def colour_scale(scale: Scale) -> dict:
    """A scale for the page: its unit, limits and ticks, and 256 colours."""
    colours = scale.shade(np.linspace(0, 1, 256)).tolist()
    facts = {"unit": scale.unit, "limit": scale.limit, "low": scale.low, "ticks": scale.ticks(), "grey": scale.grey}
    return facts | {"colours": colours}


COSINE = colour_scale(Scale("cosine similarity", 1, low=-1))


def bundle() -> str:
    """The ES modules beside this file as one, each in a scope of its own: `const panels = (() => {...; return {its
    exports};})();`. They import names of each other alone, and all of them before use."""
    parts = []
    for name in MODULES:
        text = (SOURCES / f"{name}.js").read_text(encoding="utf-8")
        text = re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', r"const \1 = module_\2;", text, flags=re.M)
        exports = re.findall(r"^export (?:async )?(?:function|const) (\w+)", text, flags=re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        parts.append(f"const module_{name} = (() => {{\n{text}\nreturn {{ {', '.join(exports)} }};\n}})();")
    return "\n\n".join(parts)


def make_page(checkpoint: Checkpoint, images: list[tuple[str, str | None, Image.Image]]) -> str:
    """The page: a complete HTML document that asks for nothing from outside."""
    print(f"1 of 3: what the model sees in {len(images)} images", flush=True)
    block, about = pack_images(checkpoint, images)
    facts = json.dumps(model_facts(checkpoint) | about).replace("<", "\\u003c")
    print("2 of 3: the model as a program that browsers run; this takes longest", flush=True)
    graphs = make_graphs(checkpoint)
    print("3 of 3: packing", flush=True)
    parts = {"images": block, **graphs, **find_runtime()}
    packed = "\n".join(
        f'<script type="text/plain" id="{name}">{base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()}</script>'
        for name, data in parts.items()
    )
    fill = {
        "TITLE": html.escape(f"Inside a Vision Transformer: {checkpoint.run_name}"),
        "STYLE": (SOURCES / "style.css").read_text(encoding="utf-8"),
        "FACTS": facts,
        "PARTS": packed,
        "SCRIPT": bundle(),
    }
    page = (SOURCES / "index.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: fill[match[1]], page)


def pick_images(view: View) -> list[tuple[str, str | None, Image.Image]]:
    """(name, true class or None, image): those of --image_path, or --images test images, one of each class as far as
    there are any, and so on."""
    if view.args.image_path:
        folder = Path(view.args.image_path)
        found = open_images(folder, view.unreadable)
        return [(file.relative_to(folder).as_posix() if folder.is_dir() else file.name, None, i) for file, i in found]
    checkpoint, wanted = view.checkpoint, view.args.num_images or NUM_IMAGES
    labels, open_at = list_split(checkpoint.data_config(**view.run_settings), "test")
    seen, rounds, chosen = Counter(), [], []
    for index, label in enumerate(labels):
        rounds.append((seen[label], label, index))
        seen[label] += 1
    for _, label, index in sorted(rounds):
        if len(chosen) == wanted:
            break
        try:
            chosen.append((f"test image {index}", checkpoint.classes[label], open_at(index)))
        except UserError as error:
            print(f"left out: {error}")
    return chosen


def draw_explorer(view: View) -> list[Path]:
    """The page, as explorer.html, about --images test images or those of --image_path."""
    images = pick_images(view)
    if not images:
        raise UserError("; ".join(view.unreadable) or f"{view.checkpoint.config.dataset} has no test images to show")
    view.model.cpu()  # where graphs are traced
    path = write_text(view.file("explorer", ".html"), make_page(view.checkpoint, images))
    print(f"{path.stat().st_size / 1e6:.1f} MB, {len(images)} images; open it in a browser")
    return [path]
