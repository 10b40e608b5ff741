"""What the process that scripts are forked from has imported (conftest.forks). A module that cannot be imported is
left to the scripts that need it, whose tests then say so."""

import contextlib
import importlib

for name in (
    "torchvision.transforms.v2 torch.optim.swa_utils sklearn.metrics sklearn.datasets matplotlib.pyplot captum.attr "
    "vitlab.training.loop vitlab.views.image_views vitlab.views.model_views vitlab.study.figures vitlab.study.running "
    "vitlab.study.page"
).split():
    with contextlib.suppress(Exception):
        importlib.import_module(name)
