"""Settings that do not go together."""

from typing import Any

from vitlab.catalog import DatasetInfo
from vitlab.cli import UserError, check_folder_name

CROPPING = ("crop", "crop-flip", "randaugment", "trivialaugment")  # the values of augment that crop


def check_settings(config: Any, info: DatasetInfo) -> None:
    """Raise UserError if settings of a complete TrainConfig do not go together, or not with its data set."""
    if config.num_classes < len(info.classes):
        raise UserError(
            f"--n_classes {config.num_classes}: {config.dataset} has {len(info.classes)}; leave the flag out"
        )
    if (config.mean or config.std) and not len(config.mean) == len(config.std) == config.in_chans:
        raise UserError(f"--mean and --std: give both, with {config.in_chans} values each")
    if config.crop_scale and (len(config.crop_scale) > 2 or config.crop_scale[0] > config.crop_scale[1]):
        raise UserError(
            f"--crop_scale {' '.join(map(str, config.crop_scale))}: give one number, or a smaller and a larger one"
        )
    if config.random_crops and config.augment not in CROPPING:
        raise UserError(f"--crop_scale: --augment {config.augment} does not crop; choose {', '.join(CROPPING)}")
    if config.warmup_steps is not None and config.warmup_epochs:
        raise UserError("--warmup_steps and --warmup_epochs say the same thing twice; keep one")
    if config.warmup_epochs >= config.epochs:
        raise UserError(
            f"--warmup_epochs {config.warmup_epochs:g} leaves nothing of --epochs {config.epochs}; choose fewer"
        )
    if config.min_lr > config.learning_rate:
        raise UserError(
            f"--min_lr {config.min_lr:g} is above --learning_rate {config.learning_rate:g}; choose a smaller one"
        )
    if (config.mixup or config.cutmix) and config.num_classes < 2:
        raise UserError("--mixup and --cutmix need two classes to mix; leave them out")
    if config.alternate_flip and config.augment not in ("none", "crop", "translate", "affine"):
        raise UserError(
            f"--alternate_flip: --augment {config.augment} flips at random already; choose translate or crop"
        )
    if config.early_stopping and not (config.val_split or config.folds):
        raise UserError("--early_stopping watches the validation loss, and --val_split 0 leaves none; raise it")
    if config.overwrite and config.resume:
        raise UserError("--overwrite starts anew and --resume goes on; keep one")
    if config.init_from and config.resume and config.resume != "auto":
        raise UserError("--init_from starts anew and --resume goes on; keep one")
    if config.fold >= (config.folds or 1):
        remedy = f"of --folds {config.folds} there are 0 to {config.folds - 1}" if config.folds else "it needs --folds"
        raise UserError(f"--fold {config.fold}: {remedy}")
    if config.visualizers and config.model != "vit":
        raise UserError(f"--visualizers show attention, and {config.model} has none; leave the flag out")
    if config.grad_checkpointing and config.model != "vit":
        raise UserError(f"--grad_checkpointing works on blocks, and {config.model} has none; leave it out")
    if config.fsdp and config.visualizers:
        raise UserError("--visualizers need the whole model in one process; leave out them or --fsdp")
    if config.visualize_layers and max(config.visualize_layers) >= config.depth:
        raise UserError(
            f"--visualize_layers {max(config.visualize_layers)}: --n_layers {config.depth} has layers 0 to "
            f"{config.depth - 1}"
        )
    check_folder_name(config.folder_name)
