"""One epoch: the training step."""

import itertools
import math
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from vitlab.cli import UserError
from vitlab.config import flag
from vitlab.datasets.augment import make_mix
from vitlab.hardware import autocast
from vitlab.training.optimizers import learning_rate
from vitlab.training.stopping import Stopped


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
