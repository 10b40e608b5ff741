"""Training and evaluation: train_one_epoch, evaluate, fit.

config = TrainConfig.create(dataset="digits", epochs=40)
report = fit(config.build_model(), data.load(config), config)
"""

import contextlib
import csv
import importlib.metadata
import json
import math
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from tqdm import tqdm

import checkpoint
import metrics
import plots
from config import UserError, flag
from model import count_parameters

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
    """The autocast dtype for `amp` ("auto", "bf16" or "off") on a device; None for float32."""
    if amp == "auto":
        has_bf16 = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": cpu_has_bf16,
        }.get(device.type, lambda: False)
        amp = "bf16" if has_bf16() else "off"
    return {"bf16": torch.bfloat16, "off": None}[amp]


def autocast(device, dtype):
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def learning_rate(step, *, steps_per_epoch, config):
    """The learning rate of one optimiser step, from 0: linear warmup, then a cosine down to min_lr
    (Loshchilov & Hutter, arXiv:1608.03983, without restarts)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, config.epochs * steps_per_epoch - 1 - warmup)
    return config.min_lr + (config.learning_rate - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model, config):
    """AdamW; no weight decay on norms, biases, tokens and positions."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and name not in ("cls_token", "pos_embed")]
    rest = [p for name, p in model.named_parameters() if p.ndim < 2 or name in ("cls_token", "pos_embed")]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    fused = decayed[0].device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


@torch.inference_mode()
def predict_all(model, batches, amp=None, title="evaluate"):
    """(labels n, logits n x C) of every image, on the CPU; the model is left as it was found."""
    was_training = model.training
    model.eval()
    labels, logits = [], []
    for images, targets in tqdm(batches, desc=title, leave=False, disable=None, unit="batch"):
        with autocast(images.device, amp):
            out = model(images)
        labels.append(targets)
        logits.append(out.float())
    model.train(was_training)
    return torch.cat(labels).cpu(), torch.cat(logits).cpu()


def evaluate(model, batches, amp=None, title="evaluate"):
    """A split's result (metrics.summary)."""
    labels, logits = predict_all(model, batches, amp, title)
    return metrics.summary(labels, logits.argmax(-1), F.cross_entropy(logits, labels))


def train_one_epoch(model, batches, optimizer, *, epoch, config, amp, stop, title):
    """One pass over the training batches; (mean loss, accuracy, seconds, images), running averages.

    Raises UserError at a loss that is not finite, and Stopped where `stop` says so.
    """
    model.train()
    started = time.perf_counter()
    steps = len(batches)
    device = next(model.parameters()).device
    check_every = 1 if device.type == "cpu" else 20  # reading a loss makes an accelerator wait
    loss_sum = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen, pending = 0, []

    with tqdm(total=steps, desc=title, leave=False, disable=None, unit="batch") as bar:
        for step, (images, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, steps_per_epoch=steps, config=config)

            with autocast(device, amp):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            pending.append(loss.detach())
            if len(pending) == check_every or step + 1 == steps:
                for i, value in enumerate(torch.stack(pending).tolist()):
                    if not math.isfinite(value):
                        raise UserError(
                            f"the loss is {value} at step {step + 2 - len(pending) + i} of epoch {epoch + 1}; "
                            f"lower {flag('learning_rate')} (now {config.learning_rate:g}); "
                            f"the last good checkpoint is {config.checkpoint_folder / 'last.pt'}"
                        )
                pending.clear()

            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            seen += len(labels)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(-1) == labels).sum()
            bar.update()
            if not bar.disable and step % 10 == 0:
                bar.set_postfix_str(
                    f"loss {loss_sum.item() / seen:.3f}, accuracy {correct.item() / seen:.3f}, "
                    f"{seen / (time.perf_counter() - started):.0f} images/s"
                )
            if stop():
                raise Stopped

    return loss_sum.item() / seen, correct.item() / seen, time.perf_counter() - started, seen


class Stopped(KeyboardInterrupt):
    """Training was asked to end, and saved itself."""


@contextlib.contextmanager
def stop_at_signal():
    """A function that tells whether Ctrl-C was pressed. The first lets the running step finish; a
    second one interrupts at once."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, previous)

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


# --------------------------------------------------------------------------------------- the report


def describe_hardware(device):
    """The machine in words: the GPU's name, or the CPU's and its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1).strip() if found else name
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{name}, MPS"


def git_commit():
    """The commit of this code, with "+" where it was changed since; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


def make_report(*, name, dataset, checkpoint, seed, device, model, seconds, images_per_second=None, **results):
    """The contents of report.json: one shape for train.py and test.py. Seconds of the whole run;
    results are train, val and test, each metrics.summary or None."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
    return {
        "name": name,
        "dataset": dataset,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
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


def claim_folders(config):
    """Make the run's folders and see that they can be written; a run of that name is not touched:
    the new one is called NAME-2, NAME-3, ... (or, with overwrite, its files are removed)."""

    def runs_in(name):
        folders = Path(config.model_path) / name, Path(config.output_path) / name
        return [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name in OURS]

    OURS = {"best.pt", "last.pt", "metrics.csv", "report.json", "config.yaml", "graph_loss.png", "graph_accuracy.png"}
    wanted, number = config.folder_name, 2
    while not config.overwrite and runs_in(config.folder_name):
        config.folder_name = f"{wanted}-{number}"
        number += 1
    if config.folder_name != wanted:
        print(f"{wanted} holds a run already: this one is called {config.folder_name} (--overwrite writes over it)")
    checkpoint.writable_folder(config.checkpoint_folder, "--model_path")
    checkpoint.writable_folder(config.output_folder, "--output_path")
    for file in runs_in(config.folder_name):
        file.unlink()


# -------------------------------------------------------------------------------------------- the fit


def fit(model, sets, config):
    """Train a model and return its report (DESIGN: one shape for all runs).

    model: a VisionTransformer, or any module from images B x C x H x W to logits B x classes.
    sets: data.load's Splits; its batches may be any sized iterables of (images, labels) on the device.
    config: a TrainConfig; its folder_name is changed where a run of that name is there already.

    Writes MODEL_PATH/NAME/best.pt (on validation accuracy; without a validation split, the newest) and
    last.pt, and OUTPUT_PATH/NAME/metrics.csv, config.yaml, graph_loss.png, graph_accuracy.png and
    report.json. Raises UserError at a loss that is not finite or a folder that cannot be written,
    Stopped (a KeyboardInterrupt) after Ctrl-C, with last.pt saved.
    """
    began = time.perf_counter()
    device = config.pick_device()
    amp = pick_amp(device, config.amp)
    claim_folders(config)
    models, outputs = config.checkpoint_folder, config.output_folder
    with checkpoint.replacing(outputs / "config.yaml") as part:
        part.write_text(yaml.safe_dump(vars(config), sort_keys=False))

    torch.manual_seed(config.seed)
    model.to(device)
    optimizer = make_optimizer(model, config)
    history, best = [], None
    print(
        f"{config.folder_name}: {count_parameters(model):,} parameters on {describe_hardware(device)}, "
        f"{'bf16' if amp else 'float32'}, seed {config.seed}"
    )

    def save(name):
        known = dict(classes=sets.classes, mean=sets.mean, std=sets.std, history=history)
        checkpoint.save(models / name, model, config, **known)

    save("last.pt")  # so that there is one, and a disk that is full is found before the first epoch
    with stop_at_signal() as stop:
        for epoch in range(config.epochs):
            if hasattr(sets.train, "set_epoch"):
                sets.train.set_epoch(epoch)
            try:
                train_loss, train_accuracy, seconds, images = train_one_epoch(
                    model, sets.train, optimizer, epoch=epoch, config=config, amp=amp, stop=stop,
                    title=f"epoch {epoch + 1}/{config.epochs}",
                )  # fmt: skip
            except Stopped:
                save("last.pt")
                raise
            val = evaluate(model, sets.val, amp, "validate") if sets.val else None
            history.append(
                dict(
                    epoch=epoch + 1,
                    learning_rate=optimizer.param_groups[0]["lr"],
                    train_loss=train_loss,
                    train_accuracy=train_accuracy,
                    val_loss=val and val["loss"],
                    val_accuracy=val and val["accuracy"],
                    seconds=round(seconds, 3),
                    images_per_second=round(images / seconds, 1),
                )
            )
            write_metrics(outputs / "metrics.csv", history)
            save("last.pt")
            if not val or best is None or (val["accuracy"], -val["loss"]) > (best["accuracy"], -best["loss"]):
                best, best_epoch = val, epoch + 1
                save("best.pt")
            words = f"epoch {epoch + 1:3d}: loss {train_loss:.4f}, accuracy {train_accuracy:.4f}"
            words += f"; validation {val['loss']:.4f}, {val['accuracy']:.4f}" if val else ""
            print(f"{words}; lr {history[-1]['learning_rate']:.2e}, {images / seconds:.0f} images/s", flush=True)
            if stop():
                raise Stopped

    test = None
    model.load_state_dict(checkpoint.read(models / "best.pt")["model"])
    if sets.test and not config.no_test:
        test = evaluate(model, sets.test, amp, "test")

    chosen = history[best_epoch - 1]
    n = len(sets.train.labels) if hasattr(sets.train, "labels") else images
    running = {
        "accuracy": chosen["train_accuracy"],
        "ci95": metrics.wilson_interval(round(chosen["train_accuracy"] * n), n),
        "loss": chosen["train_loss"],
        "f1_macro": None,
        "f1_weighted": None,
        "n": n,
    }
    report = make_report(
        name=config.folder_name,
        dataset=config.dataset,
        checkpoint=models / "best.pt",
        seed=config.seed,
        device=device,
        model=model,
        seconds=time.perf_counter() - began,
        images_per_second=images * len(history) / sum(row["seconds"] for row in history),
        train=running,
        val=best,
        test=test,
    )
    for what in ("loss", "accuracy"):
        value = test and test[what]
        print(plots.curve(history, what, outputs / f"graph_{what}.png", test=value, best_epoch=best_epoch))
    print(write_json(outputs / "report.json", report))
    if val:
        print(f"best epoch {best_epoch}: validation accuracy {best['accuracy']:.4f}, loss {best['loss']:.4f}")
    if test:
        low, high = test["ci95"]
        print(
            f"test accuracy {test['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"loss {test['loss']:.4f}, {test['n']} images"
        )
    return report
