"""Training and evaluation: train_one_epoch, evaluate, fit.

config = TrainConfig.create(dataset="digits", epochs=40)
report = fit(config.build_model(), data.load(config), config)
"""

import contextlib
import copy
import csv
import importlib.metadata
import itertools
import json
import math
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2
from tqdm import tqdm

from model import count_parameters
from vitlab import checkpoint
from vitlab.config import FIELDS, UserError, flag
from vitlab.evaluation import metrics
from vitlab.pictures import figures as plots
from vitlab.training import snapshots, tracking

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_second",
)


# ----------------------------------------------------------------------------------------- the parts


def cpu_has_bf16():
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    if sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text()
        return re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", flags) is not None
    if sys.platform == "darwin":
        answer = subprocess.run(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], capture_output=True, text=True)
        return answer.stdout.strip() == "1"
    return False


def pick_amp(device, amp):
    """The autocast dtype for `amp` ("auto", "bf16", "fp16" or "off") on a device; None for float32."""
    if amp == "auto":
        has_bf16 = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": cpu_has_bf16,
        }.get(device.type, lambda: False)
        amp = "bf16" if has_bf16() else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 does not train on a CPU; choose bf16, off or auto")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def autocast(device, dtype):
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def learning_rate(step, *, steps_per_epoch, config):
    """The learning rate of one batch, counted from 0: linear warmup, then a cosine down to min_lr
    (Loshchilov & Hutter, arXiv:1608.03983, without restarts)."""
    warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, config.epochs * steps_per_epoch - 1 - warmup)
    return config.min_lr + (config.learning_rate - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizers(model, config):
    """The optimisers of a model, a list: AdamW or SGD of all of it, or Muon (Jordan et al., 2024) of
    the blocks' matrices and of all convolutions but the first, which reads the pixels, and AdamW of the
    rest. No weight decay on norms, biases, tokens, positions. A group's "scale" is its learning rate
    over the schedule's."""
    decayed, spared, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in ("cls_token", "pos_embed"):
            spared.append(parameter)
        elif config.optimizer == "muon" and is_for_muon(name, parameter):
            matrices.append(parameter if parameter.ndim == 2 else as_matrix(parameter))
        else:
            decayed.append(parameter)
    rest = [
        {"params": decayed, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": spared, "weight_decay": 0.0, "scale": 1.0},
    ]
    rest = [group for group in rest if group["params"]]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(rest, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)]
    optimizers = [torch.optim.AdamW(rest, lr=config.learning_rate, fused=True)]
    if config.optimizer == "muon":
        group = {"params": matrices, "scale": config.muon_lr / config.learning_rate}
        optimizers.append(torch.optim.Muon([group], lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def is_for_muon(name, parameter):
    """Whether Muon takes it: a block's matrix, or a convolution that does not read the pixels."""
    return (name.startswith("blocks.") and parameter.ndim == 2) or (parameter.ndim == 4 and parameter.shape[1] > 3)


def as_matrix(filters):
    """The filters of a convolution, C x I x k x k, as the parameter C x Ikk that Muon takes: the same
    numbers in the same memory, and so is its gradient."""
    matrix = torch.nn.Parameter(filters.detach().view(len(filters), -1))
    filters.register_post_accumulate_grad_hook(lambda filters: setattr(matrix, "grad", filters.grad.view_as(matrix)))
    return matrix


def make_average(model, decay):
    """An exponential moving average of a model's weights (Polyak & Juditsky, 1992), which forgets
    faster while it is young: after n updates the decay is at most (1 + n) / (10 + n)."""

    def lerp(averaged, current, updates):
        weight = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, weight)

    return AveragedModel(model, multi_avg_fn=lerp)


def make_mix(config):
    """mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of a batch, by torchvision:
    (images, labels B) -> (images, shares B x C), or as they were; None where both are off."""
    kinds = {v2.MixUp: (config.mixup, 1 - config.mix_switch_prob), v2.CutMix: (config.cutmix, config.mix_switch_prob)}
    on = {kind(alpha=alpha, num_classes=config.num_classes): share for kind, (alpha, share) in kinds.items() if alpha}
    if not on:
        return None
    return v2.RandomApply([v2.RandomChoice(list(on), p=list(on.values()) if len(on) > 1 else None)], p=config.mix_prob)


def try_compile(model, images, amp):
    """The model compiled, or, with one line that says why, as it was."""
    try:
        compiled = torch.compile(model)
        with torch.no_grad(), autocast(images.device, amp):
            compiled(images)
        return compiled
    except Exception as error:  # whatever the compiler and its tools raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"--compile does not work here, going on without it: {reason[0]}")
        torch._dynamo.reset()
        return model


@torch.inference_mode()
def predict_all(model, batches, amp=None, title="evaluate"):
    """(labels n, logits n x C) of every image, on the CPU; the model is left as it was found."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    labels, logits = [], []
    for images, targets in tqdm(batches, desc=title, leave=False, disable=None, unit="batch"):
        with autocast(device, amp):
            out = model(images.to(device))
        labels.append(targets)
        logits.append(out.float())
    model.train(was_training)
    return torch.cat(labels).cpu(), torch.cat(logits).cpu()


def evaluate(model, batches, amp=None, title="evaluate"):
    """A split's result (metrics.summary)."""
    labels, logits = predict_all(model, batches, amp, title)
    return metrics.summary(labels, logits.argmax(-1), F.cross_entropy(logits, labels))


@dataclass
class Progress:
    """How far a run is: all that a checkpoint keeps of it beside tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the epoch under way, and their sums:
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list = field(default_factory=list)  # a dict an epoch: COLUMNS
    best: dict | None = None  # the best epoch's validation
    best_epoch: int = 0
    best_loss: float = math.inf  # the lowest validation loss, and epochs since: early stopping
    waited: int = 0
    images: int = 0  # of a whole epoch
    finished: bool = False
    wall: float = 0.0  # seconds of the whole run, interruptions apart


@dataclass
class Run:
    """Everything that changes while a model is trained; save() and restore() are exact."""

    model: torch.nn.Module
    config: Any
    device: torch.device
    amp: torch.dtype | None
    optimizers: list
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    progress: Progress
    tracker: tracking.Tracker | None = None
    forward: Any = None  # the model, compiled or not

    @property
    def evaluated(self):
        """The weights that are validated and tested: the average, where there is one."""
        return self.average.module if self.average else self.model

    def save(self, name, sets):
        """Write MODEL_PATH/NAME/name, from which restore() goes on exactly here; of best.pt, which is
        for use, the weights and the progress alone (and the raw weights beside their average)."""
        training = {
            "progress": asdict(self.progress),
            "raw_model": self.model.state_dict() if self.average else None,
        }
        if name != "best.pt":
            training |= {
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": self.scaler.state_dict(),
                "averaged": int(self.average.n_averaged) if self.average else 0,
                "generators": generator_states(self.device),
            }
        known = dict(classes=sets.classes, mean=sets.mean, std=sets.std, history=self.progress.history)
        path = self.config.checkpoint_folder / name
        checkpoint.save(path, self.evaluated, self.config, **known, training=training)

    def restore(self, contents):
        training = contents["training"]
        self.progress = Progress(**training["progress"])
        self.evaluated.load_state_dict(contents["model"])
        if self.average:
            self.model.load_state_dict(training["raw_model"])
            self.average.n_averaged.fill_(training["averaged"])
        for optimizer, state in zip(self.optimizers, training["optimizers"], strict=True):
            asked = [{name: group[name] for name in ("weight_decay", "scale")} for group in optimizer.param_groups]
            try:
                optimizer.load_state_dict(state)
            except ValueError as error:
                raise UserError(f"--resume: its optimiser is of another version ({error}); start anew") from None
            for group, own in zip(optimizer.param_groups, asked):
                group.update(own)
        if training["scaler"]:  # empty where the run was not in float16 so far
            self.scaler.load_state_dict(training["scaler"])
        set_generator_states(training["generators"], self.device)


def generator_states(device):
    """The state of every generator that a model or a data set may draw from."""
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one, which others may use
    states["numpy"] = (kind, keys.tolist(), *rest)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generator_states(states, device):
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def train_one_epoch(run, sets, stop):
    """Train on the batches that are left of the epoch that run.progress says; (loss, accuracy) are
    running averages over the epoch, and accuracy counts the likeliest target where two are mixed.

    Raises UserError at a loss that is not finite, and Stopped, with last.pt saved, when stop() says so.
    """
    config, progress, device = run.config, run.progress, run.device
    steps, accumulate = len(sets.train), config.grad_accum_steps
    title = f"epoch {progress.epoch + 1}/{config.epochs}"
    check_every = 1 if device.type == "cpu" else 20  # reading a loss makes an accelerator wait
    mix = make_mix(config)
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    run.model.train()

    pending = []  # (batch, loss, correct, images) not yet added to the sums
    clock = time.perf_counter()

    def add_up():
        nonlocal clock
        for batch, loss, correct, n in pending:
            loss = loss.item()
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at step {batch + 1} of epoch {progress.epoch + 1}; lower "
                    f"{flag('learning_rate')} (now {config.learning_rate:g}); the last good checkpoint is "
                    f"{config.checkpoint_folder / 'last.pt'}"
                )
            progress.loss_sum += loss * n
            progress.correct += correct.item()
            progress.seen += n
        pending.clear()
        now = time.perf_counter()
        progress.seconds += now - clock
        clock = now

    bar = tqdm(total=steps, initial=progress.step, desc=title, leave=False, disable=None, unit="batch")
    with bar:
        for step, (images, labels) in enumerate(batches_from(sets.train, progress), start=progress.step):
            rate = learning_rate(progress.epoch * steps + step, steps_per_epoch=steps, config=config)
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]

            images, labels = images.to(device), labels.to(device)  # ours are there already
            targets = labels
            if mix:
                images, targets = mix(images, labels)
                labels = targets.argmax(-1) if targets.ndim == 2 else targets
            with autocast(device, run.amp):
                logits = run.forward(images)
                loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            pending.append((step, loss.detach(), (logits.detach().argmax(-1) == labels).sum(), len(labels)))
            if len(pending) == check_every:
                add_up()

            together = min(accumulate, steps - step // accumulate * accumulate)  # batches of this optimiser step
            run.scaler.scale(loss / together).backward()
            bar.update()
            if (step + 1) % accumulate and step + 1 < steps:
                continue
            if config.clip_grad:
                for optimizer in run.optimizers:
                    run.scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad)
            for optimizer in run.optimizers:
                run.scaler.step(optimizer)
            run.scaler.update()
            run.model.zero_grad(set_to_none=True)
            if run.average:
                run.average.update_parameters(run.model)

            progress.step = step + 1
            done = progress.epoch * steps + progress.step
            if run.tracker and config.log_every_n_steps and done % config.log_every_n_steps == 0:
                add_up()
                run.tracker.scalars(
                    done,
                    {
                        "step/loss": loss.item(),
                        "step/accuracy": progress.correct / progress.seen,
                        "step/learning_rate": rate,
                        "step/images_per_second": progress.seen / progress.seconds,
                    },
                )
            if not bar.disable and not pending and (check_every > 1 or step % 10 == 0):
                bar.set_postfix_str(
                    f"loss {progress.loss_sum / progress.seen:.3f}, accuracy {progress.correct / progress.seen:.3f}, "
                    f"{progress.seen / progress.seconds:.0f} images/s"
                )
            every = config.save_every_n_steps
            stopping = stop()
            if progress.step < steps and (
                stopping or (every and progress.step // every > (step + 1 - together) // every)
            ):
                add_up()
                run.save("last.pt", sets)
                clock = time.perf_counter()  # saving is not training
                if stopping:
                    raise Stopped(stopping)
        add_up()
    return progress.loss_sum / progress.seen, progress.correct / progress.seen


def batches_from(batches, progress):
    """The epoch's batches from progress.step on. Ours start anywhere; of others, the first are drawn
    and dropped."""
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(progress.epoch, progress.step)
        return batches
    return itertools.islice(batches, progress.step, None)


class Stopped(KeyboardInterrupt):
    """Training was asked to end by a signal, and saved itself; .signal is the signal's number."""

    @property
    def signal(self):
        return self.args[0]


@contextlib.contextmanager
def stop_at_signal():
    """A function that tells the signal by which the run was asked to end: Ctrl-C or SIGTERM; 0 as long
    as there was none. The first lets the running step finish; a second one interrupts at once."""
    asked, before = [0], {}

    def ask(number, frame):
        asked[0] = number
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread, which alone hears signals
        yield lambda: 0
        return
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------------------------- the report


def describe_hardware(device):
    """The machine in words: the GPU's name, or the CPU's and its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1).strip() if found else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else f"{name}, MPS"


def git_commit():
    """The commit of this code, with "+" where it was changed since; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


def command_line():
    """What was typed."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def make_report(*, name, dataset, checkpoint, seed, device, model, seconds, images_per_second=None, **results):
    """The contents of report.json: one shape for train.py and test.py. Seconds of the whole run;
    results are train, val and test, each metrics.summary or None."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
    return {
        "name": name,
        "dataset": dataset,
        "command": command_line(),
        "checkpoint": str(checkpoint),
        "seed": seed,
        "hardware": describe_hardware(device),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "git_commit": git_commit(),
        "parameters": count_parameters(model),
        "seconds": round(seconds, 2),
        "images_per_second": images_per_second and round(images_per_second, 1),
        **{split: results.get(split) for split in ("train", "val", "test")},
    }


def write_json(path, contents):
    with checkpoint.replacing(path) as part:
        part.write_text(json.dumps(contents, indent=2) + "\n")
    return path


def write_metrics(path, history):
    """metrics.csv: a row an epoch; what was not measured is empty."""
    with checkpoint.replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in history)
    return path


RUN_FILES = (
    "best.pt",
    "last.pt",
    "metrics.csv",
    "report.json",
    "config.yaml",
    "graph_loss.png",
    "graph_accuracy.png",
    "training.gif",
)


def claim_folders(config):
    """Make the run's folders and see that they can be written; a run of that name is not touched:
    the new one is called NAME-2, NAME-3, ... (or, with overwrite, its files are removed)."""

    def files_of(name):
        folders = Path(config.model_path) / name, Path(config.output_path) / name
        found = {folder / file for folder in folders for file in RUN_FILES if (folder / file).is_file()}
        return found | {file for folder in folders for file in folder.glob("ViT_model_*.pt")}

    wanted, number = config.folder_name, 2
    while not config.overwrite and files_of(config.folder_name):
        config.folder_name = f"{wanted}-{number}"
        number += 1
    if config.folder_name != wanted:
        print(f"{wanted} holds a run already: this one is called {config.folder_name} (--overwrite writes over it)")
    make_folders(config)
    for file in files_of(config.folder_name):
        file.unlink()
    for pictures in ("tensorboard", "visualizers"):
        shutil.rmtree(config.output_folder / pictures, ignore_errors=True)


def make_folders(config):
    checkpoint.writable_folder(config.checkpoint_folder, "--model_path")
    checkpoint.writable_folder(config.output_folder, "--output_path")


# What a resumed run must share with the one it goes on from, beside the model's arguments
KEPT = (
    "dataset",
    "batch_size",
    "seed",
    "val_split",
    "folds",
    "fold",
    "num_train_images",
    "optimizer",
    "grad_accum_steps",
)


def newest(config):
    """The last of NAME/last.pt, NAME-2/last.pt, ... (the names of claim_folders), or None."""
    found, name, number = None, config.folder_name, 2
    while any((Path(path) / name).is_dir() for path in (config.model_path, config.output_path)):
        path = Path(config.model_path) / name / "last.pt"
        found = path if path.is_file() else found
        name = f"{config.folder_name}-{number}"
        number += 1
    return found


def find_resume(config):
    """The checkpoint that config.resume names, read and compared with the config; None where the run
    starts anew. Sets the config's folders to those of the run that goes on.

    Raises UserError where it does not fit: another architecture, other data, no training state.
    """
    if config.resume is None:
        return None
    path = newest(config) if config.resume == "auto" else Path(config.resume)
    if path is None:
        return None
    path = path / "last.pt" if path.is_dir() else path
    path = path if path.parent.name else path.absolute()  # from within the run's folder
    contents = checkpoint.read(path)
    if not isinstance(contents, dict) or "optimizers" not in contents.get("training", {}):
        raise UserError(f"--resume {path} holds weights without the state of a training; --init_from starts from them")
    was = contents["config"]
    for name in ("model", *config.model_args(), *KEPT):
        before = was.get(name, FIELDS[name].default)
        if before != getattr(config, name):
            raise UserError(
                f"--resume {path}: it was trained with {flag(name)} {before}, not {getattr(config, name)}; "
                "give the same, or start anew without --resume"
            )
    if bool(was["ema_decay"]) != bool(config.ema_decay):
        raise UserError(f"--resume {path}: it was trained with --ema_decay {was['ema_decay']:g}; give the same")
    config.model_path, config.folder_name = str(path.parent.parent), path.parent.name
    return contents


def out_of_patience(config, progress):
    """Whether early stopping ends the run here."""
    return config.early_stopping is not None and progress.waited >= config.early_stopping


def check(config):
    """Refuse, before any work, what cannot be trained: UserError."""
    pick_amp(config.pick_device(), config.amp)
    tracking.check(config.log_backend)
    find_resume(config)
    if config.init_from:
        checkpoint.read(config.init_from)


def check_fit(model, sets, config):
    """UserError where Muon finds nothing to do, or where a batch is a single image of whose maps batch norm sees but
    one value."""
    if config.optimizer == "muon" and not any(is_for_muon(*named) for named in model.named_parameters()):
        raise UserError("--optimizer muon: the model has no blocks and no second convolution; choose adamw")
    n, size = len(getattr(sets.train, "labels", ())), config.batch_size
    if n % size == 1 or n and size == 1:
        image = torch.zeros(1, config.in_chans, config.img_size, config.img_size)
        try:
            copy.deepcopy(model).cpu().train()(image)
        except (ValueError, RuntimeError) as error:  # a module of another size shows its own error later
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"--batch_size {size}: of {n} training images the last batch has one, with which batch norm "
                    "cannot do; choose another size"
                ) from None


# -------------------------------------------------------------------------------------------- the fit


def fit(model, sets, config):
    """Train a model and return its report.

    model: a VisionTransformer, or any module from images B x C x H x W to logits B x classes.
    sets: data.load's Splits; its batches may be any sized iterables of (images, labels) on the device.
    config: a TrainConfig; its folder_name is changed where a run of that name is there already.

    Writes MODEL_PATH/NAME/best.pt (on validation accuracy; without a validation split, the newest) and
    last.pt, and OUTPUT_PATH/NAME/metrics.csv, config.yaml, graph_loss.png, graph_accuracy.png,
    training.gif, report.json and the pictures of config.visualizers (snapshots.py). Raises UserError at
    a loss that is not finite, a folder that cannot be written or a checkpoint that does not fit;
    Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, with last.pt saved.
    """
    device = config.pick_device()
    amp = pick_amp(device, config.amp)
    check_fit(model, sets, config)
    resumed = find_resume(config)
    taken = checkpoint.load_weights(model, config.init_from) if config.init_from and not resumed else []
    make_folders(config) if resumed else claim_folders(config)
    models, outputs = config.checkpoint_folder, config.output_folder

    torch.manual_seed(config.seed)
    model.to(device)
    for line in taken:
        print(line)
    run = Run(
        model=model,
        config=config,
        device=device,
        amp=amp,
        optimizers=make_optimizers(model, config),
        scaler=torch.amp.GradScaler(device.type, enabled=amp == torch.float16),
        average=make_average(model, config.ema_decay) if config.ema_decay else None,
        progress=Progress(),
        forward=try_compile(model, next(iter(sets.train))[0], amp) if config.compile else model,
    )
    progress = run.progress
    if resumed:
        run.restore(resumed)
        progress = run.progress
        best = models / "best.pt"
        if best.exists() and checkpoint.read(best)["training"]["progress"]["epoch"] > progress.epoch:
            progress.best = None  # best.pt is from after the point we return to, so the next epoch replaces it
    if progress.finished and (progress.epoch >= config.epochs or out_of_patience(config, progress)):
        print(f"{config.folder_name} is finished: {progress.epoch} epochs, {models / 'best.pt'}")
        try:
            return json.loads((outputs / "report.json").read_text())
        except OSError:
            raise UserError(f"{outputs} has no report.json of it; give the --output_path it was trained with") from None
    if progress.finished and sets.test and not config.no_test:
        print(f"the test images were read after epoch {progress.epoch} and will be again: choose nothing by them")
    progress.finished = False
    began = time.perf_counter() - progress.wall - progress.seconds

    print(
        f"{config.folder_name}: {count_parameters(model):,} parameters on {describe_hardware(device)}, "
        f"{str(amp).removeprefix('torch.') if amp else 'float32'}, seed {config.seed}"
    )
    if hasattr(model, "grid_size"):
        print(
            f"{model.grid_size} x {model.grid_size} = {model.grid_size**2} patches from {config.img_size} pixels a side"
        )
    if resumed:
        print(f"going on after {progress.epoch} epochs and {progress.step} batches")
        where = (
            "folder_name",
            "model_path",
            "output_path",
            "data_path",
            "device",
            "num_workers",
            "resume",
            "overwrite",
        )
        for name in [name for name in FIELDS if name not in where]:
            now = getattr(config, name)
            before = resumed["config"].get(name, now)
            if before != now:
                print(f"from here on with {flag(name)} {now}, until now {before}")
    else:
        run.save("last.pt", sets)  # so that there is one, and a full disk is found before the first epoch
    with checkpoint.replacing(outputs / "config.yaml") as part:
        part.write_text(yaml.safe_dump(vars(config), sort_keys=False))

    pictures = snapshots.Snapshots(config, sets, model, progress.epoch)
    steps = len(sets.train)
    run.tracker = tracking.Tracker(config, outputs, progress.epoch * steps + progress.step + 1 if resumed else 0)
    with contextlib.closing(run.tracker), stop_at_signal() as stop:
        while progress.epoch < config.epochs and not out_of_patience(config, progress):
            train_loss, train_accuracy = train_one_epoch(run, sets, stop)
            val = evaluate(run.evaluated, sets.val, amp, "validate") if sets.val else None

            # one row of metrics.csv
            row = dict(
                epoch=progress.epoch + 1,
                learning_rate=run.optimizers[0].param_groups[0]["lr"],
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=val and val["loss"],
                val_accuracy=val and val["accuracy"],
                seconds=round(progress.seconds, 3),
                images_per_second=round(progress.seen / progress.seconds, 1),
            )
            progress.history.append(row)
            write_metrics(outputs / "metrics.csv", progress.history)
            words = f"epoch {row['epoch']:3d}: loss {train_loss:.4f}, accuracy {train_accuracy:.4f}"
            words += f"; validation {val['loss']:.4f}, {val['accuracy']:.4f}" if val else ""
            print(f"{words}; lr {row['learning_rate']:.2e}, {row['images_per_second']:.0f} images/s", flush=True)
            run.tracker.scalars(row["epoch"] * steps, {f"epoch/{name}": row[name] for name in COLUMNS[1:]})

            # the next epoch starts from zero
            progress.images = progress.seen
            progress.epoch, progress.step = progress.epoch + 1, 0
            progress.loss_sum, progress.correct, progress.seen, progress.seconds = 0.0, 0, 0, 0.0
            progress.wall = time.perf_counter() - began

            if val:
                progress.waited = 0 if val["loss"] < progress.best_loss else progress.waited + 1
                progress.best_loss = min(progress.best_loss, val["loss"])

            # pictures
            ends = progress.epoch == config.epochs or out_of_patience(config, progress)
            if ends or progress.epoch % config.visualize_every_n_epochs == 0:
                for kind, path in pictures.take(run.evaluated, progress.epoch).items():
                    run.tracker.picture(progress.epoch * steps, kind, path)
                    print(path)

            # best, last and periodic checkpoints
            best = progress.best
            if not val or best is None or (val["accuracy"], -val["loss"]) > (best["accuracy"], -best["loss"]):
                progress.best, progress.best_epoch = val, progress.epoch
                run.save("best.pt", sets)
            if config.save_every_n_epochs and progress.epoch % config.save_every_n_epochs == 0:
                run.save(f"ViT_model_{progress.epoch:03d}.pt", sets)
            run.save("last.pt", sets)
            if stop():
                raise Stopped(stop())
        if out_of_patience(config, progress):
            print(f"stopped early: no lower validation loss for {progress.waited} epochs")

        # the test set, once, with the weights that validation chose
        chosen = checkpoint.read(models / "best.pt")
        run.evaluated.load_state_dict(chosen["model"])
        test = evaluate(run.evaluated, sets.test, amp, "test") if sets.test and not config.no_test else None

        row = progress.history[progress.best_epoch - 1]
        report = make_report(
            name=config.folder_name,
            dataset=config.dataset,
            checkpoint=models / "best.pt",
            seed=config.seed,
            device=device,
            model=model,
            seconds=time.perf_counter() - began,
            images_per_second=progress.images * len(progress.history) / sum(row["seconds"] for row in progress.history),
            train=metrics.running(row["train_accuracy"], row["train_loss"], progress.images),
            val=progress.best,
            test=test,
        )
        for what in ("loss", "accuracy"):
            path = outputs / f"graph_{what}.png"
            plots.curve(
                progress.history,
                what,
                path,
                test=test and test[what],
                best_epoch=progress.best_epoch,
                soft_labels=bool(config.label_smoothing or config.mixup or config.cutmix),
            )
            run.tracker.picture(progress.epoch * steps, what, path)
            print(path)
        frames = plots.training_frames(progress.history, title=config.folder_name)
        print(plots.save_gif(frames, outputs / "training.gif", frame_ms=200, hold=5))
        for path in pictures.finish():
            print(path)
        if test:
            run.tracker.scalars(progress.epoch * steps, {"test/accuracy": test["accuracy"], "test/loss": test["loss"]})
    print(write_json(outputs / "report.json", report))

    last = checkpoint.read(models / "last.pt")
    last["training"]["progress"]["finished"] = True
    checkpoint.write(models / "last.pt", last)

    if progress.best:
        best = progress.best
        print(f"best epoch {progress.best_epoch}: validation accuracy {best['accuracy']:.4f}, loss {best['loss']:.4f}")
    if test:
        low, high = test["ci95"]
        print(
            f"test accuracy {test['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"loss {test['loss']:.4f}, {test['n']} images"
        )
    return report
