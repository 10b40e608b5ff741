"""Everything that changes while a model is trained, saved and restored exactly."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from vitlab import processes
from vitlab.checkpoint import save_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import Splits
from vitlab.training.optimizers import MovingAverage
from vitlab.training.sharding import load_whole, load_whole_optimizer, whole
from vitlab.training.tracking import Tracker


@dataclass
class Progress:
    """Progress of a run: what a checkpoint stores besides tensors (under these field names)."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the current epoch, and their sums:
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0  # images
    seconds: float = 0.0
    history: list = field(default_factory=list)  # one dict per epoch: run_folder.COLUMNS
    best: dict | None = None  # validation result of the best epoch
    best_epoch: int = 0
    best_loss: float = math.inf  # the lowest validation loss; early stopping counts the epochs since then:
    waited: int = 0
    images: int = 0  # in a complete epoch
    dropped: list = field(default_factory=list)  # of each epoch, the share of the patches that was left out
    finished: bool = False
    test_readings: int = 0  # how often the test images were read
    wall: float = 0.0  # seconds of the complete run, without interruptions

    def add(self, batches: list[tuple[float, int, int]], seconds: float) -> None:
        """Add batches, each (mean loss, correct predictions, images), and the time that they took together."""
        for loss, correct, images in batches:
            self.loss_sum += loss * images
            self.correct += correct
            self.seen += images
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean training loss of the current epoch so far."""
        return self.loss_sum / self.seen

    @property
    def accuracy(self) -> float:
        """Training accuracy of the current epoch so far, 0..1."""
        return self.correct / self.seen

    @property
    def images_per_second(self) -> float:
        return self.seen / self.seconds

    def next_epoch(self, row: dict, val: dict | None) -> bool:
        """Close an epoch with its row of the history and its validation result; whether it is the best so far.
        Without validation the newest epoch is the best."""
        self.history.append(row)
        self.images = self.seen
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen, self.seconds = 0.0, 0, 0, 0.0
        if val:
            self.waited = 0 if val["loss"] < self.best_loss else self.waited + 1
            self.best_loss = min(self.best_loss, val["loss"])
        best = self.best
        is_best = not val or best is None or (val["accuracy"], -val["loss"]) > (best["accuracy"], -best["loss"])
        if is_best:
            self.best, self.best_epoch = val, self.epoch
        return is_best

    def out_of_patience(self, config: TrainConfig) -> bool:
        """Whether early stopping ends the run here."""
        return config.early_stopping is not None and self.waited >= config.early_stopping

    def is_over(self, config: TrainConfig) -> bool:
        """Whether no epoch is left, or early stopping ends the run here."""
        return self.epoch >= config.epochs or self.out_of_patience(config)


@dataclass
class Run:
    """A model in training and everything that changes with it; save() and restore() are exact."""

    model: nn.Module
    config: TrainConfig
    device: torch.device
    amp: torch.dtype | None  # of autocast; None: float32
    optimizers: list[torch.optim.Optimizer]
    schedule: Callable[[int], float]  # batch, counted from 0 over all epochs -> learning rate
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    forward: Callable[[torch.Tensor], torch.Tensor]  # the model, compiled or not, that exchanges gradients or not
    progress: Progress = field(default_factory=Progress)
    tracker: Tracker | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and tested: the averaged one if there is an average."""
        return self.average.module if self.average else self.model

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without interruptions."""
        return time.perf_counter() - self.began

    def save(self, name: str, sets: Splits) -> None:
        """Write MODEL_PATH/NAME/name, from which restore() continues exactly here.

        best.pt holds only weights and progress. If weights are averaged, "model" is the average, and "raw_model" of
        the training state holds the weights that the optimiser goes on from. All processes call this; the first writes.
        """
        training = {
            "progress": asdict(self.progress),
            "raw_model": whole(self.model.state_dict()) if self.average else None,
            "images": sets.fingerprints,
        }
        if name != "best.pt":
            first, *others = processes.gather(generator_states(self.device))
            training |= {
                "optimizers": [whole(optimizer.state_dict()) for optimizer in self.optimizers],
                "scaler": self.scaler.state_dict(),
                "averaged": int(self.average.n_averaged) if self.average else 0,
                "generators": first,
                "generators_of_others": others,
            }
        about = dict(classes=sets.classes, mean=sets.mean, std=sets.std, history=self.progress.history)
        path, state = self.config.checkpoint_folder / name, whole(self.evaluated.state_dict())
        if processes.is_first():
            save_checkpoint(path, state, self.config, **about, training=training)

    def restore(self, checkpoint: dict) -> None:
        """Go back to where save() wrote `checkpoint`. Weight decay and lr_scale stay as the config has them.

        Raises UserError if the optimisers' state does not fit.
        """
        training = checkpoint["training"]
        read_before = int(training["progress"]["finished"] and not checkpoint["config"]["no_test"])
        self.progress = Progress(**{"test_readings": read_before, **training["progress"]})  # older ones lack it
        self.progress.dropped += [0.0] * (self.progress.epoch - len(self.progress.dropped))
        self.began = time.perf_counter() - self.progress.wall - self.progress.seconds
        load_whole(self.evaluated, checkpoint["model"])
        if self.average:
            load_whole(self.model, training["raw_model"])
            self.average.n_averaged.fill_(training["averaged"])
        for optimizer, state in zip(self.optimizers, training["optimizers"], strict=True):
            flags = ("weight_decay", "lr_scale", "momentum", "normalize")
            configured = [{name: group[name] for name in flags if name in group} for group in optimizer.param_groups]
            try:
                load_whole_optimizer(optimizer, state)
            except ValueError as error:
                raise UserError(f"--resume: its optimiser is of another version ({error}); start anew") from None
            for group, settings in zip(optimizer.param_groups, configured):
                group.pop("scale", None)  # lr_scale's name in older checkpoints
                group.update(settings)
            match_layouts(optimizer)
        if training["scaler"]:  # empty if the run was not in float16 so far
            self.scaler.load_state_dict(training["scaler"])
        generators = [training["generators"], *training.get("generators_of_others", ())]
        if processes.rank() < len(generators):
            set_generator_states(generators[processes.rank()], self.device)
        if len(generators) != processes.count():
            print(f"from here on with {processes.count()} processes, until now {len(generators)}")


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser's state the memory layout of its parameters: filters are channels-last on CUDA alone, and a
    fused optimiser takes both in the order of the memory."""
    for parameter, state in optimizer.state.items():
        for name, values in state.items():
            if torch.is_tensor(values) and values.shape == parameter.shape and values.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=values.dtype).copy_(values)


def generator_states(device: torch.device) -> dict:
    """The state of every global random generator that a model or a data set may draw from."""
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one, which others may use
    states["numpy"] = (kind, keys.tolist(), *rest)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generator_states(states: dict, device: torch.device) -> None:
    """Undo what was drawn since generator_states()."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
