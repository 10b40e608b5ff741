"""Running the trainings of a study: choosing learning rates, then every cell, one by one or side by side."""

import contextlib
import functools
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vitlab.catalog import TITLES
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data, load_split
from vitlab.evaluation import metrics
from vitlab.evaluation.report import predict_all
from vitlab.files import replacing, writable_folder, write_json
from vitlab.hardware import find_device
from vitlab.models.registry import build_model, count_flops, count_parameters
from vitlab.study.design import Cell, Study
from vitlab.study.plan import check_folder, check_sizes, finished_result, plan, recorded_settings, trials
from vitlab.training.loop import fit
from vitlab.training.run_folder import last_checkpoints
from vitlab.training.stopping import passing_on_sigterm


def run(study: Study) -> tuple[list[dict], list[tuple[str, str]]]:
    """Run what is not there yet. Returns (results of the cells, in order; [(name of a failed cell, error), ...]).

    Raises UserError if a model cannot be built or the folder holds another study's results, and Stopped
    after Ctrl-C: the same call goes on.
    """
    check_sizes(study)
    writable_folder(study.folder, "--output_path")
    check_folder(study)
    failed = []
    rates = choose_learning_rates(study, failed)
    cells = plan(study, rates)
    results = run_cells(study, cells, failed)
    return [results[cell.name] for cell in cells if cell.name in results], failed


def choose_learning_rates(study: Study, failed: list) -> dict[str, float]:
    """For each model the learning rate of study.learning_rates that is best on validation; empty if one is
    given. Prints the grid; errors go to `failed`."""
    cells = trials(study)
    if not cells:
        single = len(study.learning_rates) == 1 and "learning_rate" not in {**study.settings, **study.grid}
        return dict.fromkeys(study.models, study.learning_rates[0]) if single else {}
    results, chosen = run_cells(study, cells, failed), {}
    print(f"\nvalidation accuracy by learning rate, seed {study.seeds[0]}")
    for model in study.models:
        finished = [cell for cell in cells if cell.row.model == model and cell.name in results]
        if not finished:
            first = next(row for row in study.rows() if row.model == model)
            rate = study.config(first, seed=study.seeds[0]).learning_rate
            print(f"{TITLES[model]:>20}: every trial failed; {rate:g} is taken")
            continue
        accuracies = {cell.config.learning_rate: results[cell.name]["val"]["accuracy"] for cell in finished}
        chosen[model] = max(accuracies, key=accuracies.get)
        grid = ", ".join(f"{rate:g}: {accuracy:.4f}" for rate, accuracy in accuracies.items())
        print(f"{TITLES[model]:>20}: {grid}; {finished[0].config.epochs} epochs; {chosen[model]:g} is taken")
    print()
    return chosen


def run_cells(study: Study, cells: list[Cell], failed: list) -> dict[str, dict]:
    """The results by name of the cells that are finished or finish now; errors go to `failed`."""
    results = {cell.name: result for cell in cells if (result := finished_result(study, cell))}
    waiting = [cell for cell in cells if cell.name not in results]
    if waiting and results:
        print(f"{len(results)} of {len(cells)} cells are there already")
    title = f"{len(cells)} trainings"
    bar = tqdm(total=len(cells), initial=len(results), desc=title, disable=None if waiting else True, unit="cell")

    def settle(cell: Cell, get_result: Callable[[], dict]) -> None:
        try:
            results[cell.name] = get_result()
        except Exception as error:  # whatever one cell dies of, the others go on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failed.append((cell.name, reason))
            bar.write(f"{cell.name} failed: {reason}")
        else:
            bar.write(f"{cell.name}: {format_result(results[cell.name])}")
        bar.update()

    with bar:
        if study.jobs > 1:
            run_side_by_side(waiting, study.jobs, settle)
        else:
            for cell in waiting:
                bar.write(f"\n{cell.name}")
                settle(cell, lambda cell=cell: run_cell(cell))
    return results


def run_side_by_side(waiting: list[Cell], jobs: int, settle: Callable[[Cell, Callable[[], dict]], None]) -> None:
    """Run cells in `jobs` processes, which share the CPU's cores; settle(cell, get_result) hears of each.

    If a process is killed, its pool ends the others too and does not say which it was: all cells that
    were running then run again, each in a pool of its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    start = functools.partial(
        ProcessPoolExecutor,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(max(1, cores // jobs),),
    )
    suspects = []
    while waiting or suspects:
        todo, workers = ([suspects.pop(0)], 1) if suspects else (waiting, jobs)
        running = {}
        with contextlib.suppress(BrokenProcessPool), passing_on_sigterm(), start(workers) as pool:
            while todo or running:
                while todo and len(running) < workers:  # no more, so that Ctrl-C finds none in a queue
                    future = pool.submit(run_quietly, todo[0])
                    running[future] = todo.pop(0)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if workers > 1 and isinstance(future.exception(), BrokenProcessPool):
                        raise future.exception()
                    settle(running.pop(future), future.result)
        suspects += running.values()


def format_result(result: dict) -> str:
    """A cell's accuracies and seconds in one line."""
    parts = [f"{split} {result[split]['accuracy']:.4f}" for split in ("train", "val", "test") if result[split]]
    return f"{', '.join(parts)}, {result['seconds']:.0f} s"


def run_quietly(cell: Cell) -> dict:
    """run_cell in a process of its own: what it prints goes to log.txt in its folder."""
    folder = writable_folder(cell.config.output_folder, "--output_path")
    log_file = open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace")
    with log_file as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return run_cell(cell)


def run_cell(cell: Cell) -> dict:
    """Train and test one cell. Returns its result, which is also written to cell.json in its folder."""
    config = cell.config
    config.overwrite = not last_checkpoints(config)  # a folder without weights is from another machine, unfinished
    model = build_model(config)
    report = fit(model, load_data(config, splits=("train", "val")), config)
    if cell.test:
        labels, logits = predict(config, "test")
        report["test"] = metrics.summary(labels, logits.softmax(-1), F.cross_entropy(logits, labels))
        write_json(config.output_folder / "report.json", report)
    elif cell.kind == "seed" and report["val"]:
        predict(config, "val")
    history = read_checkpoint(config.checkpoint_folder / "last.pt")["history"]
    result = {
        "name": cell.name,
        "row": cell.row.title,
        "kind": cell.kind,
        "model": config.model,
        "settings": recorded_settings(config),
        "seed": config.seed,
        "parameters": count_parameters(model),
        "flops": count_flops(model),
        "images_per_second": report["images_per_second"],
        "seconds": report["seconds"],
        "hardware": report["hardware"],
        "history": history,
        "checkpoint": str(config.checkpoint_folder / "best.pt"),
        **{split: report[split] for split in ("train", "val", "test")},
    }
    write_json(config.output_folder / "cell.json", result)
    return json.loads(json.dumps(result))


def predict(config: TrainConfig, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels n, logits n x C) of a split by a finished run's best.pt. The labels, predictions and
    probabilities are written to SPLIT.npz in its folder."""
    checkpoint = load_checkpoint(config.checkpoint_folder / "best.pt", device=find_device(config.device))
    batches = load_split(config, split, mean=checkpoint.mean, std=checkpoint.std)
    labels, logits = predict_all(checkpoint.model, batches, split)
    arrays = {
        "labels": labels.numpy().astype(np.int16),
        "predictions": logits.argmax(-1).numpy().astype(np.int16),
        "probabilities": logits.softmax(-1).numpy().astype(np.float16),
    }
    with replacing(config.output_folder / f"{split}.npz") as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    return labels, logits
