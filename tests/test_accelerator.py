"""Training on an accelerator, without one. Tensors on torch's "meta" device have a shape and no values: an operation
that mixes devices fails, and so does one that reads a value, for which an accelerator would be waited for."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vitlab.config import TrainConfig
from vitlab.datasets import augment
from vitlab.datasets.splits import load_data
from vitlab.models.registry import build_model
from vitlab.training.epoch import Meter, train_one_epoch
from vitlab.training.optimizers import MovingAverage, make_optimizers, warmup_cosine
from vitlab.training.state import Run

META = torch.device("meta")


class RefuseWaits(TorchDispatchMode):
    """Raises where a tensor is copied to the accelerator and the copy is waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            assert kwargs.get("non_blocking"), f"a copy of {tuple(args[0].shape)} is waited for"
        return func(*args, **kwargs)


@pytest.mark.parametrize("policy, stem", [*((policy, "linear") for policy in augment.POLICIES), ("crop", "whitened")])
def test_a_step_waits_for_nothing(policy, stem, monkeypatch):
    adamw = torch.optim.AdamW  # fused knows no meta tensors
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: adamw(groups, lr=lr, foreach=True))
    monkeypatch.setattr("vitlab.training.epoch.autocast", lambda device, dtype: contextlib.nullcontext())  # nor this
    read = []
    monkeypatch.setattr(Meter, "flush", lambda meter: (read.append(len(meter.unread)), meter.unread.clear()))
    flips = dict(alternate_flip=True) if policy in ("none", "crop", "translate", "affine") else {}
    config = TrainConfig.create(
        dataset="digits", in_chans=3, img_size=16, depth=2, embed_dim=16, num_heads=2, stem=stem, pool="cls",
        batch_size=32, num_train_images=800, val_split=0, augment=policy, random_erasing=0.5, cutmix=1.0, mixup=1.0,
        drop_rate=0.1, drop_path_rate=0.1, optimizer="muon", ema_decay=0.9, clip_grad=1.0, epochs=1, **flips,
    )  # fmt: skip
    sets = load_data(config, ("train",), device=META)
    model = build_model(config).to(META)
    run = Run(
        model=model, config=config, device=META, amp=None, optimizers=make_optimizers(model, config),
        schedule=warmup_cosine(config, len(sets.train)), scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=MovingAverage(model, 0.9), forward=model,
    )  # fmt: skip
    run.progress.seen = 1
    monkeypatch.setattr("vitlab.training.epoch.check_weights", lambda *args: None)
    with RefuseWaits():
        train_one_epoch(run, sets, lambda: 0)
    assert read[0] == 20 and sum(read) == len(sets.train) == 25  # losses are read twenty at a time
