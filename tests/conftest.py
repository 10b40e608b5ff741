"""Fixtures: real digits, real CIFAR-10 where ../shared is, and one small trained model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


def run(script, *args, cwd=None, **more):
    """Run one of the scripts as a user does; the finished process, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, **more)


os.environ["OMP_NUM_THREADS"] = "1"  # two pytest workers, each with its scripts, share the cores


def assert_refused(done, *words):
    """The script ended with exit status 2 and one line on stderr that has those words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory):
    """A folder with the official CIFAR-10 and CIFAR-100 files, rebuilt from ../shared."""
    if not (SHARED / "unpack.py").exists():
        pytest.skip("real CIFAR is unpacked from ../shared/data, which is not here")
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, SHARED / "unpack.py", root], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A folder in which `train.py --dataset digits --epochs 4` ran as a user runs it: (folder, process)."""
    root = tmp_path_factory.mktemp("digits")
    done = run("train.py", "--dataset", "digits", "--epochs", 4, cwd=root)
    assert done.returncode == 0, done.stderr
    return root, done
