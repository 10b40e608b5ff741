"""Speed of a training step, next to other implementations, and of a cold start.

    python benchmark.py                       # the default model, batch 128, on the device there is
    python benchmark.py --device cpu --rounds 20
    python benchmark.py --cold_start          # only how long the scripts take to begin
    python benchmark.py --loader DIR          # only how fast the images of a folder are read
    python benchmark.py --operations --config configs/vit-layer6-32-cifar10.yaml   # only where a step's time goes

The candidates take turns, one step each a round, so that a machine that slows down slows all of
them. Each ratio is taken round by round; median and interquartile range are printed and written to
output/benchmark/report.json.

    ours      model.py, bf16 if the device has it (--amp), fused AdamW
    textbook  separate query, key and value projections, softmax written out, float32 (on CUDA as TF32), AdamW unfused
    timm      timm's VisionTransformer, dtype and optimiser like ours (if timm is installed)

Then come the times of each augmentation policy, as a share of our step, and of attention extraction with a model of 12
blocks: the attention of 100 images, and a GIF of it.

--operations instead runs each stage of a training step alone: its share of the step, its GFLOP/s, and how much of the
rate of a large matrix product that is.

--loader reads the training images of a folder at 224 pixels (--image_size), cropped at random from their files, next to
torchvision's ImageFolder in a DataLoader with as many workers, and to the same in shards (if webdataset is installed).

Cold starts come last, each the median of 5 processes (or of --rounds, if that is less): time and peak memory of every
script's --help, and the time of a prediction (test.py --mode custom) beyond that of `import torch`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from vitlab.catalog import ARGUMENTS
from vitlab.cli import Parser, UserError, run_cli, whole_number
from vitlab.config import SETTINGS, TrainConfig, add_flags
from vitlab.files import write_json
from vitlab.settings import read_yaml

LOADER = dict(  # settings of --loader, but for the flags
    dataset="folder",
    device="cpu",
    img_size=224,
    patch_size=16,
    augment="crop-flip",
    crop_scale=(0.08, 1.0),
    val_split=0.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
ROOT = Path(__file__).resolve().parent
SCRIPTS = "benchmark compare download export model results test train visualize".split()


def start(command: list) -> tuple[float, float]:
    """Run a Python command in a process of its own: (seconds, peak memory in MB). UserError if it fails.

    On Linux a process starts with the peak memory of its parent, so torch must not have been imported here.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"`python {' '.join(map(str, command))}` fails; run it to see why")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return seconds, usage.ru_maxrss * unit / 1e6


def time_cold_starts(repeats: int) -> dict:
    """Seconds and peak memory (MB) of every script's --help, and seconds of one prediction beyond `import torch`.
    Each is the median of `repeats` processes; they take turns."""
    with tempfile.TemporaryDirectory() as folder:
        predict = ["test.py", "--mode", "custom", "--image_path", "demos/diagrams/attention.png"]
        commands = {f"{name}.py": [f"{name}.py", "--help"] for name in SCRIPTS}
        commands["import torch"] = ["-c", "import torch"]
        commands["prediction"] = [*predict, "--no_image", "--output_path", folder]
        runs = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                runs[name].append(start(command))
    medians = {name: [statistics.median(values) for values in zip(*runs[name])] for name in commands}
    import_torch, prediction = medians.pop("import torch")[0], medians.pop("prediction")[0]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "torch": version("torch"),
        "help": {name: {"seconds": seconds, "peak_mb": memory} for name, (seconds, memory) in medians.items()},
        "prediction": {"seconds": prediction, "import_torch": import_torch, "beyond_torch": prediction - import_torch},
    }


def print_cold_starts(report: dict) -> None:
    """Print what time_cold_starts returns, one line per script."""
    for name, cost in report["help"].items():
        print(f"{name + ' --help':>20}: {cost['seconds']:.2f} s, {cost['peak_mb']:.0f} MB")
    cost = report["prediction"]
    print(
        f"test.py --mode custom: {cost['seconds']:.2f} s, of which {cost['import_torch']:.2f} s to import torch and "
        f"{cost['beyond_torch']:.2f} s beyond it"
    )


def summarise_steps(seconds: dict[str, list[float]], batch_size: int) -> dict:
    """Print each candidate's images per second, and return them with the ratios of our speed to theirs, taken round
    by round: [first quartile, median, third quartile]."""
    steps = {}
    for name, times in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(times, seconds["ours"]))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        speed = batch_size / statistics.median(times)
        compared = f"; ours is {middle:.2f} times as fast (middle half {low:.2f} to {high:.2f})"
        print(f"{name:>8}: {speed:6.0f} images/s{'' if name == 'ours' else compared}")
        steps[name] = {"seconds": times, "images_per_second": speed, "ours_is_faster_by": [low, middle, high]}
    return steps


def summarise_augmentation(medians: dict[str, float], step_seconds: float) -> dict:
    """Print each policy's share of our training step, and return it."""
    shares = {name: {"share_of_step": seconds / step_seconds} for name, seconds in medians.items()}
    for name, share in shares.items():
        print(f"{name:>14}: {share['share_of_step']:6.1%} of our step")
    return shares


def print_operations(report: dict, batch_size: int) -> None:
    """Print what speed.time_operations returns, a line per stage."""
    peak, step = report["matmul_gflops"], report["seconds"]
    print(f"a step: {1000 * step:.0f} ms, {batch_size / step:.0f} images/s; a matrix product: {peak:.0f} GFLOP/s")
    for row in report["stages"]:
        speed = row["gflop"] / row["seconds"] if row["seconds"] else 0.0
        work = f", {speed:5.0f} GFLOP/s, {speed / peak:4.0%} of a matrix product's rate" if row["gflop"] else ""
        print(f"{row['stage']:>20}: {1000 * row['seconds']:6.1f} ms, {row['seconds'] / step:4.0%} of the step{work}")


def parse_args() -> tuple[TrainConfig, int, dict]:
    """(the config, --rounds, which part alone is asked for: {"cold_start": bool, "operations": bool, "loader": DIR})"""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--rounds",
        type=whole_number("--rounds", low=1),
        default=12,
        help="timed rounds, after two untimed (default: %(default)s)",
    )
    parser.add_argument("--cold_start", action="store_true", help="measure only how long the scripts take to begin")
    parser.add_argument("--operations", action="store_true", help="measure only the stages of a training step")
    parser.add_argument("--loader", metavar="DIR", help="measure only how fast the images of this folder are read")
    parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from")
    settings = ("batch_size", "augment", "optimizer", "learning_rate", "device", "amp", "output_path", "num_workers")
    add_flags(parser, (*settings, *ARGUMENTS["vit"]))
    flags = vars(parser.parse_args())
    file = read_yaml(flags["config"]) if flags["config"] else {}
    given = {name: value for name, value in flags.items() if name in SETTINGS}
    if flags["loader"]:
        given = {**LOADER, **given, "data_path": flags["loader"]}
    config = TrainConfig.create(file, given)
    if config.model != "vit":
        raise UserError(f"--config {flags['config']}: it is of {config.model}, and only a Vision Transformer is timed")
    only = {name: flags[name] for name in ("cold_start", "operations", "loader")}
    return config, flags["rounds"], only


def main():
    config, rounds, only = parse_args()
    path = Path(config.output_path) / "benchmark" / "report.json"
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if only["cold_start"]:
        measured = time_cold_starts(min(rounds, 5))
        print_cold_starts(measured)
        print(write_json(path, {**others, "cold_start": measured}))
        return 0

    # torch takes seconds to import, and --help does not need it
    import torch

    from vitlab import speed
    from vitlab.hardware import describe_hardware, describe_precision, fast_training, find_device, pick_amp

    if only["loader"]:
        seconds, n = speed.time_loaders(config, rounds)
        print(f"{n} images at {config.img_size} pixels, {config.num_workers} workers, {rounds} rounds")
        measured = summarise_steps(seconds, n)
        print(write_json(path, {**others, "loader": {"config": vars(config), "passes": measured}}))
        return 0
    device = find_device(config.device)
    amp = pick_amp(device, config.amp)
    images = torch.randn(config.batch_size, config.in_chans, config.img_size, config.img_size, device=device)
    labels = torch.randint(config.num_classes, (config.batch_size,), device=device)
    hardware = describe_hardware(device)
    precision = describe_precision(device, amp)
    print(f"{hardware}, {precision}, torch {torch.__version__}, batch {config.batch_size}, {rounds} rounds")
    if only["operations"]:
        with fast_training(device, amp):
            measured = speed.time_operations(config, images, labels, amp, rounds)
        print_operations(measured, config.batch_size)
        about = {"hardware": hardware, "precision": precision, "config": vars(config)}
        print(write_json(path, {**others, "operations": {**about, **measured}}))
        return 0

    seconds = speed.time_steps(speed.make_candidates(config, images, labels, amp), rounds)
    report = {"hardware": hardware, "torch": torch.__version__, "config": vars(config)}
    report["steps"] = summarise_steps(seconds, config.batch_size)
    medians = speed.time_augmentation(images, rounds)
    report["augmentation"] = summarise_augmentation(medians, statistics.median(seconds["ours"]))
    report["seeing"] = speed.time_attention(device)
    for what, duration in report["seeing"].items():
        print(f"{what}: {duration:.2f} s")
    write_json(path, report)
    sys.stdout.flush()
    # in a process without torch (see start), which adds them to the report
    command = [sys.executable, __file__, "--cold_start", "--rounds", str(rounds), "--output_path", config.output_path]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    run_cli(main)
