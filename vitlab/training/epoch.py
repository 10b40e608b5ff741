"""One epoch: the training step."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from vitlab import processes
from vitlab.cli import UserError
from vitlab.config import flag
from vitlab.datasets.augment import make_mix, seed_of
from vitlab.datasets.splits import Splits
from vitlab.hardware import autocast
from vitlab.models.patch_dropout import drop_rate, patches_dropped
from vitlab.training.freezing import train_mode
from vitlab.training.optimizers import accumulation, loss_weight, optimizer_step, set_learning_rate
from vitlab.training.state import Run, generator_states, set_generator_states
from vitlab.training.stopping import Stopped

SECONDS_PER_LINE = 60  # of a log file, within an epoch


def train_one_epoch(run: Run, sets: Splits, stop: Callable[[], int]) -> tuple[float, float]:
    """Train on the batches of the epoch that are left, from run.progress.step on; returns (loss, accuracy).

    Both are averages over the epoch, measured while the weights change. Of mixed images, accuracy counts the class
    with the largest share. Saves last.pt every config.save_every_n_steps batches. If stop() returns a signal, saves
    last.pt and raises Stopped. Raises UserError if the loss is not finite.

    Of several processes each computes its share of every batch, and the gradients are averaged.
    """
    config, progress, device = run.config, run.progress, run.device
    steps, mix, meter = len(sets.train), make_mix(config), Meter(run)
    title = f"epoch {progress.epoch + 1}/{config.epochs}"
    train_mode(run.model)
    dropped = drop_rate(config.patch_drop_rate, progress.epoch, config.epochs)
    progress.dropped[progress.epoch :] = [dropped]

    with tqdm(total=steps, initial=progress.step, desc=title, leave=False, disable=None, unit="batch") as bar:
        before = int(bool(mix) and processes.count() > 1)  # the image that the first one of the share is mixed with
        batches = batches_from(sets.train, config.seed, progress.epoch, progress.step, before)
        for step, (images, labels, own, n) in enumerate(batches, start=progress.step):
            rate = set_learning_rate(run.optimizers, run.schedule(progress.epoch * steps + step))

            images, labels = images.to(device), labels.to(device)  # those of load_data are there already
            targets = labels
            if mix:
                images, targets = (mixed[before:] for mixed in mix(images, labels, progress.epoch, step))
                labels = targets.argmax(-1) if targets.ndim == 2 else targets
            count, is_last = accumulation(step, steps, config.grad_accum_steps)
            with gradients_exchanged(run.forward, is_last), patches_dropped(run.model, dropped):
                with autocast(device, run.amp):
                    logits = run.forward(images)
                    loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
                weight = loss_weight(n, sets.train, config) * own * processes.count() / n
                run.scaler.scale(loss * weight).backward()
            if is_last:
                optimizer_step(run.model, run.optimizers, run.scaler, config.clip_grad, run.average)

            meter.add(step, loss.detach(), (logits.detach().argmax(-1) == labels).sum(), own)
            bar.update()
            if not is_last:
                continue
            progress.step = step + 1
            log_step(run, meter, progress.epoch * steps + progress.step, count, rate)
            meter.show(bar)
            stopped = processes.largest(stop()) if not meter.unread else 0
            if progress.step < steps and (is_due(progress.step, count, config.save_every_n_steps) or stopped):
                meter.flush()
                check_weights(run, images, targets)
                run.save("last.pt", sets)
                meter.restart_clock()  # saving is not training
                if stopped:
                    raise Stopped(stopped)
    meter.flush()
    check_weights(run, images, targets)
    return progress.loss, progress.accuracy


@torch.no_grad()
def check_weights(run: Run, images: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise UserError if the weights, as the last step left them, give a loss that is not finite on its images. So no
    such weights are saved."""
    run.model.eval()
    with autocast(run.device, run.amp):
        loss = F.cross_entropy(run.model(images).float(), targets)
    train_mode(run.model)
    check_loss(run, processes.total(loss).item(), f"after step {run.progress.step}")


def check_loss(run: Run, loss: float, when: str) -> None:
    """Raise UserError if a loss of the current epoch is not finite; `when` says in which step it was measured."""
    config = run.config
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} {when} of epoch {run.progress.epoch + 1}; lower {flag('learning_rate')} (now "
            f"{config.learning_rate:g}); the last good checkpoint is {config.checkpoint_folder / 'last.pt'}"
        )


class Meter:
    """Adds the loss, accuracy and time of batches to a run's progress. On an accelerator it reads 20 batches at
    once: reading a loss makes the accelerator wait."""

    def __init__(self, run: Run):
        self.run = run
        self.every = 1 if run.device.type == "cpu" else 20
        self.unread = []  # (step, loss, correct, images) of this process
        self.last_loss = math.nan
        self.last_line = time.monotonic()
        self.restart_clock()

    def restart_clock(self) -> None:
        self.clock = time.perf_counter()

    def add(self, step: int, loss: torch.Tensor, correct: torch.Tensor, images: int) -> None:
        """Add the share of a batch that this process computed: its mean loss, and how many of its images were
        classified correctly."""
        self.unread.append((step, loss, correct, images))
        if len(self.unread) == self.every:
            self.flush()

    def flush(self) -> None:
        """Add the unread batches, summed over the processes, to the progress. Raises UserError if a loss is not
        finite."""
        if not self.unread:
            return
        steps, losses, correct, images = zip(*self.unread)
        images = torch.tensor(images, dtype=torch.float64)
        losses, correct = torch.stack(losses).cpu().double(), torch.stack(correct).cpu().double()  # MPS has no double
        losses, correct = (torch.where(images > 0, each, 0.0) for each in (losses * images, correct))
        sums = processes.total(torch.stack([losses, correct, images])).T.tolist()
        batches = [(loss / images, int(correct), int(images)) for loss, correct, images in sums]
        for step, (loss, _, _) in zip(steps, batches):
            check_loss(self.run, loss, f"at step {step + 1}")
        self.last_loss = batches[-1][0]
        self.unread.clear()
        now = time.perf_counter()
        self.run.progress.add(batches, seconds=now - self.clock)
        self.clock = now

    def show(self, bar: tqdm) -> None:
        """Write the averages so far behind the progress bar, now and then; where there is no bar, because stderr is not
        a terminal, print them every SECONDS_PER_LINE."""
        progress = self.run.progress
        line_is_due = bar.disable and time.monotonic() - self.last_line >= SECONDS_PER_LINE
        bar_is_due = not bar.disable and (self.every > 1 or progress.step % 10 == 1)
        if self.unread or not (line_is_due or bar_is_due):
            return
        averages = (
            f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.3f}, {progress.images_per_second:.0f} images/s"
        )
        if line_is_due:
            epochs = f"epoch {progress.epoch + 1}/{self.run.config.epochs}"
            print(f"{epochs}, batch {progress.step}/{bar.total}: {averages}", flush=True)
            self.last_line = time.monotonic()
        else:
            bar.set_postfix_str(averages)


def is_due(step: int, count: int, every: int | None) -> bool:
    """Whether what happens every so many batches (0, None: never) is due after batch `step`, the last of `count` that
    made up one optimiser step."""
    return bool(every) and step // every > (step - count) // every


def log_step(run: Run, meter: Meter, step: int, count: int, rate: float) -> None:
    """Send the loss of batch `step`, counted over all epochs, the last of `count` of its optimiser step, to the tracker
    every config.log_every_n_steps."""
    progress = run.progress
    if not is_due(step, count, run.config.log_every_n_steps):
        return
    meter.flush()
    if run.tracker:
        run.tracker.scalars(
            step,
            {
                "step/loss": meter.last_loss,
                "step/accuracy": progress.accuracy,
                "step/learning_rate": rate,
                "step/images_per_second": progress.images_per_second,
            },
        )


def batches_from(batches: Iterable, seed: int, epoch: int, start: int, before: int) -> Iterable:
    """The batches of an epoch from number `start` on, as processes.shares() makes them. Ours can start anywhere; of
    other iterables the first batches are drawn and dropped."""
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(epoch, start)
        start = 0
    else:
        batches = in_order_of(batches, seed_of("order", seed, epoch))
    return itertools.islice(processes.shares(batches, before), start, None)


def in_order_of(batches: Iterable, seed: int) -> Iterator:
    """The batches of an iterable that draws its order from torch's generator when it begins, as a DataLoader does: the
    same order for the same seed, in each process and after a resume."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of CUDA and MPS too
        iterator = iter(batches)
        first = list(itertools.islice(iterator, 1))  # a sampler may draw only now
    yield from first
    yield from iterator


def gradients_exchanged(forward: Callable, is_last: bool) -> contextlib.AbstractContextManager:
    """The context of a forward and backward pass, the last one of a step or not: only then processes exchange their
    gradients."""
    return contextlib.nullcontext() if is_last or not hasattr(forward, "no_sync") else forward.no_sync()


def settle_batch_norm(run: Run, sets: Splits, batches: int = 20) -> None:
    """Give the model that is evaluated the batch-norm statistics that are saved with it: those of the first process,
    for each process has seen other images.

    Averaged weights first get statistics of their own, of so many batches of the epoch (Izmailov et al.,
    arXiv:1803.05407, section 3.2). Until then they have those of the raw weights, on mixed images if the run mixes."""
    if run.average and not run.config.freeze:  # a frozen stem keeps its own
        states = generator_states(run.device)  # dropout must not draw from what training draws from
        if hasattr(sets.train, "set_epoch"):
            sets.train.set_epoch(run.progress.epoch)
        update_bn(itertools.islice(sets.train, batches), run.average, run.device)
        set_generator_states(states, run.device)
    processes.copy_from_first(run.evaluated.buffers())
