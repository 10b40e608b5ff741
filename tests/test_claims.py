"""A study in several processes at once: each cell is trained by one of them."""

import contextlib
import functools
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, forks

from vitlab.study import claims, running
from vitlab.study.claims import claim_cell, newest_claim, remove_claims
from vitlab.study.design import Study
from vitlab.study.running import worker_device


def test_a_claim_is_given_once_and_again_when_it_is_free(tmp_path):
    folder = tmp_path / "cell"

    def several():
        barrier = threading.Barrier(8)

        def claim(_):
            barrier.wait()
            return claim_cell(folder)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(claim, range(8)))
        (given,) = [claim for claim, holder in answers if claim]
        assert all(claim or holder for claim, holder in answers)
        return given

    for number in (1, 2, 3):
        given = several()
        assert given.path == folder / f"claim-{number}"
        assert (
            claim_cell(folder) == (None, newest_claim(folder)[1]) and f"process {os.getpid()}" in claim_cell(folder)[1]
        )
        if number == 1:
            given.release()
        else:
            before = time.time() - claims.STALE - 1
            os.utime(given.path, (before, before))
    remove_claims(folder)
    assert not list(folder.iterdir()) and newest_claim(folder) == (0, "")


def test_a_claim_is_renewed_while_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW", 0.01)
    claim, _ = claim_cell(tmp_path)
    with claim.kept():
        for _ in range(3):
            os.utime(claim.path, (0, 0))
            while not newest_claim(tmp_path)[1]:
                time.sleep(0.01)
    assert not claim.path.exists()

    claim, _ = claim_cell(tmp_path)
    with pytest.raises(KeyboardInterrupt), claim.kept():
        raise KeyboardInterrupt
    assert newest_claim(tmp_path) == (1, "")  # free at once
    again, _ = claim_cell(tmp_path)
    claim.release()  # what its former holder still does changes nothing
    assert newest_claim(tmp_path)[0] == 2 and newest_claim(tmp_path)[1] and again.path.name == "claim-2"


def run_study(folder, number):
    """A study in the folder; results-NUMBER.json is what it returns, out-NUMBER what it prints."""
    os.chdir(folder)
    settings = dict(dataset="digits", models=["mlp"], num_train_images=200, epochs=2, no_test=True)
    study = Study.create(settings, seeds=[0, 1, 2], learning_rates=[1e-4, 1e-3])
    with open(f"out-{number}", "w") as file, contextlib.redirect_stdout(file):
        Path(f"results-{number}.json").write_text(json.dumps(running.run(study)))


def test_three_at_once_train_each_cell_once(tmp_path):
    processes = [forks().Process(target=run_study, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    out = "".join(path.read_text() for path in tmp_path.glob("out-*"))
    cells = ["mlp-seed0", "mlp-seed1", "mlp-seed2"]
    trained = re.findall(r"^(\S+): [\d,]+ parameters on", out, flags=re.M)
    assert sorted(trained) == [*cells, "trial-mlp-lr0.0001", "trial-mlp-lr0.001"]
    results = [json.loads(path.read_text()) for path in tmp_path.glob("results-*")]
    assert results[0] == results[1] == results[2]
    assert [cell["name"] for cell in results[0][0]] == cells and not results[0][1]
    assert not [path for path in tmp_path.rglob("*") if "claim" in path.name or path.name.endswith(".part")]


def test_a_cell_that_fails_here_may_be_finished_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(dataset="digits", models=["mlp"], num_train_images=200, epochs=1, no_test=True, learning_rate=1e-3)
    real = running.run_cell

    def run_cell(cell):
        result = real(cell)  # its files are those that another machine would leave
        raise MemoryError(f"{result['name']} does not fit")

    monkeypatch.setattr(running, "run_cell", run_cell)
    cells, failed = running.run(Study.create(settings, seeds=[0]))
    assert [cell["name"] for cell in cells] == ["mlp-seed0"] and not failed


@pytest.mark.slow
def test_the_cell_of_a_dead_process_is_taken_over(tmp_path):
    flags = ["--dataset", "digits", "--models", "mlp", "--seeds", "0", "--learning_rate", "1e-3", "--epochs", "20"]
    start = functools.partial(
        subprocess.Popen, [sys.executable, "-u", ROOT / "compare.py", *flags, "--num_train_images", "200"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def read_until(process, words):
        return next(text for text in process.stdout if words in text)

    with start() as first:
        read_until(first, "epoch   3")
        first.kill()
    with start() as second:
        read_until(second, "waiting for what other processes train")
        assert f"mlp-seed0: {platform.node()}, process {first.pid}" in second.stdout.readline()
        os.utime(tmp_path / "output/comparison/mlp-seed0/claim-1", (0, 0))  # two minutes later
        assert int(re.search(r"after (\d+) epochs", read_until(second, "going on after"))[1]) >= 2
        out, _ = second.communicate()
    assert second.returncode == 0 and "| 1 | MLP |" in out
    assert not list(tmp_path.rglob("claim-*"))


def test_workers_are_spread_over_the_gpus():
    def devices(name, gpus):
        return [worker_device(name, number, gpus) for number in range(5)]

    assert devices("auto", 2) == devices("cuda", 2) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert devices("auto", 8) == [f"cuda:{number}" for number in range(5)]
    for name, gpus in (("auto", 0), ("auto", 1), ("cuda", 1), ("cuda:1", 4), ("cpu", 4), ("mps", 0)):
        assert devices(name, gpus) == [name] * 5  # as it was asked for
