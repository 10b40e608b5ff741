"""The notebooks run from top to bottom, headless: on the shipped checkpoint and CIFAR-10, or on digits.

Three are stored with their outputs, so that they can be read without running them. To store them anew:

    python tests/test_notebooks.py DATA_PATH            # the folder of CIFAR-10
"""

import base64
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run
from PIL import Image, ImageSequence

ATTENTION, TUTORIAL, FAITHFULNESS, COMPARISON = (
    "visualize_attention_map.ipynb",
    "demos/vit_tutorial.ipynb",
    "demos/attention_maps.ipynb",
    "demos/model_comparison.ipynb",
)
STORED_WITH_OUTPUTS = (ATTENTION, FAITHFULNESS)


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


class Node(dict):
    """A part of a notebook, with its keys as attributes; texts are stored as lists of lines."""

    def __init__(self, pairs):
        super().__init__((name, "".join(value) if is_lines(value) else value) for name, value in pairs)

    __getattr__ = dict.__getitem__


def is_lines(value):
    return isinstance(value, list) and value != [] and all(isinstance(line, str) for line in value)


def read(path):
    """A notebook, as nbformat reads it."""
    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=Node)


def execute(root, name, **settings):
    """Run a notebook with other values in its first code cell; returns it with its outputs."""
    import nbformat  # takes ten seconds on a slow machine
    from nbclient import NotebookClient

    notebook = nbformat.read(root / name, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    source = first.source
    for key, value in settings.items():
        first.source, count = re.subn(rf"^{key} = .*?(?=  #|$)", f"{key} = {value!r}", first.source, flags=re.M)
        assert count == 1, key
    folder = (root / name).parent
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    first.source = source
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
    return notebook


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(notebook):
    """All that was printed, and the tables."""
    parts = []
    for output in outputs_of(notebook):
        if output.output_type == "stream":
            parts.append(output.text)
        elif "text/markdown" in output.data:
            parts.append(output.data["text/markdown"])
    return "".join(parts)


def pictures_of(notebook):
    """Every picture, as a list of its frames."""
    for output in outputs_of(notebook):
        for kind in ("image/png", "image/gif"):
            if kind in output.get("data", {}):
                with Image.open(io.BytesIO(base64.b64decode(output.data[kind]))) as image:
                    yield [np.asarray(frame.convert("RGB"), dtype=float) for frame in ImageSequence.Iterator(image)]


def smaller(png):
    """A picture (base64) with a palette of 256 colours."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def tidy(notebook, *, few_colours=False):
    """Drop what depends on the machine: times, versions, temporary folders, and the second copy of each picture, as
    JPEG. few_colours: its pictures have no photos, and become smaller."""
    temporary = re.compile(re.escape(tempfile.gettempdir()) + r"[\\/]\w+")
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type != "code":
            continue
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        for output in streams[1:]:  # how a text is cut into messages is a matter of time
            streams[0].text += output.text
            cell.outputs.remove(output)
        for output in streams[:1]:
            output.text = temporary.sub("FOLDER", output.text)
        for output in cell.outputs:
            data = output.get("data", {})
            data.pop("image/jpeg", None)
            if few_colours and "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
    return notebook


@pytest.mark.slow
def test_the_notebook_makes_the_gif(copy, settings):
    notebook = execute(copy, ATTENTION, index=10, **settings)
    (gif,) = (copy / "attention_map_gif").iterdir()
    assert gif.name in (  # none of those that come with the repository
        "cifar-index-10-vit-layer6-32-cifar10.gif",
        "digits-index-10-vit-layer4-8-digits.gif",
    )
    assert str(gif.relative_to(copy)) in text_of(notebook)
    layers, heads = map(int, re.search(r": (\d+) layers of (\d+) heads", text_of(notebook)).groups())
    *sheets, frames = pictures_of(notebook)
    assert len(sheets) == 3 and len(frames) == layers * heads
    with Image.open(gif) as image:
        assert image.n_frames == layers * heads


@pytest.mark.slow
def test_ones_own_image(copy, settings, tmp_path):
    Image.new("RGB", (64, 48), "#3366cc").save(tmp_path / "sky.png")
    execute(copy, ATTENTION, image_path=str(tmp_path / "sky.png"), **settings)
    (gif,) = (copy / "attention_map_gif").iterdir()
    assert gif.name.startswith("sky-vit-")


@pytest.mark.slow
def test_the_tutorial(copy):
    """It trains, so that another CPU gives other numbers and pictures, but as many."""
    stored, executed = read(ROOT / TUTORIAL), execute(copy, TUTORIAL)
    assert [len(frames) for frames in pictures_of(stored)] == [len(frames) for frames in pictures_of(executed)]
    assert "test accuracy 0.9" in text_of(stored) and "test accuracy 0.9" in text_of(executed)


@pytest.mark.slow
def test_what_attention_shows(copy, digits_run):
    root, _ = digits_run  # a model without CLS; test_the_stored_outputs executes it on the shipped one
    text = text_of(execute(copy, FAITHFULNESS, model_path=str(root / "model/vit-layer4-8-digits")))
    assert "gradient rollout" in text


@pytest.mark.slow
def test_the_comparison_draws_its_five_figures(tmp_path):
    """It writes below the root, so nothing there may be a link."""
    for path in (*ROOT.glob("*.py"), ROOT / "vitlab", ROOT / "demos"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    notebook = execute(tmp_path, COMPARISON, dataset="digits", num_train_images=200, epochs=2)
    text = text_of(notebook)
    assert "Vision Transformer" in text and "is taken" in text
    assert len(list(pictures_of(notebook))) == 5
    assert "| CNN |" in text and "- Highest test accuracy" in text


@pytest.mark.slow
def test_the_diagrams_are_drawn(tmp_path):
    done = run("demos.diagrams", "--output_path", "drawn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = {path.name: Image.open(path).size for path in (ROOT / "demos/diagrams").iterdir()}
    assert {path.name: Image.open(path).size for path in (tmp_path / "drawn").iterdir()} == stored
    (tmp_path / "file").touch()
    assert_refused(run("demos.diagrams", "--output_path", "file", cwd=tmp_path), "file")


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED_WITH_OUTPUTS)
def test_the_stored_outputs_are_what_the_notebook_gives(copy, cifar_root, name):
    """Words are equal; numbers and pictures nearly so, since another CPU rounds differently."""
    stored = read(ROOT / name)
    executed = tidy(execute(copy, name, data_path=str(cifar_root)))
    number = re.compile(r"\d+(?:\.\d+)?")
    texts = text_of(stored), text_of(executed)
    assert number.sub("0", texts[0]) == number.sub("0", texts[1])
    before, now = (list(map(float, number.findall(text))) for text in texts)
    assert now == pytest.approx(before, rel=0.01, abs=0.005)
    for frames, expected in zip(pictures_of(stored), pictures_of(executed), strict=True):
        for frame, other in zip(frames, expected, strict=True):
            assert frame.shape == other.shape and np.abs(frame - other).mean() < 0.5


@pytest.mark.parametrize("name", [*STORED_WITH_OUTPUTS, TUTORIAL])
def test_stored_outputs_are_small_and_name_no_folder_of_ours(name):
    assert (ROOT / name).stat().st_size < 1_000_000
    notebook = read(ROOT / name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # executed in order, at once
    assert len(list(pictures_of(notebook))) >= 3
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
    for output in outputs_of(notebook):
        texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if "text" in kind)]
        assert not re.search(r"(?<![\w.])/(\w+/)|\w:\\", "".join(texts)), texts
    assert name == TUTORIAL or re.search(r'^data_path = "data"', cells[0].source, flags=re.M)


def test_the_comparison_is_stored_without_outputs():
    notebook = read(ROOT / COMPARISON)
    assert not outputs_of(notebook)
    assert all(cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


if __name__ == "__main__":
    import nbformat

    for name in STORED_WITH_OUTPUTS:
        nbformat.write(tidy(execute(ROOT, name, data_path=str(Path(sys.argv[1]).resolve()))), ROOT / name)
    nbformat.write(tidy(execute(ROOT, TUTORIAL), few_colours=True), ROOT / TUTORIAL)
