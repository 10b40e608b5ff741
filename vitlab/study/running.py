"""Running the trainings of a study: choosing learning rates, then every cell, one by one or side by side. Processes on
any number of machines that share its folder share the cells too."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vitlab.catalog import TITLES
from vitlab.checkpoint import load_checkpoint, read_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data, load_split
from vitlab.evaluation import metrics
from vitlab.evaluation.report import predict_all
from vitlab.files import replacing, writable_folder, write_json
from vitlab.hardware import find_device
from vitlab.models.registry import build_model, count_flops, count_parameters
from vitlab.study.claims import Claim, claim_cell, newest_claim, remove_claims
from vitlab.study.design import Cell, Study
from vitlab.study.plan import check_folder, check_sizes, finished_result, plan, recorded_settings, trials
from vitlab.training.loop import fit
from vitlab.training.run_folder import last_checkpoints
from vitlab.training.stopping import passing_on_sigterm

LOOK = 2.0  # seconds between two looks at what other processes have finished


def run(study: Study) -> tuple[list[dict], list[tuple[str, str]]]:
    """Run what is not there yet. Returns (results of the cells, in order; [(name of a failed cell, error), ...]).

    Raises UserError if a model cannot be built, there are too few images, no trial of a learning rate succeeds or the
    folder holds another study's results, and Stopped after Ctrl-C: the same call goes on.
    """
    check_sizes(study)
    writable_folder(study.folder, "--output_path")
    check_folder(study)
    failed = []
    rates = choose_learning_rates(study, failed)
    cells = plan(study, rates)
    if all(finished_result(study, cell) for cell in cells):
        print(f"all trainings are in {study.folder} already; to train anew give another --folder_name")
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
            why = dict(failed)[next(cell.name for cell in cells if cell.row.model == model)]
            raise UserError(f"every trial of a learning rate failed for {TITLES[model]}, the first: {why}")
        accuracies = {cell.config.learning_rate: results[cell.name]["val"]["accuracy"] for cell in finished}
        chosen[model] = max(accuracies, key=accuracies.get)
        grid = ", ".join(f"{rate:g}: {accuracy:.4f}" for rate, accuracy in accuracies.items())
        print(f"{TITLES[model]:>20}: {grid}; {finished[0].config.epochs} epochs; {chosen[model]:g} is taken")
    print()
    return chosen


def run_cells(study: Study, cells: list[Cell], failed: list) -> dict[str, dict]:
    """The results by name of the cells that are finished or finish now, here or in other processes that share the
    study's folder; errors go to `failed`."""
    work = Work(study, cells)
    try:
        with work.bar, passing_on_sigterm():
            if study.jobs > 1:
                run_side_by_side(work, study.jobs)
            else:
                run_one_by_one(work)
    finally:
        work.release()
    failed += [(name, error) for name, error in work.errors.items() if name not in work.results]
    return work.results


class Work:
    """The cells of a study that are not finished, shared with other processes by claims (claims.py)."""

    def __init__(self, study: Study, cells: list[Cell]):
        self.study, self.cells = study, cells
        self.results = {cell.name: result for cell in cells if (result := finished_result(study, cell))}
        self.errors = {}  # name -> why the cell failed here; another process may try it too
        self.claims = {}  # name -> claim of a cell that is trained here
        self.elsewhere = {}  # name -> who trains the cell
        self.has_waited = False
        done, n = len(self.results), len(cells)
        if 0 < done < n:
            print(f"{done} of {n} cells are there already")
        disable = True if done == n else None
        self.bar = tqdm(total=n, initial=done, desc=f"{n} trainings", disable=disable, unit="cell")

    def claim_next(self) -> Cell | None:
        """A cell to train here, which is claimed; None if none is free. Takes up what others have finished."""
        self.elsewhere = {}
        for cell in self.cells:
            name, folder = cell.name, cell.config.output_folder
            if name in self.results or name in self.claims:
                continue
            claim, holder = (None, newest_claim(folder)[1]) if name in self.errors else claim_cell(folder)
            if claim:
                self.claims[name] = claim
            if holder:
                self.elsewhere[name] = holder
            elif result := finished_result(self.study, cell):  # looked up after claiming: nobody can be at it now
                self.add(cell, result, ", by another process")
            elif claim:
                return cell
        return None

    def add(self, cell: Cell, result: dict, note: str = "") -> None:
        """Take up the result of a cell, which then needs no claim."""
        self.results[cell.name] = result
        self.claims.pop(cell.name, None)
        remove_claims(cell.config.output_folder)
        self.tell(f"{cell.name}: {format_result(result)}{note}")

    def settle(self, cell: Cell, get_result: Callable[[], dict]) -> None:
        """Take up what a training here has come to: the result that get_result returns, or the error it raises."""
        try:
            result = get_result()
        except Exception as error:  # whatever one cell dies of, the others go on
            self.errors[cell.name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.claims.pop(cell.name).release()
            self.tell(f"{cell.name} failed: {self.errors[cell.name]}")
        else:
            self.add(cell, result)

    def tell(self, line: str) -> None:
        """Print a line above the bar, which moves on."""
        self.bar.write(line)
        self.bar.update(len({**self.results, **self.errors}) - self.bar.n)

    def wait_for_others(self) -> bool:
        """Sleep a moment, because other processes are training cells; False if none is."""
        if not self.elsewhere:
            return False
        if not self.has_waited:
            self.has_waited = True
            lines = [f"  {name}: {holder}" for name, holder in self.elsewhere.items()]
            self.bar.write("\n".join(["waiting for what other processes train; Ctrl-C ends only this one", *lines]))
        time.sleep(LOOK)
        return True

    def release(self) -> None:
        """Give up all claims, so that others need not wait until they are stale."""
        for claim in self.claims.values():
            claim.release()


def run_one_by_one(work: Work) -> None:
    """Run the cells in this process, until none is left that is not finished or failed."""
    while (cell := work.claim_next()) or work.wait_for_others():
        if cell:
            work.bar.write(f"\n{cell.name}")
            work.settle(cell, functools.partial(run_claimed, cell, work.claims[cell.name]))


def run_side_by_side(work: Work, jobs: int) -> None:
    """Run the cells in `jobs` processes, which share the CPU's cores and the GPUs. Each is a pool of its own, so that
    one that is killed ends no other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    start = functools.partial(
        ProcessPoolExecutor,
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(max(1, cores // jobs),),
    )
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start()) for _ in range(jobs)]
        running = {}  # future -> (cell, number of its worker)
        idle = list(range(jobs))
        while True:
            while idle and (cell := work.claim_next()):  # no more than run, so that Ctrl-C finds none in a queue
                number = idle.pop(0)
                device = worker_device(cell.config.device, number, torch.cuda.device_count())
                moved = dataclasses.replace(cell, config=dataclasses.replace(cell.config, device=device))
                future = workers[number].submit(run_quietly, moved, work.claims[cell.name])
                running[future] = cell, number
            if not running and not work.wait_for_others():
                return
            for future in wait(running, timeout=LOOK, return_when=FIRST_COMPLETED).done:
                cell, number = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    workers[number] = stack.enter_context(start())
                work.settle(cell, future.result)
                idle.append(number)


def worker_device(device: str, number: int, gpus: int) -> str:
    """The --device of worker `number` (from 0): where several GPUs are to choose from, "auto" and "cuda" are spread
    over them in turn."""
    return f"cuda:{number % gpus}" if device in ("auto", "cuda") and gpus > 1 else device


def format_result(result: dict) -> str:
    """A cell's accuracies and seconds in one line."""
    parts = [f"{split} {result[split]['accuracy']:.4f}" for split in ("train", "val", "test") if result[split]]
    return f"{', '.join(parts)}, {result['seconds']:.0f} s"


def run_quietly(cell: Cell, claim: Claim) -> dict:
    """run_claimed in a process of its own: what it prints goes to log.txt in its folder."""
    folder = writable_folder(cell.config.output_folder, "--output_path")
    log_file = open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace")
    with log_file as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return run_claimed(cell, claim)


def run_claimed(cell: Cell, claim: Claim) -> dict:
    """run_cell, while the claim is kept."""
    with claim.kept():
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
        "git_commit": report["git_commit"],
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
