"""The notebooks run from top to bottom, headless: on the shipped checkpoint and CIFAR-10, or on digits."""

import json
import re
import shutil

import nbformat
import pytest
from conftest import ROOT, assert_refused, run
from nbclient import NotebookClient
from PIL import Image

pytestmark = pytest.mark.slow
NOTEBOOKS = (
    "visualize_attention_map.ipynb",
    "demos/vit_tutorial.ipynb",
    "demos/attention_maps.ipynb",
    "demos/model_comparison.ipynb",
)


@pytest.fixture
def copy(tmp_path):
    """A folder that looks like the repository, and may be written to."""
    folders = (ROOT / name for name in ("vitlab", "model", "output", "demos"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.ipynb"), *folders):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture(params=["cls", "seq"])
def settings(request):
    """model_path and data_path for a notebook: the shipped ones, with CLS, and those of the digits run, without."""
    if request.param == "cls":
        return {"data_path": str(request.getfixturevalue("cifar_root"))}
    root, _ = request.getfixturevalue("digits_run")
    return {"model_path": str(root / "model/vit-layer4-8-digits")}


def execute(root, name, **settings):
    """Run a notebook with other values in its first code cell: everything that it printed."""
    notebook = nbformat.read(root / name, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for key, value in settings.items():
        first.source, found = re.subn(rf"^{key} = .*?(?=  #|$)", f"{key} = {value!r}", first.source, flags=re.M)
        assert found == 1, key
    folder = (root / name).parent
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"], outputs
    return "".join(output["text"] for output in outputs if output.output_type == "stream"), outputs


def test_the_notebook_makes_the_gif(copy, settings):
    text, outputs = execute(copy, NOTEBOOKS[0], index=10, **settings)
    (gif,) = (copy / "attention_map_gif").iterdir()
    assert gif.name in ("cifar-index-10.gif", "digits-index-10.gif") and str(gif) in text
    layers, heads = map(int, re.search(r": (\d+) layers of (\d+) heads", text).groups())
    with Image.open(gif) as image:
        assert image.n_frames == layers * heads
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 3 and "image/gif" in shown[-1]


def test_ones_own_image(copy, settings, tmp_path):
    Image.new("RGB", (64, 48), "#3366cc").save(tmp_path / "sky.png")
    execute(copy, NOTEBOOKS[0], image_path=str(tmp_path / "sky.png"), **settings)
    assert (copy / "attention_map_gif/sky.gif").is_file()


def test_the_tutorial(copy):
    execute(copy, NOTEBOOKS[1])


def test_what_attention_shows(copy, settings):
    text, _ = execute(copy, NOTEBOOKS[2], **settings)
    assert "gradient rollout" in text


def test_the_comparison_draws_its_five_figures(tmp_path):
    """Which writes below the root, so that nothing there may be a link."""
    for path in (*ROOT.glob("*.py"), ROOT / "vitlab", ROOT / "demos"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    text, outputs = execute(tmp_path, NOTEBOOKS[3], dataset="digits", num_train_images=200, epochs=2)
    assert "Vision Transformer" in text and "is taken" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    (table,) = [output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    assert "| CNN |" in table and "- Highest test accuracy" in table


def test_the_diagrams_are_drawn(tmp_path):
    done = run("demos.diagrams", "--output_path", "drawn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = {path.name: Image.open(path).size for path in (ROOT / "demos/diagrams").iterdir()}
    assert {path.name: Image.open(path).size for path in (tmp_path / "drawn").iterdir()} == stored
    (tmp_path / "file").touch()
    assert_refused(run("demos.diagrams", "--output_path", "file", cwd=tmp_path), "file")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name):
    for cell in json.loads((ROOT / name).read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
