"""Everything that changes while a model is trained, saved and restored exactly."""

import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from vitlab.checkpoint import save_checkpoint
from vitlab.cli import UserError
from vitlab.training import tracking


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
        save_checkpoint(path, self.evaluated, self.config, **known, training=training)

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
