"""Running the trainings of a study."""

import contextlib
import json
import multiprocessing
import os
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vitlab.catalog import TITLES
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.datasets.splits import load_data
from vitlab.evaluation import metrics
from vitlab.evaluation.report import predict_all
from vitlab.files import replacing, writable_folder, write_json
from vitlab.hardware import find_device, pick_amp
from vitlab.models.registry import build_model, count_flops, count_parameters
from vitlab.study.plan import finished, plan, refuse_others, trials, what_was_set
from vitlab.training.loop import fit
from vitlab.training.run_folder import newest
from vitlab.training.stopping import Stopped


def run(study):
    """Run what is not there yet. Returns (results of the cells, in order; [(cell's name, error), ...]).

    Raises UserError where the folder holds another study's results, and Stopped after Ctrl-C:
    the same call goes on.
    """
    writable_folder(study.folder, "--output_path")
    refuse_others(study)
    failed = []
    rates = choose_learning_rates(study, failed)
    cells = plan(study, rates)
    done = run_cells(study, cells, failed)
    return [done[cell.name] for cell in cells if cell.name in done], failed


def choose_learning_rates(study, failed):
    """A dict model -> learning rate, the best of study.learning_rates on validation; empty where one is
    given. Prints the grid."""
    cells = trials(study)
    if not cells:
        single = len(study.learning_rates) == 1 and "learning_rate" not in {**study.settings, **study.grid}
        return dict.fromkeys(study.models, study.learning_rates[0]) if single else {}
    done, chosen = run_cells(study, cells, failed), {}
    epochs = {cell.row.model: cell.config.epochs for cell in cells}
    print(f"\nvalidation accuracy by learning rate, seed {study.seeds[0]}")
    for model in study.models:
        mine = {
            cell.config.learning_rate: done[cell.name]["val"]["accuracy"]
            for cell in cells
            if cell.row.model == model and cell.name in done
        }
        if not mine:
            first = next(row for row in study.rows() if row.model == model)
            rate = study.config(first, seed=study.seeds[0]).learning_rate
            print(f"{TITLES[model]:>20}: every trial failed; {rate:g} is taken")
            continue
        chosen[model] = max(mine, key=mine.get)
        words = ", ".join(f"{rate:g}: {accuracy:.4f}" for rate, accuracy in mine.items())
        print(f"{TITLES[model]:>20}: {words}; {epochs[model]} epochs; {chosen[model]:g} is taken")
    print()
    return chosen


def run_cells(study, cells, failed):
    """A dict name -> result of the cells that are finished or finish now; errors go to `failed`."""
    done = {cell.name: finished(study, cell) for cell in cells}
    waiting = [cell for cell in cells if done[cell.name] is None]
    done = {name: result for name, result in done.items() if result}
    if waiting and done:
        print(f"{len(done)} of {len(cells)} cells are there already")
    title = f"{len(cells)} trainings"
    bar = tqdm(total=len(cells), initial=len(done), desc=title, disable=None if waiting else True, unit="cell")

    def settle(cell, make):
        try:
            done[cell.name] = make()
        except Exception as error:  # whatever one cell dies of, the others go on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failed.append((cell.name, reason))
            bar.write(f"{cell.name} failed: {reason}")
        else:
            bar.write(f"{cell.name}: {in_words(done[cell.name])}")
        bar.update()

    with bar:
        if study.jobs == 1:
            for cell in waiting:
                bar.write(f"\n{cell.name}")
                settle(cell, lambda cell=cell: run_cell(cell))
            return done
        threads = max(1, len(os.sched_getaffinity(0)) // study.jobs) if hasattr(os, "sched_getaffinity") else 1
        context = multiprocessing.get_context("spawn")
        alone = []  # where a process is killed, all beside it end; which was it? each of them again, by itself
        while waiting or alone:
            todo, jobs = ([alone.pop(0)], 1) if alone else (waiting, study.jobs)
            running = {}
            with (
                contextlib.suppress(BrokenProcessPool),
                passing_on_sigterm(),
                ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool,
            ):
                while todo or running:
                    while todo and len(running) < jobs:  # no more, so that Ctrl-C finds none in a queue
                        future = pool.submit(run_quietly, todo[0])
                        running[future] = todo.pop(0)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        if jobs > 1 and isinstance(future.exception(), BrokenProcessPool):
                            raise future.exception()
                        settle(running.pop(future), future.result)
            alone += running.values()
    return done


@contextlib.contextmanager
def passing_on_sigterm():
    """Within it SIGTERM goes on to the processes side by side, which save themselves; then it raises Stopped.
    (Ctrl-C reaches them without us.)"""

    def pass_on(number, frame):
        for process in multiprocessing.active_children():
            process.terminate()
        raise Stopped(number)

    try:
        before = signal.signal(signal.SIGTERM, pass_on)
    except ValueError:  # not the main thread, which alone hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_words(result):
    """A cell's accuracies in a line."""
    parts = [f"{split} {result[split]['accuracy']:.4f}" for split in ("train", "val", "test") if result[split]]
    return f"{', '.join(parts)}, {result['seconds']:.0f} s"


def run_quietly(cell):
    """run_cell in a process of its own: what it prints goes to log.txt in its folder."""
    folder = writable_folder(cell.config.output_folder, "--output_path")
    with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return run_cell(cell)


def run_cell(cell):
    """Train and test one cell: its result, which is written to its folder's cell.json. The test images'
    labels, predictions and probabilities go to test.npz beside it; those of the validation images of a cell that is
    not tested to val.npz."""
    config = cell.config
    config.overwrite = newest(config) is None  # a folder without weights is from another machine, unfinished
    model = build_model(config)
    report = fit(model, load_data(config, splits=("train", "val")), config)
    path = config.checkpoint_folder / "best.pt"
    split = "test" if cell.test else "val"
    if cell.test or (cell.kind == "seed" and report["val"]):
        found = load_checkpoint(path, device=find_device(config.device))
        batches = getattr(load_data(config, splits=(split,), mean=found.mean, std=found.std), split)
        amp = pick_amp(batches.labels.device, config.amp)
        labels, logits = predict_all(found.model, batches, amp, split)
        if cell.test:
            report["test"] = metrics.summary(labels, logits.argmax(-1), F.cross_entropy(logits, labels))
            write_json(config.output_folder / "report.json", report)
        with replacing(config.output_folder / f"{split}.npz") as part, open(part, "wb") as file:
            small = {
                "labels": labels.numpy().astype(np.int16),
                "predictions": logits.argmax(-1).numpy().astype(np.int16),
            }
            np.savez_compressed(file, **small, probabilities=logits.softmax(-1).numpy().astype(np.float16))
    history = read_checkpoint(config.checkpoint_folder / "last.pt")["history"]
    result = {
        "name": cell.name,
        "row": cell.row.title,
        "kind": cell.kind,
        "model": config.model,
        "settings": what_was_set(config),
        "seed": config.seed,
        "parameters": count_parameters(model),
        "flops": count_flops(model),
        "images_per_second": report["images_per_second"],
        "seconds": report["seconds"],
        "hardware": report["hardware"],
        "history": history,
        "checkpoint": str(path),
        **{split: report[split] for split in ("train", "val", "test")},
    }
    write_json(config.output_folder / "cell.json", result)
    return json.loads(json.dumps(result))
