"""Train one model: a Vision Transformer or, with --model, a CNN or an MLP.

    python train.py --dataset digits --epochs 40            # no download, a minute on a laptop
    python train.py --config configs/vit-conv-20min-32-cifar10.yaml   # CIFAR-10: a published run; flags win over it
    python train.py                                         # CIFAR-10, 200 epochs of a plain recipe: hours on a CPU
    torchrun --nproc_per_node 8 train.py                    # on eight GPUs: docs/cluster.md

Writes model/NAME/best.pt and last.pt, and output/NAME/ with curves, metrics.csv and report.json.
"""

import shlex
import sys

from vitlab.cli import run_cli
from vitlab.config import TrainConfig, read_args


def main() -> int | None:
    given, inherited = read_args(description=__doc__), {}
    if "init_from" in given and given.get("resume", "auto") == "auto":  # other pairs are refused by create()
        from vitlab.training.fine_tuning import take_architecture

        inherited = take_architecture(given["init_from"], given)
    if "resume" in given:
        from vitlab.training.run_folder import settings_of_resumed

        inherited |= settings_of_resumed(inherited, given)
    config = TrainConfig.create(inherited, given)  # what is given wins

    # Only now, so that --help need not wait for torch
    from vitlab import processes
    from vitlab.datasets.splits import load_data
    from vitlab.hardware import find_device
    from vitlab.models.registry import build_model
    from vitlab.training.loop import check_can_train, fit
    from vitlab.training.optimizers import make_optimizers, warmup_cosine
    from vitlab.training.stopping import Stopped

    with processes.joined():  # the processes of torchrun, if it started this one
        with processes.agreed():
            check_can_train(config)  # what cannot be trained is refused here, before any work
            device = find_device(config.device)  # CUDA, MPS or CPU
            model = build_model(config).to(device)  # model.VisionTransformer, or a baseline with the same interface
            splits = ("train", "val") if config.no_test else ("train", "val", "test")
            data = load_data(config, splits, device=device)  # batches on the device
        changed = " ".join(f"{name}={value}" for name, value in config.changed_from_defaults().items())
        print(f"{changed}; all else by default")
        optimizers = make_optimizers(model, config)  # AdamW; --optimizer muon: Muon for matrices, AdamW for the rest
        schedule = warmup_cosine(config, len(data.train))  # of the learning rate: linear warmup, cosine
        try:
            fit(model, data, config, optimizers=optimizers, schedule=schedule)
        except Stopped as stopped:
            command = ["python", "train.py", "--resume", str(config.checkpoint_folder / "last.pt")]
            print(f"train.py: interrupted; to go on: {shlex.join(command)}", file=sys.stderr)
            return 128 + stopped.signal

        if data.test or config.no_test:
            command = ["python", "test.py", "--model_path", str(config.checkpoint_folder)]
            command += ["--data_path", config.data_path] if config.data_path != TrainConfig.data_path else []
            print(shlex.join(command))


if __name__ == "__main__":
    run_cli(main, in_processes=True)
