"""The end of a run: the test images, once, then the report and the pictures."""

import json

from vitlab import processes
from vitlab.checkpoint import read_checkpoint, write_checkpoint
from vitlab.cli import UserError
from vitlab.datasets.splits import Splits
from vitlab.evaluation import metrics
from vitlab.evaluation.report import evaluate, make_report
from vitlab.files import write_json
from vitlab.hardware import describe_precision
from vitlab.pictures import canvas, figures
from vitlab.training.sharding import load_whole
from vitlab.training.snapshots import Snapshots
from vitlab.training.state import Run


def finish(run: Run, sets: Splits, snapshots: Snapshots) -> dict:
    """Test the weights that validation chose, write and return the report, and mark last.pt as finished. Of several
    processes the first one writes."""
    config, progress = run.config, run.progress
    best = config.checkpoint_folder / "best.pt"
    load_whole(run.evaluated, processes.from_first(read_checkpoint, best)["model"])
    test = evaluate(run.evaluated, sets.test, "test") if sets.test and not config.no_test else None
    progress.test_readings += test is not None

    row = progress.history[progress.best_epoch - 1]
    training_seconds = sum(row["seconds"] for row in progress.history)
    images = progress.images * len(progress.history)
    report = make_report(
        name=config.folder_name,
        dataset=config.dataset,
        checkpoint=best,
        seed=config.seed,
        device=run.device,
        model=run.model,
        seconds=run.seconds,
        images_per_second=images / training_seconds,
        images=images,
        patch_drop_rates=progress.dropped,
        data=sets.summary().splitlines(),
        train_dtype=describe_precision(run.device, run.amp),
        train=metrics.running(row["train_accuracy"], row["train_loss"], progress.images),
        val=progress.best,
        test=test,
    )
    if not processes.is_first():
        return report
    draw(run, len(sets.train), snapshots, test)
    print(write_json(config.output_folder / "report.json", report))

    last = read_checkpoint(config.checkpoint_folder / "last.pt")
    last["training"]["progress"].update(finished=True, test_readings=progress.test_readings)
    write_checkpoint(config.checkpoint_folder / "last.pt", last)

    if val := progress.best:
        print(f"best epoch {progress.best_epoch}: validation accuracy {val['accuracy']:.4f}, loss {val['loss']:.4f}")
    if test:
        low, high = test["ci95"]
        print(
            f"test accuracy {test['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"loss {test['loss']:.4f}, {test['n']} images"
        )
    return report


def draw(run: Run, steps_per_epoch: int, snapshots: Snapshots, test: dict | None) -> None:
    """The two graphs, training.gif and the GIFs of the snapshots; the graphs and the test result go to the tracker."""
    config, progress, folder = run.config, run.progress, run.config.output_folder
    step = progress.epoch * steps_per_epoch
    for quantity in ("loss", "accuracy"):
        path = folder / f"graph_{quantity}.png"
        figures.plot_curve(
            progress.history,
            quantity,
            path,
            test=test and test[quantity],
            test_readings=progress.test_readings,
            best_epoch=progress.best_epoch,
            soft_labels=config.soft_labels,
        )
        run.tracker.picture(step, quantity, path)
        print(path)
    frames = figures.training_frames(progress.history, title=config.folder_name, soft_labels=config.soft_labels)
    print(canvas.save_gif(frames, folder / "training.gif", frame_ms=200, hold=5))
    for path in snapshots.write_gifs():
        print(path)
    if test:
        run.tracker.scalars(step, {"test/accuracy": test["accuracy"], "test/loss": test["loss"]})


def finished_report(run: Run) -> dict:
    """The report of a run that has nothing left to do. Raises UserError if its report.json is missing."""
    config = run.config
    best = config.checkpoint_folder / "best.pt"
    print(f"{config.folder_name} is finished: {run.progress.epoch} epochs, {best}")
    try:
        return json.loads((config.output_folder / "report.json").read_text())
    except OSError:
        raise UserError(
            f"{config.output_folder} has no report.json of it; give the --output_path it was trained with"
        ) from None
