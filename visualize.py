"""Every picture of a trained model from one command each.

    python visualize.py gif --index 21               # attention, a frame for each layer and head
    python visualize.py maps --image_path cat.jpg    # the same as one sheet
    python visualize.py rollout --index 21           # attention through all layers, and by class
    python visualize.py cls --index 21               # from and to the CLS token, and its values
    python visualize.py tokens --index 21            # where each patch looks
    python visualize.py gradcam --index 21           # evidence for the likeliest classes
    python visualize.py hidden --index 21            # inside the blocks
    python visualize.py embeddings                   # the test set in two dimensions, by class
    python visualize.py positions                    # similarity of the position embeddings
    python visualize.py filters                      # what the patch embedding looks for
    python visualize.py training                     # the run's curves, animated
    python visualize.py faithfulness                 # which of the maps deserve belief

Layers and heads count from 0. Architecture, classes and normalisation come from the checkpoint; a GIF
of `gif` goes to attention_map_gif/, everything else to output/NAME/visualize/, or to --output_path.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vitlab.attention.attribution import attention_gradients, attention_rollout, grad_cam, gradient_rollout
from vitlab.attention.faithfulness import CURVE_KINDS, area, measure_faithfulness
from vitlab.attention.maps import (
    attention_from,
    attention_to,
    describe_pool,
    features,
    pool_weights,
    to_grid,
    token_attention,
)
from vitlab.checkpoint import DEFAULT_MODEL, load_checkpoint, read_checkpoint
from vitlab.cli import Parser, UserError, run_cli
from vitlab.config import SETTINGS, add_flags, in_groups, read_settings
from vitlab.datasets import images
from vitlab.datasets.images import image_files, open_images
from vitlab.datasets.splits import load_data, test_image
from vitlab.evaluation import metrics
from vitlab.files import save_npy, write_json
from vitlab.hardware import autocast, find_device, pick_amp
from vitlab.models.registry import cam_layer
from vitlab.pictures import canvas, figures
from vitlab.pictures.tiles import (
    OWN_SCALE,
    SCALE,
    attention_frames,
    embedded_tiles,
    enlarge,
    hidden_tiles,
    mark,
    overlay,
    shade,
    sheet,
)


def parse_args():
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").split(":")[0].rstrip("."))
        command.add_argument(
            "--model_path",
            default=DEFAULT_MODEL,
            help="a checkpoint or run folder (default: %(default)s)",
        )
        command.add_argument("--output_path", help="a folder, or the file to write")
        add_flags(command, ("data_path", "device", "dataset", *in_groups("model")))
        if name in OF_IMAGES:
            command.add_argument("--index", help="which test image, from 0 (default: 21)")
            command.add_argument("--image_path", metavar="PATH", help="an image, or a folder of images, instead")
            command.add_argument("--layers", nargs="+", metavar="I", help=f"(default: {DEFAULT_LAYERS[name]})")
        if name in ("gif", "maps", "rollout", "cls", "tokens"):
            default = "each" if name in ("gif", "maps") else "mean"
            command.add_argument("--heads", nargs="+", metavar="I|mean", help=f"(default: {default})")
        if name in ("rollout", "gradcam"):
            command.add_argument("--target", metavar="CLASS", help="by name or number (default: the likeliest three)")
        if name in ("gif", "tokens", "hidden", "training"):
            command.add_argument("--frame_ms", default="400", help="duration of a frame (default: %(default)s)")
        if name == "hidden":
            command.add_argument("--save_npy", action="store_true", help="also the values, as .npy")
        if name == "embeddings":
            command.add_argument("--method", default="both", help="pca, tsne or both (default: both)")
        if name in ("embeddings", "faithfulness"):
            command.add_argument("--num_images", help=f"test images (default: up to {NUM_IMAGES[name]})")
    args = parser.parse_args()
    if getattr(args, "index", None) is not None and args.image_path:
        raise UserError("--index and --image_path both name an image; keep one")
    return args


def whole(text, name, *, low=0, high):
    """A whole number in low..high; UserError, naming the flag and the range, where it is none."""
    digits = str(text).removeprefix("-")
    if not digits.isdecimal() or int(text) < low or int(text) > high:
        raise UserError(f"{name} {text}: give a whole number from {low} to {high}")
    return int(text)


@dataclass
class Subject:
    """One image, and what the model makes of it: tensors as in model.py, without the batch."""

    name: str  # "cifar-index-21", or the file's
    image: object  # PIL, square
    batch: torch.Tensor  # 1 x in_chans x img_size x img_size
    guesses: list  # [(class, probability), ...], best first
    truth: str | None
    attention: torch.Tensor | None = None  # L x H x N x N; of a VisionTransformer alone, as what follows
    hidden: dict | None = None  # of model.py's return_hidden
    weights: torch.Tensor | None = None  # N: pool_weights

    @property
    def verdict(self):
        guess, share = self.guesses[0]
        return f"{guess} {share:.1%}" + (f" (true: {self.truth})" if self.truth else "")


class View:
    """A checkpoint, the arguments, and where the pictures go."""

    def __init__(self, args):
        given = {name: value for name, value in vars(args).items() if name in SETTINGS and name != "output_path"}
        settings = read_settings(given)
        expected = {name: settings.pop(name) for name in list(settings) if name in ("dataset", *in_groups("model"))}
        self.args = args
        self.found = load_checkpoint(args.model_path, **expected)
        for note in self.found.notes:
            print(note)
        self.settings = {name: settings.get(name, SETTINGS[name].default) for name in ("data_path", "device")}
        self.model, self.name = self.found.model, self.found.run_name
        self.model.to(find_device(self.settings["device"]))
        self.bad = []  # what images could not be read
        self.frame_ms = whole(getattr(args, "frame_ms", 400), "--frame_ms", low=20, high=60_000)
        kind = self.found.config.model
        if kind == "vit":
            self.depth, self.n_heads = len(self.model.blocks), self.model.blocks[0].attn.num_heads
            self.pooled = describe_pool(self.model)
        elif args.command not in OF_BASELINES or (args.command == "gradcam" and not cam_layer(kind, self.model)):
            others = " and ".join(name for name in OF_BASELINES if name != "gradcam" or cam_layer(kind, self.model))
            raise UserError(f"{args.command}: {args.model_path} is a {kind}; of it there are {others}")
        self.out = Path(args.output_path) if args.output_path else None
        one_file = self.out is not None and self.out.suffix in (".gif", ".png") and not self.out.is_dir()
        self.out_file = self.out if one_file else None

    def file(self, stem, suffix, folder=None):
        """Where a picture goes."""
        if self.out_file and self.out_file.suffix == suffix:
            return self.out_file
        if self.out_file:
            return self.out_file.with_name(f"{stem}{suffix}")
        return (self.out or folder or Path("output") / self.name / "visualize") / f"{stem}{suffix}"

    def layers(self, default):
        """--layers, checked."""
        last = self.depth - 1
        if getattr(self.args, "layers", None):
            return [whole(text, "--layers", high=last) for text in self.args.layers]
        return {
            "all": list(range(self.depth)),
            "last": [last],
            "first middle last": sorted({0, self.depth // 2, last}),
        }[default]

    def heads(self, default):
        """--heads, checked: a list of numbers and "mean"."""
        words = self.args.heads or default
        return [text if text == "mean" else whole(text, "--heads", high=self.n_heads - 1) for text in words]

    def target(self):
        """--target as (the class's number, its name); None without it."""
        text, classes = self.args.target, self.found.classes
        if text is None:
            return None
        if text in classes:
            return classes.index(text), text
        if text.isdecimal() and int(text) < len(classes):
            return int(text), classes[int(text)]
        names = f" ({', '.join(classes)})" if len(classes) <= 20 else ""
        raise UserError(f"--target {text}: give a class from 0 to {len(classes) - 1}{names}")

    def subjects(self):
        """The images that the arguments name, one after another."""
        args = self.args
        if args.image_path:
            n = len(image_files(args.image_path))
            if self.out_file and n > 1:
                raise UserError(f"--output_path {self.out} is one file for {n} images; give a folder")
            for file, image in open_images(args.image_path, self.bad):
                yield self.subject(file.stem, images.square(image, max(224, self.model.img_size)), image, None)
            return
        config = self.found.data_config(**self.settings)
        if not (args.index or "21").removeprefix("-").isdecimal():
            raise UserError(f"--index {args.index}: give a whole number")
        index = int(args.index or 21)
        image, label = test_image(config, index)
        name = f"{config.dataset.removesuffix('10')}-index-{index}"
        yield self.subject(name, images.square(image, self.model.img_size), image, self.found.classes[label])

    def test_images(self, *, low):
        """--num_images of the test split, spread evenly over it, and their labels."""
        config = self.found.data_config(**self.settings)
        sets = load_data(config, splits=("test",), mean=self.found.mean, std=self.found.std)
        most = len(sets.test.labels)
        asked = self.args.num_images or min(NUM_IMAGES[self.args.command], most)
        return sets.test.sample(whole(asked, "--num_images", low=low, high=most))

    def subject(self, name, square, image, truth):
        batch = self.found.batch(image)
        if self.found.config.model != "vit":
            with torch.no_grad():
                guesses = self.found.name(self.model(batch)[0])
            return Subject(name, square, batch, guesses, truth)
        with torch.no_grad():
            logits, attention, hidden = self.model(batch, return_attention=True, return_hidden=True)
            weights = pool_weights(self.model, hidden)
        hidden = {name: values[0].float().cpu() for name, values in hidden.items()}
        guesses = self.found.name(logits[0])
        return Subject(name, square, batch, guesses, truth, attention[0].float().cpu(), hidden, weights[0].cpu())

    def title(self, subject, words):
        return f"{self.name}, {words}\n{subject.name}: {subject.verdict}"


def head_maps(maps, head):
    """Of ... x H x N the values of a head, or of their mean."""
    return maps.mean(-2) if head == "mean" else maps[..., head, :]


def head_words(head):
    return "mean head" if head == "mean" else f"head {head}"


def seen_from(subject):
    """Attention from the pooled token: L x H x N."""
    return attention_from(subject.attention[None], subject.weights[None])[0]


def each_map(view, subject):
    """(layer, head, attention from the pooled token G x G) of the layers and heads asked for, else all."""
    seen = seen_from(subject)
    for layer, head in itertools.product(view.layers("all"), view.heads(list(range(view.n_heads)))):
        yield layer, head, to_grid(head_maps(seen[layer], head))


# -------------------------------------------------------------------------------- of single images


def gif(view, subject):
    """Attention from CLS, a frame for each layer and head."""
    each = [
        (f"layer {layer} of 0 to {view.depth - 1}, {head_words(head)}", values)
        for layer, head, values in each_map(view, subject)
    ]
    guess, share = subject.guesses[0]
    captions = (f"true class: {subject.truth}" if subject.truth else subject.name, f"taken for {guess}, {share:.1%}")
    title = f"attention from {view.pooled}"
    frames = attention_frames(subject.image, each, title=title, captions=captions, note=view.name)
    path = view.file(subject.name, ".gif", Path("attention_map_gif"))
    return [canvas.save_gif(frames, path, frame_ms=view.frame_ms, hold=3)]


def maps(view, subject):
    """Attention from CLS, layers x heads, as one sheet."""
    tiles = []
    for layer, head, values in each_map(view, subject):
        words = f"layer {layer}, {head_words(head)}\nup to {values.max():.2f}"
        tiles.append((words, overlay(subject.image, values, 112)))
    title = view.title(subject, f"attention from {view.pooled}")
    image = sheet(tiles, columns=len(tiles) // len(view.layers("all")), title=title, note=SCALE)
    return [canvas.save_image(image, view.file(f"{subject.name}-maps", ".png"))]


def class_maps(view, subject, make):
    """Tiles of make(target) -> G x G for --target, or for the likeliest three classes."""
    wanted = view.target()
    shares = dict(subject.guesses)
    names = [wanted[1]] if wanted else [name for name, _ in subject.guesses[:3]]
    tiles = []
    for name in names:
        values = make(torch.tensor([view.found.classes.index(name)], device=subject.batch.device))
        words = f"for {name}" + (f", {shares[name]:.1%}" if name in shares else "")
        tiles.append((words, overlay(subject.image, values.cpu(), 160)))
    return tiles


def rollout(view, subject):
    """Attention rollout up to each layer, of --heads, and gradient rollout by class, of all heads."""
    weights = subject.weights

    def gradient(target):
        found = attention_gradients(view.model, subject.batch, target)
        return to_grid(gradient_rollout(*found)[0])

    tiles = [("image", enlarge(subject.image, 160))]
    heads = [head for head in view.heads(["mean"]) if head != "mean"]
    if heads and "mean" in view.args.heads:
        raise UserError(
            f"--heads {' '.join(view.args.heads)}: a rollout is of the mean of some heads; give numbers alone"
        )
    attention = subject.attention[:, heads or slice(None)]
    of_heads = f"\nheads {', '.join(map(str, heads))}" if heads else ""
    for layer in view.layers("first middle last"):
        values = to_grid(weights @ attention_rollout(attention[None, : layer + 1])[0])
        tiles.append((f"rollout, layers 0 to {layer}{of_heads}", overlay(subject.image, values, 160)))
    tiles += [None] * (-len(tiles) % 4)
    tiles += [(f"gradient rollout\n{words}", tile) for words, tile in class_maps(view, subject, gradient)]
    title = view.title(subject, f"from {view.pooled} back to the patches")
    image = sheet(tiles, columns=4, title=title, note=SCALE)
    return [canvas.save_image(image, view.file(f"{subject.name}-rollout", ".png"))]


def cls(view, subject):
    """Attention from and to CLS, and its values behind each layer."""
    heads, layers = view.heads(["mean"]), view.layers("all")
    both = {
        "from": seen_from(subject),
        "to": attention_to(subject.attention[None], subject.weights[None])[0],
    }
    tiles = []
    for (way, seen), head in itertools.product(both.items(), heads):
        for layer in layers:
            values = to_grid(head_maps(seen[layer], head))
            words = f"{way} {view.pooled}, {head_words(head)}\nlayer {layer}, up to {values.max():.2f}"
            tiles.append((words, overlay(subject.image, values, 128)))
    title = view.title(subject, f"attention from and to {view.pooled}")
    image = sheet(tiles, columns=len(layers), title=title, note=SCALE)
    written = [canvas.save_image(image, view.file(f"{subject.name}-cls", ".png"))]
    values = torch.stack([subject.weights @ subject.hidden[f"blocks.{layer}"] for layer in range(view.depth)])
    title = view.title(subject, f"values of {view.pooled} behind each layer")
    path = written[0].with_name(f"{written[0].stem}-values.png")
    return [*written, figures.plot_token_values(values, title, path)]


def tokens(view, subject):
    """Where each patch looks: a sheet, and a GIF that runs over the patches."""
    layers, heads = view.layers("last"), view.heads(["mean"])
    if len(layers) > 1 or len(heads) > 1:
        raise UserError("tokens shows one layer and one head; give one number to --layers and to --heads")
    layer, head = layers[0], heads[0]
    side = view.model.grid_size
    steps = range(0, side, max(1, side // 8))  # of many patches every second or third
    words = f"layer {layer}, {head_words(head)}: where the framed patch looks"
    tiles, frames = [], []
    for row, column in [(row, column) for row in steps for column in steps]:
        seen = token_attention(subject.attention[None], row * side + column)[0, layer]
        values = to_grid(head_maps(seen, head))

        def framed(pixels, place=(row, column)):
            return mark(pixels, *place, side)

        tiles.append((f"up to {values.max():.2f}", framed(overlay(subject.image, values, 96))))
        pair = [
            (f"row {row}, column {column}", framed(enlarge(subject.image, 224))),
            (f"up to {values.max():.2f}", framed(overlay(subject.image, values, 224))),
        ]
        frames.append(sheet(pair, columns=2, title=f"{subject.name}, {words}", note=view.name))
    image = sheet(tiles, columns=len(steps), title=view.title(subject, words), note=SCALE)
    written = [canvas.save_image(image, view.file(f"{subject.name}-tokens", ".png"))]
    path = view.file(f"{subject.name}-tokens", ".gif")
    return [*written, canvas.save_gif(frames, path, frame_ms=view.frame_ms)]


def gradcam(view, subject):
    """Grad-CAM on the last block's tokens, for the likeliest classes or --target."""
    tiles = [("image", enlarge(subject.image, 160))]
    module = cam_layer(view.found.config.model, view.model)  # of a CNN
    if module and view.args.layers:
        raise UserError("--layers are blocks, and a CNN has none; leave the flag out")
    for layer in view.layers("last") if view.args.layers else [None]:

        def evidence(target, block=layer):
            return grad_cam(view.model, subject.batch, target, layer=module, block=block)[0]

        words = f"layer {layer}, " if view.args.layers else ""
        tiles += [(words + caption, tile) for caption, tile in class_maps(view, subject, evidence)]
    title = view.title(subject, "Grad-CAM of the last convolution" if module else "Grad-CAM of the tokens")
    image = sheet(tiles, columns=4, title=title, note=SCALE)
    return [canvas.save_image(image, view.file(f"{subject.name}-gradcam", ".png"))]


def hidden(view, subject):
    """Inside the blocks: norms, attention, MLP and output, as a sheet and a GIF."""
    layers = view.layers("first middle last")
    tiles = embedded_tiles(subject.image, subject.hidden, 112)
    for layer in layers:
        tiles += hidden_tiles(subject.hidden, layer, 112)
    note = OWN_SCALE
    title = view.title(subject, "values inside the blocks: root mean square of each token over the width")
    stem = f"{subject.name}-hidden"
    written = [canvas.save_image(sheet(tiles, columns=5, title=title, note=note), view.file(stem, ".png"))]
    frames = [
        sheet(hidden_tiles(subject.hidden, layer, 112), columns=5, title=title, note=note)
        for layer in (layers if view.args.layers else range(view.depth))
    ]
    written.append(canvas.save_gif(frames, view.file(stem, ".gif"), frame_ms=view.frame_ms))
    if view.args.save_npy:
        for name, values in subject.hidden.items():
            if values.ndim == 2:
                written.append(save_npy(values.numpy(), written[0].with_name(f"{stem}-{name}.npy")))
    return written


# --------------------------------------------------------------------------------- of a whole model


def embeddings(view):
    """What the head reads of the test images, in two dimensions, by class."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    method = view.args.method
    if method not in ("pca", "tsne", "both"):
        raise UserError(f"--method {method}: choose pca, tsne or both")
    images, labels = view.test_images(low=50)
    read = torch.cat([features(view.model, batch) for batch in tqdm(images.split(250), leave=False, disable=None)])
    read, labels = read.cpu().numpy(), labels.cpu().numpy()
    panels, scores = [], {"features": float(silhouette_score(read, labels))}
    if method in ("pca", "both"):
        pca = PCA(2, random_state=0)
        points = pca.fit_transform(read)
        panels.append((f"PCA, {pca.explained_variance_ratio_.sum():.0%} of the variance", points))
        scores["pca"] = float(silhouette_score(points, labels))
    if method in ("tsne", "both"):
        points = TSNE(2, random_state=0, init="pca", perplexity=30).fit_transform(read)
        panels.append(("t-SNE, perplexity 30", points))
        scores["tsne"] = float(silhouette_score(points, labels))
    words = f"{view.name}: {view.pooled} of {len(labels)} test images, silhouette {scores['features']:.3f}"
    print(", ".join(f"silhouette of {name} {score:.4f}" for name, score in scores.items()))
    path = figures.plot_embeddings(panels, labels, view.found.classes, words, view.file("embeddings", ".png"))
    numbers = {"silhouette": scores, "n": len(labels)}
    return [path, write_json(path.with_suffix(".json"), numbers)]


def positions(view):
    """Cosine similarity of each position embedding with all others."""
    side = view.model.grid_size
    places = view.model.pos_embed[0, -(side**2) :].detach().cpu()
    similar = torch.nn.functional.cosine_similarity(places[:, None], places[None], dim=-1)  # P x P
    steps = range(0, side, max(1, side // 8))
    tiles = []
    for row, column in [(row, column) for row in steps for column in steps]:
        values = similar[row * side + column].view(side, side)
        picture = enlarge(shade(values, low=-1, high=1, cmap="cividis"), 80)
        tiles.append((f"row {row}, column {column}", mark(picture, row, column, side)))
    title = f"{view.name}: cosine similarity of the framed patch's position embedding with the others"
    image = sheet(tiles, columns=len(steps), title=title, note="From -1 (dark) to 1 (bright)")
    return [canvas.save_image(image, view.file("positions", ".png"))]


def filters(view):
    """What the patch embedding looks for: its filters, and of patches their principal components."""
    name, weight = next((name, weight) for name, weight in view.model.named_parameters() if weight.ndim == 4)
    weight = weight.detach().cpu()  # D x in_chans x h x w

    def picture(values):  # grey at 0
        values = (values / values.abs().max() / 2 + 0.5).permute(1, 2, 0).expand(-1, -1, 3)
        return enlarge((values.numpy() * 255).round().astype(np.uint8), 56)

    tiles = []
    flat = weight.flatten(1)
    patches = flat.shape[1] > 9 * view.model.in_chans
    if patches:  # the components of Dosovitskiy et al., figure 7
        _, strengths, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
        shares = strengths**2 / (strengths**2).sum()
        for share, component in zip(shares[:16], components):
            tiles.append((f"{share:.1%}", picture(component.view_as(weight[0]))))
        tiles += [None] * (-len(tiles) % 16)
    tiles += [(str(i), picture(values)) for i, values in enumerate(weight[:128])]
    title = f"{view.name}: the filters {name.removesuffix('.weight')}"
    note = "Grey is 0, each filter scaled by itself"
    note += "; first row: principal components, with their share of the variance" if patches else ""
    image = sheet(tiles, columns=16, title=title, note=note)
    return [canvas.save_image(image, view.file("filters", ".png"))]


def training(view):
    """The run's curves, animated."""
    history, last = view.found.history, view.found.path / "last.pt"
    if last.is_file():  # best.pt ends with its own epoch
        history = read_checkpoint(last)["history"]
    if not history:
        raise UserError(f"{view.args.model_path} holds no history of a training; name a run of train.py")
    frames = figures.training_frames(history, title=view.name)
    return [canvas.save_gif(frames, view.file("training", ".gif"), frame_ms=view.frame_ms, hold=5)]


def faithfulness(view):
    """Which of the maps deserve belief: insertion and deletion against random orders."""
    images, _ = view.test_images(low=2)
    amp = pick_amp(images.device, "auto")
    batches = tqdm(images.split(50), leave=False, disable=None, unit="batch")
    curves = measure_faithfulness(view.model, batches, autocast=lambda: autocast(images.device, amp))

    rows = []
    for name in curves[CURVE_KINDS[0]]:
        row = {"map": name}
        for key, named in curves.items():
            areas, floor = area(named[name]), area(named["random"])
            cell = {"area": areas.mean().item()}
            if name != "random":
                cell["difference"] = (areas - floor).mean().item()
                cell["ci95"] = metrics.bootstrap_mean(areas - floor)
            row["_".join(key)] = cell
        rows.append(row)
    lines = [f"{'map':<26}" + "".join(f"{' '.join(reversed(key)):>34}" for key in CURVE_KINDS)]
    for row in rows:
        cells = [row["_".join(key)] for key in CURVE_KINDS]
        words = [
            f"{c['area']:.3f}"
            + (f" ({c['difference']:+.3f}; {c['ci95'][0]:+.3f} to {c['ci95'][1]:+.3f})" if "ci95" in c else "")
            for c in cells
        ]
        lines.append(f"{row['map']:<26}" + "".join(f"{word:>34}" for word in words))
    print("\n".join(lines))
    print("area under the curve (difference to ten random orders, with its 95 % interval)")
    means = {key: {name: values.mean(0).tolist() for name, values in named.items()} for key, named in curves.items()}
    path = view.file("faithfulness", ".png")
    title = f"{view.name}: probability of the predicted class, {len(images)} test images"
    report = {"name": view.name, "n": len(images), "rows": rows}
    report["curves"] = {"_".join(key): named for key, named in means.items()}
    return [figures.plot_faithfulness(means, title, path), write_json(path.with_suffix(".json"), report)]


OF_BASELINES = ("gradcam", "training")  # what needs no attention
NUM_IMAGES = {"embeddings": 2000, "faithfulness": 300}
OF_IMAGES = ("gif", "maps", "rollout", "cls", "tokens", "gradcam", "hidden")
DEFAULT_LAYERS = {
    **dict.fromkeys(OF_IMAGES, "all"),
    **dict.fromkeys(("rollout", "hidden"), "first, middle and last"),
    **dict.fromkeys(("tokens", "gradcam"), "the last"),
}
COMMANDS = {
    function.__name__: function
    for function in (
        gif, maps, rollout, cls, tokens, gradcam, hidden,
        embeddings, positions, filters, training, faithfulness,
    )
}  # fmt: skip


def main():
    args = parse_args()
    view, command = View(args), COMMANDS[args.command]
    if args.command not in OF_IMAGES:
        for path in command(view):
            print(path)
        return 0
    for subject in view.subjects():
        print(f"{subject.name}: {subject.verdict}")
        for path in command(view, subject):
            print(path)
    for line in view.bad:
        print(f"visualize.py: {line}", file=sys.stderr)
    return 1 if view.bad else 0


if __name__ == "__main__":
    run_cli(main)
