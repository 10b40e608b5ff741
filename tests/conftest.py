"""Fixtures: real digits, real CIFAR-10 where ../shared is, and one small trained model."""

import functools
import http.server
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ["OMP_NUM_THREADS"] = "1"  # two pytest workers, each with its scripts, share the cores

# Importing torch and the rest takes seconds, so scripts are forked from a process that has done it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    "torchvision.transforms.v2 torch.optim.swa_utils sklearn.metrics sklearn.datasets matplotlib.pyplot".split()
)


def run(script, *args, cwd=None, env=None):
    """Run one of the scripts, or a module such as "demos.diagrams", as a user does, in a process and a folder of
    its own; the finished process, its output as text. With an environment of its own it starts from nothing."""
    argv = [*([str(ROOT / script)] if str(script).endswith(".py") else ["-m", script]), *map(str, args)]
    if env:
        env = {**env, "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = FORKS.Process(target=_script, args=(argv, cwd or ROOT, out, err))
        process.start()
        process.join()
        return subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())


def _script(argv, cwd, out, err):
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method(None, force=True)  # its own workers start as those of a script do
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def loaded_modules(script, *args, cwd=None):
    """The names of all modules that a script has imported when it ends well, in a fresh process."""
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        "print('\\nmodules:', *sys.modules)"
    )
    argv = [str(ROOT / script), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = f"import sys\nsys.argv = {argv!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", starter], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("modules:", 1)[1].split())


def assert_refused(done, *words):
    """The script ended with exit status 2 and one line on stderr that has those words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: (its address, the folder it serves)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory):
    """A folder with the official CIFAR-10 and CIFAR-100 files: rebuilt from ../shared, or ./data."""
    if not (SHARED / "unpack.py").exists():
        if all((ROOT / "data" / name).is_dir() for name in ("cifar-10-batches-py", "cifar-100-python")):
            return ROOT / "data"
        pytest.skip("real CIFAR is not in ./data: python download.py cifar10, and cifar100")
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
