"""Fixtures: real digits, real CIFAR-10 where ../shared is, and one small trained model."""

import functools
import http.server
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import filelock
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ["OMP_NUM_THREADS"] = "1"  # two pytest workers, each with its scripts, share the cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell script; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def forks():
    """A context for processes that are forked from one that has imported what takes seconds (preloaded.py)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests", ROOT))))
        multiprocessing.forkserver.ensure_running()
    return context


def run(script, *args, cwd=None, env=None, curves=False):
    """Run one of the scripts, or a module such as "demos.diagrams", as a user does, in a process and a folder of
    its own; the finished process, its output as text. With an environment of its own it starts from nothing.

    curves: whether a training draws its curves at the end, which takes longer than most of the trainings here."""
    argv = [*([str(ROOT / script)] if str(script).endswith(".py") else ["-m", script]), *map(str, args)]
    if env:
        env = {**env, "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = forks().Process(target=_script, args=(argv, cwd or ROOT, out, err, curves))
        process.start()
        process.join()
        return subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())


def _script(argv, cwd, out, err, curves=False):
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method(None, force=True)  # its own workers start as those of a script do
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    if not curves:
        from vitlab.training import finish

        finish.draw = lambda *args: None
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


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Trainings within a test draw no curves either, unless it is marked `curves`."""
    if "vitlab.training.finish" in sys.modules and "curves" not in request.keywords:
        monkeypatch.setattr("vitlab.training.finish.draw", lambda *args: None)


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
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cifar"  # all workers share one
    root.mkdir(exist_ok=True)
    with filelock.FileLock(root / "lock"):
        if not (root / "done").exists():
            subprocess.run([sys.executable, SHARED / "unpack.py", root], check=True, capture_output=True)
            (root / "done").touch()
    return root


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A folder in which `train.py --dataset digits --epochs 4` ran as a user runs it: (folder, process)."""
    root = tmp_path_factory.mktemp("digits")
    done = run("train.py", "--dataset", "digits", "--epochs", 4, cwd=root, curves=True)
    assert done.returncode == 0, done.stderr
    return root, done
