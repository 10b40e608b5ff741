"""Fitting one model.

config = TrainConfig.create(dataset="digits", epochs=40)
report = fit(build_model(config), load_data(config), config)
"""

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn

from model import VisionTransformer
from vitlab import processes
from vitlab.catalog import describe
from vitlab.checkpoint import read_checkpoint
from vitlab.cli import UserError
from vitlab.config import SETTINGS, TrainConfig, changed_settings, flag
from vitlab.datasets.splits import Splits
from vitlab.evaluation.report import evaluate
from vitlab.files import write_text
from vitlab.hardware import (
    describe_hardware,
    describe_precision,
    fast_training,
    find_device,
    has_bf16,
    pick_amp,
    to_device,
    try_compile,
    use_threads,
)
from vitlab.models.registry import count_parameters
from vitlab.training import tracking
from vitlab.training.epoch import check_loss, settle_batch_norm, train_one_epoch
from vitlab.training.fine_tuning import load_weights
from vitlab.training.finish import finish, finished_report
from vitlab.training.freezing import check_freezing, describe_frozen, freeze_parameters
from vitlab.training.optimizers import MovingAverage, make_optimizers, warmup_cosine
from vitlab.training.run_folder import (
    COLUMNS,
    SILENT_ON_RESUME,
    check_images,
    claim_folders,
    continue_in,
    find_resume,
    make_folders,
    write_metrics,
)
from vitlab.training.sharding import shard
from vitlab.training.snapshots import Snapshots, check_snapshots
from vitlab.training.state import Run
from vitlab.training.stopping import Stopped, stop_at_signal
from vitlab.training.whitening import set_whitening


def check_can_train(config: TrainConfig) -> None:
    """Raise UserError, before any work, if the machine, a package or a checkpoint does not allow the training.

    With --resume, model_path and folder_name become those of the run that is resumed.
    """
    check_processes(config, find_device(config.device))
    pick_amp(find_device(config.device), config.amp)
    check_freezing(config)
    tracking.check_backend(config.log_backend)
    resumed = find_resume(config, describe(config.dataset, config.data_path).classes, lazily=True)
    if resumed:
        continue_in(config, *resumed)
    elif config.init_from:
        read_checkpoint(config.init_from, lazily=True)


def check_processes(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError if settings do not suit the number of processes."""
    n = processes.count()
    if config.batch_size % n:
        near = f"{config.batch_size // n * n or n} or {(config.batch_size // n + 1) * n}"
        raise UserError(f"--batch_size {config.batch_size} does not divide into {n} processes; choose {near}")
    if config.fsdp and n == 1:
        raise UserError("--fsdp divides a model between processes: torchrun --nproc_per_node N train.py ...")
    if config.sync_batchnorm and n > 1 and device.type != "cuda":
        raise UserError(f"--sync_batchnorm: torch has it for CUDA, not for {device.type}; leave it out")


def fingerprint(config: TrainConfig, sets: Splits) -> dict[str, object]:
    """What must be the same in all processes: the settings, the code, the images."""
    settings = {name: value for name, value in vars(config).items() if name not in SILENT_ON_RESUME}
    values = {flag(name): value for name, value in settings.items()}
    root = Path(__file__).parents[1]
    code = b"".join(path.read_bytes() for path in [root.parent / "model.py", *sorted(root.rglob("*.py"))])
    values["version of the code"] = hashlib.sha1(code).hexdigest()[:8]
    for split in ("train", "val", "test"):
        batches = getattr(sets, split)
        if hasattr(batches, "sample"):
            images, _ = batches.sample(16)
            values[f"{split} split"] = f"{len(batches.labels)} images, {digest(batches.labels)} {digest(images)}"
    return values


def digest(values: torch.Tensor) -> str:
    """Eight digits that differ where the values do."""
    return hashlib.sha1(values.cpu().contiguous().numpy().tobytes()).hexdigest()[:8]


def check_last_batch(model: nn.Module, sets: Splits, config: TrainConfig) -> None:
    """Raise UserError if a process computes one image of the last batch, and batch norm needs more than one value per
    channel."""
    n, size = len(getattr(sets.train, "labels", ())), config.batch_size
    last, count = n % size or size, 1 if config.sync_batchnorm else processes.count()
    if n and last < 2 * count:  # so that one of them has less than two
        image = torch.zeros(1, config.in_chans, config.img_size, config.img_size)
        try:
            copy.deepcopy(model).cpu().train()(image)
        except (ValueError, RuntimeError) as error:  # a module of another size shows its own error later
            if "more than 1 value per channel" in str(error):
                few = f"{last} images, too few for {count} processes" if count > 1 else "one image"
                raise UserError(
                    f"--batch_size {size}: of {n} training images the last batch holds {few}, and batch norm needs "
                    "more than one value per channel; choose another size"
                ) from None


def fit(
    model: nn.Module,
    sets: Splits,
    config: TrainConfig,
    *,
    optimizers: list[torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], float] | None = None,
) -> dict:
    """Train a model and return its report (evaluation.report.make_report).

    model: a VisionTransformer, or any module from images B x C x H x W to logits B x classes.
    sets: load_data's Splits; its batches may be any sized iterables of (images, labels).
    config: changed if a run of its folder_name exists: the new run is called NAME-2, or the old one is resumed.
    optimizers: default make_optimizers(model, config). If given, the model must be on its device already.
    schedule: batch, counted from 0 over all epochs -> learning rate; default warmup_cosine.

    Writes MODEL_PATH/NAME/best.pt (best validation accuracy; without a validation split, the newest epoch) and
    last.pt, and OUTPUT_PATH/NAME/metrics.csv, config.yaml, graph_loss.png, graph_accuracy.png, training.gif,
    report.json and the pictures of config.visualizers (snapshots.py). Raises UserError if the loss is not finite, a
    folder cannot be written or a checkpoint does not fit; Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when
    last.pt is saved.

    Several processes train together if they call this within processes.joined(). All return the report.
    """
    run, config_before = begin(model, sets, config, optimizers, schedule)
    progress, steps = run.progress, len(sets.train)
    if progress.finished and progress.is_over(config):
        return finished_report(run)
    announce(run, sets, config_before)
    snapshots = Snapshots(config, sets, model, progress.epoch)
    first_step = progress.epoch * steps + progress.step + 1 if config_before else 0
    run.tracker = tracking.Tracker(config, config.output_folder, first_step)

    with contextlib.closing(run.tracker), stop_at_signal() as stop:
        while not progress.is_over(config):
            with fast_training(run.device, run.amp):
                train_loss, train_accuracy = train_one_epoch(run, sets, stop)
            settle_batch_norm(run, sets)
            val = evaluate(run.evaluated, sets.val, "validate") if sets.val else None
            if val:
                check_loss(run, val["loss"], "on the validation images")
            row = {
                "epoch": progress.epoch + 1,
                "learning_rate": run.optimizers[0].param_groups[0]["lr"],
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val and val["loss"],
                "val_accuracy": val and val["accuracy"],
                "seconds": round(progress.seconds, 3),
                "images_per_second": round(progress.images_per_second, 1),
            }
            is_best = progress.next_epoch(row, val)
            progress.wall = run.seconds
            log_epoch(run, row, steps)
            if progress.is_over(config) or progress.epoch % config.visualize_every_n_epochs == 0:
                for kind, path in snapshots.draw(run.evaluated, progress.epoch).items():
                    run.tracker.picture(progress.epoch * steps, kind, path)
                    print(path)

            if is_best:
                run.save("best.pt", sets)
            if config.save_every_n_epochs and progress.epoch % config.save_every_n_epochs == 0:
                run.save(f"ViT_model_{progress.epoch:03d}.pt", sets)
            run.save("last.pt", sets)
            if stopped := processes.largest(stop()):
                raise Stopped(stopped)
        if progress.out_of_patience(config):
            print(f"stopped early: no lower validation loss for {progress.waited} epochs")
        return finish(run, sets, snapshots)


def begin(
    model: nn.Module,
    sets: Splits,
    config: TrainConfig,
    optimizers: list[torch.optim.Optimizer] | None,
    schedule: Callable[[int], float] | None,
) -> tuple[Run, dict | None]:
    """Prepare a run: model, optimisers and folders, restored if the run is resumed.

    Returns the run, and the config with which it was trained before, None for a new one.
    """
    use_threads(config.threads)
    device = find_device(config.device)
    check_processes(config, device)
    if processes.count() > 1:
        processes.check_same(fingerprint(config, sets), "start all from the same code and data, with the same settings")
    amp = pick_amp(device, config.amp)
    if config.dataset is None and len(sets.classes) != config.num_classes:
        raise UserError(f"num_classes {config.num_classes}: the data has {len(sets.classes)} classes; give the same")
    if optimizers and any(parameter.device.type != device.type for parameter in model.parameters()):
        raise UserError(f"the model is not on {device}; move it there before its optimisers are made")
    to_device(model, device, sharded=config.fsdp)
    freeze_parameters(model, config)
    optimizers = optimizers or make_optimizers(model, config)
    check_last_batch(model, sets, config)
    check_snapshots(config, sets, model)
    schedule = schedule or warmup_cosine(config, steps_per_epoch=len(sets.train))
    if config.early_stopping and not sets.val:
        raise UserError(
            "--early_stopping watches the validation loss, and "
            f"--val_split {config.val_split:g} leaves no images for it; raise it"
        )

    resumed = processes.from_first(find_resume, config, sets.classes)
    if resumed:
        check_images(*resumed, sets.fingerprints)
        continue_in(config, *resumed)
        processes.from_first(make_folders, config, config.folder_name)
    else:
        set_whitening(model, sets)
        if config.init_from:
            print("\n".join(processes.from_first(load_weights, model, config.init_from, sets.classes)))
        config.folder_name = processes.from_first(claim_folders, config)

    torch.manual_seed(config.seed + processes.rank())  # for dropout
    average, forward = spread(model, sets, config, optimizers, amp)
    run = Run(
        model=model,
        config=config,
        device=device,
        amp=amp,
        optimizers=optimizers,
        schedule=schedule,
        scaler=torch.amp.GradScaler(device.type, enabled=amp == torch.float16),
        average=average,
        forward=forward,
    )
    if not resumed:
        return run, None
    checkpoint = resumed[1]
    run.restore(checkpoint)
    if processes.from_first(epoch_of_best, config) != run.progress.best_epoch:
        run.progress.best = None  # best.pt is missing, or from after the point we return to; the next epoch makes it
        if run.progress.is_over(config):
            raise UserError(
                f"--resume {resumed[0]}: no epoch is left from there, and the run's best.pt is missing or of a later "
                "one; raise --epochs, or leave out --early_stopping"
            )
    return run, checkpoint["config"]


def epoch_of_best(config: TrainConfig) -> int:
    """After which epoch best.pt was written; 0 if there is none."""
    best = config.checkpoint_folder / "best.pt"
    return read_checkpoint(best, lazily=True)["training"]["progress"]["epoch"] if best.exists() else 0


def spread(
    model: nn.Module,
    sets: Splits,
    config: TrainConfig,
    optimizers: list[torch.optim.Optimizer],
    amp: torch.dtype | None,
) -> tuple[MovingAverage | None, Callable]:
    """Prepare a model for its training, by one process or several: (the average of its weights, what to call in place
    of the model, which compiles it and exchanges gradients)."""
    processes.copy_from_first(model.state_dict().values())
    if config.sync_batchnorm and processes.count() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.grad_checkpointing:
        model.grad_checkpointing = True
    average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    if config.fsdp:
        shard(model, optimizers)
        if average:
            shard(average.module, [])
    own = ((share.images, share.labels) for share in processes.shares(sets.train))
    forward = try_compile(model, own, amp) if config.compile else model
    if processes.count() > 1 and not config.fsdp:
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # small ones
        forward = nn.parallel.DistributedDataParallel(forward)
    return average, forward


def announce(run: Run, sets: Splits, config_before: dict | None) -> None:
    """Say what is trained, and write config.yaml and the first last.pt."""
    model, config, progress = run.model, run.config, run.progress
    if progress.test_readings and sets.test and not config.no_test:
        print(f"the test images were read after epoch {progress.epoch} and will be again: choose nothing by them")
    progress.finished = False
    print(
        f"{config.folder_name}: {count_parameters(model):,} parameters on {describe_hardware(run.device)}, "
        f"{describe_precision(run.device, run.amp)}, seed {config.seed}"
        + (f", {processes.count()} processes" if processes.count() > 1 else "")
    )
    if run.device.type == "cpu" and run.amp == torch.bfloat16 and not has_bf16(run.device):
        print("this CPU has no bfloat16 instructions; it emulates them, far slower than float32 (--amp off)")
    if config.freeze:
        print(describe_frozen(model, config))
    print(sets.summary())
    if isinstance(model, VisionTransformer):
        side = model.grid_size
        print(f"{side} x {side} = {side**2} patches from {config.img_size} pixels a side")
    if config_before:
        print(f"going on after {progress.epoch} epochs and {progress.step} batches")
        announced = [name for name in SETTINGS if name not in SILENT_ON_RESUME]
        for name, (before, now) in changed_settings(config_before, config, announced).items():
            print(f"from here on with {flag(name)} {now}, until now {before}")
    else:
        run.save("last.pt", sets)  # so that there is one, and a full disk is found before the first epoch
    if processes.is_first():
        write_text(config.output_folder / "config.yaml", yaml.safe_dump(vars(config), sort_keys=False))


def log_epoch(run: Run, row: dict, steps_per_epoch: int) -> None:
    """metrics.csv, a line on the console, and the tracker."""
    if not processes.is_first():
        return
    write_metrics(run.config.output_folder / "metrics.csv", run.progress.history)
    line = f"epoch {row['epoch']:3d}: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}"
    if row["val_loss"] is not None:
        line += f"; validation {row['val_loss']:.4f}, {row['val_accuracy']:.4f}"
    print(f"{line}; lr {row['learning_rate']:.2e}, {row['images_per_second']:.0f} images/s", flush=True)
    run.tracker.scalars(row["epoch"] * steps_per_epoch, {f"epoch/{name}": row[name] for name in COLUMNS[1:]})
