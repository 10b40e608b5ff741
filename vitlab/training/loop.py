"""Training and evaluation: train_one_epoch, evaluate, fit.

config = TrainConfig.create(dataset="digits", epochs=40)
report = fit(config.build_model(), data.load(config), config)
"""

import contextlib
import copy
import json
import time

import torch
import yaml

from vitlab.checkpoint import load_weights, read_checkpoint, write_checkpoint
from vitlab.cli import UserError
from vitlab.config import SETTINGS, flag
from vitlab.evaluation import metrics
from vitlab.evaluation.report import evaluate, make_report
from vitlab.files import replacing, write_json
from vitlab.hardware import describe_hardware, find_device, pick_amp, try_compile
from vitlab.models.registry import count_parameters
from vitlab.pictures import canvas, figures
from vitlab.training import snapshots, tracking
from vitlab.training.epoch import train_one_epoch
from vitlab.training.optimizers import is_for_muon, make_average, make_optimizers
from vitlab.training.run_folder import COLUMNS, claim_folders, find_resume, make_folders, write_metrics
from vitlab.training.state import Progress, Run
from vitlab.training.stopping import Stopped, stop_at_signal


def out_of_patience(config, progress):
    """Whether early stopping ends the run here."""
    return config.early_stopping is not None and progress.waited >= config.early_stopping


def check(config):
    """Refuse, before any work, what cannot be trained: UserError."""
    pick_amp(find_device(config.device), config.amp)
    tracking.check(config.log_backend)
    find_resume(config)
    if config.init_from:
        read_checkpoint(config.init_from)


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


def fit(model, sets, config):
    """Train a model and return its report.

    model: a VisionTransformer, or any module from images B x C x H x W to logits B x classes.
    sets: splits.load's Splits; its batches may be any sized iterables of (images, labels) on the device.
    config: a TrainConfig; its folder_name is changed where a run of that name is there already.

    Writes MODEL_PATH/NAME/best.pt (on validation accuracy; without a validation split, the newest) and
    last.pt, and OUTPUT_PATH/NAME/metrics.csv, config.yaml, graph_loss.png, graph_accuracy.png,
    training.gif, report.json and the pictures of config.visualizers (snapshots.py). Raises UserError at
    a loss that is not finite, a folder that cannot be written or a checkpoint that does not fit;
    Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, with last.pt saved.
    """
    device = find_device(config.device)
    amp = pick_amp(device, config.amp)
    check_fit(model, sets, config)
    resumed = find_resume(config)
    taken = load_weights(model, config.init_from) if config.init_from and not resumed else []
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
        if best.exists() and read_checkpoint(best)["training"]["progress"]["epoch"] > progress.epoch:
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
        for name in [name for name in SETTINGS if name not in where]:
            now = getattr(config, name)
            before = resumed["config"].get(name, now)
            if before != now:
                print(f"from here on with {flag(name)} {now}, until now {before}")
    else:
        run.save("last.pt", sets)  # so that there is one, and a full disk is found before the first epoch
    with replacing(outputs / "config.yaml") as part:
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
        chosen = read_checkpoint(models / "best.pt")
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
            figures.plot_curve(
                progress.history,
                what,
                path,
                test=test and test[what],
                best_epoch=progress.best_epoch,
                soft_labels=bool(config.label_smoothing or config.mixup or config.cutmix),
            )
            run.tracker.picture(progress.epoch * steps, what, path)
            print(path)
        frames = figures.training_frames(progress.history, title=config.folder_name)
        print(canvas.save_gif(frames, outputs / "training.gif", frame_ms=200, hold=5))
        for path in pictures.finish():
            print(path)
        if test:
            run.tracker.scalars(progress.epoch * steps, {"test/accuracy": test["accuracy"], "test/loss": test["loss"]})
    print(write_json(outputs / "report.json", report))

    last = read_checkpoint(models / "last.pt")
    last["training"]["progress"]["finished"] = True
    write_checkpoint(models / "last.pt", last)

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
