"""Where curves go besides metrics.csv: TensorBoard, Weights & Biases, both or neither.

Both are optional: pip install tensorboard, pip install wandb. Without a network or an account, W&B
runs offline: WANDB_MODE=offline.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
from PIL import Image

from vitlab import processes
from vitlab.cli import UserError
from vitlab.config import TrainConfig

PACKAGES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "both": ("tensorboard", "wandb"), "none": ()}


def check_backend(backend: str) -> None:
    """Raise UserError if a package that `backend` needs is missing, naming what to install, or if Weights & Biases
    does not know the user."""
    for package in PACKAGES[backend]:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--log_backend {backend} needs {package}: pip install {package}")
    if "wandb" in PACKAGES[backend] and os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        import wandb

        try:
            wandb.login()  # asks for the key where there is a terminal
        except wandb.Error as error:
            raise UserError(f"--log_backend {backend}: {one_line(error)}; or run offline: WANDB_MODE=offline") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class Tracker:
    """Sends scalars and pictures to the backends that the config names.

    step: the first step that will be logged. TensorBoard drops from its curves what an interrupted run logged from
    there on; at Weights & Biases a resumed run is a run of its own.
    """

    def __init__(self, config: TrainConfig, folder: Path, step: int = 0):
        self.board = self.wandb = None
        if not processes.is_first():
            return
        if "tensorboard" in PACKAGES[config.log_backend]:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step if step else None)
        if "wandb" in PACKAGES[config.log_backend]:
            import wandb

            try:
                self.wandb = wandb.init(
                    project=config.project_name, name=config.folder_name, config=vars(config), dir=str(folder)
                )
            except wandb.Error as error:
                raise UserError(f"--log_backend {config.log_backend}: {one_line(error)}") from None

    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        """Log numbers at a step; None is left out."""
        values = {name: value for name, value in values.items() if value is not None}
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""
        if self.board:
            with Image.open(path) as image:
                self.board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()
