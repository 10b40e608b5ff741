"""Train one Vision Transformer.

    python train.py --dataset digits --epochs 40            # no download, a minute on a laptop
    python train.py                                         # CIFAR-10, 200 epochs
    python train.py --n_layers 12 --config configs/x.yaml   # flags win over the file

Writes model/NAME/best.pt and last.pt, and output/NAME/ with curves, metrics.csv and report.json.
"""

import shlex
import sys

from vitlab.cli import run_cli
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models.registry import build_model
from vitlab.training import loop
from vitlab.training.loop import fit
from vitlab.training.stopping import Stopped


def main():
    config = TrainConfig.from_args(description=__doc__)
    loop.check(config)
    model = build_model(config)
    sets = load_data(config, splits=("train", "val") if config.no_test else ("train", "val", "test"))
    print(" ".join(f"{name}={value}" for name, value in vars(config).items()))
    try:
        fit(model, sets, config)
    except Stopped as stopped:
        last = config.checkpoint_folder / "last.pt"
        print(f"train.py: interrupted; --resume {last} goes on", file=sys.stderr)
        return 128 + stopped.signal
    command = ["python", "test.py", "--model_path", str(config.checkpoint_folder)]
    if config.data_path != TrainConfig.data_path:
        command += ["--data_path", config.data_path]
    print(shlex.join(command))


if __name__ == "__main__":
    run_cli(main)
