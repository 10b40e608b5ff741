"""export.py: what the other programs read is the model that PyTorch runs."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from vitlab.catalog import DATASETS
from vitlab.checkpoint import load_checkpoint, save_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.images import to_pixels
from vitlab.export.int8 import load_test_pixels
from vitlab.export.program import IR_VERSION, OPSET, write_onnx, write_pt2
from vitlab.models.registry import build_model
from vitlab.pt_files import FORMAT

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-dev.txt")
KINDS = {
    "cls": {},
    "mean": dict(pool="mean", head="mlp"),
    "normed_mean": dict(pool="normed_mean"),
    "seq": dict(stem="conv", pool="seq", stem_depth=2),
    "whitened": dict(stem="whitened"),
    "grey": dict(in_chans=1),
    "simple_cnn": dict(model="simple_cnn"),
    "tiny_cnn": dict(model="tiny_cnn"),
    "mlp": dict(model="mlp"),
    "resnet18": dict(model="resnet18"),
}


def save_small(path, kind="cls", **settings):
    """A small model of that kind with weights and batch-norm statistics that are not fresh, in a file."""
    sizes = {} if "model" in KINDS[kind] else dict(embed_dim=24, depth=2, num_heads=3)
    config = TrainConfig.create(dataset="cifar10", img_size=16, **sizes, **KINDS[kind], **settings)
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.05
            value += noise.abs() if "var" in name else noise
    facts = dict(classes=DATASETS["cifar10"].classes, history=[{"epoch": 1}])
    save_checkpoint(path, model, config, mean=[0.4] * config.in_chans, std=[0.2] * config.in_chans, **facts)
    return load_checkpoint(path)


def real_images(size, channels):
    """uint8 5 x channels x size x size: pieces of scikit-learn's two photos."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    pieces = [photos[i % 2].crop((80 * i, 60 * i, 80 * i + 300, 60 * i + 200)) for i in range(5)]
    return torch.stack([to_pixels(piece, size, channels) for piece in pieces])


def reference(checkpoint, pixels, **options):
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (checkpoint.mean, checkpoint.std))
    with torch.no_grad():
        return checkpoint.model((pixels / 255 - mean) / std, **options)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "tiny_cnn" else pytest.mark.slow) for kind in KINDS]
)
def test_onnxruntime_computes_what_pytorch_does(tmp_path, kind):
    checkpoint = save_small(tmp_path / "best.pt", kind)
    is_vit = checkpoint.config.model == "vit"
    write_onnx(checkpoint, tmp_path / "x.onnx", attention=is_vit)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    pixels = real_images(16, checkpoint.model.in_chans)
    expected = reference(checkpoint, pixels, **({"return_attention": True} if is_vit else {}))
    expected = expected if is_vit else (expected,)
    assert expected[0].std(0).max() > 0.01  # the images differ
    for n in (5, 1):
        found = session.run(None, {"images": pixels[:n].numpy()})
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            largest = max(1, theirs.abs().max().item())
            np.testing.assert_allclose(ours, theirs[:n].numpy(), atol=1e-4 * largest, rtol=0)
    facts = json.loads(session.get_modelmeta().custom_metadata_map[FORMAT])
    assert facts["classes"] == list(checkpoint.classes) and facts["checkpoint"] == checkpoint.run_name
    assert facts["input"]["shape"] == ["N", checkpoint.model.in_chans, 16, 16]
    onnx = pytest.importorskip("onnx")
    file = onnx.load(tmp_path / "x.onnx")
    assert {entry.domain: entry.version for entry in file.opset_import}[""] == OPSET
    assert file.ir_version == IR_VERSION


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cls", "seq"])
def test_torch_export_computes_the_same(tmp_path, kind):
    checkpoint = save_small(tmp_path / "best.pt", kind)
    write_pt2(checkpoint, tmp_path / "x.pt2", attention=True)
    extra = {f"{FORMAT}.json": ""}
    program = torch.export.load(tmp_path / "x.pt2", extra_files=extra).module()
    pixels = real_images(16, 3)
    for ours, theirs in zip(program(pixels), reference(checkpoint, pixels, return_attention=True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert json.loads(extra[f"{FORMAT}.json"])["classes"] == list(checkpoint.classes)


def test_safetensors_is_the_checkpoint(tmp_path):
    for kind in ("seq", "mlp"):
        checkpoint = save_small(tmp_path / "best.pt", kind)
        done = run("export.py", tmp_path / "best.pt", tmp_path / f"{kind}.safetensors")
        assert done.returncode == 0, done.stderr
        found = load_checkpoint(tmp_path / f"{kind}.safetensors")
        for name in ("config", "classes", "mean", "std", "history"):
            assert getattr(found, name) == getattr(checkpoint, name), name
        expected = checkpoint.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "seq.safetensors").read_bytes()[:50000])
    assert_refused(run("export.py", tmp_path / "half.safetensors", tmp_path / "b.pt"), "half.safetensors", "complete")


@pytest.mark.slow
def test_the_examples_of_the_docs_predict(tmp_path):
    """Each in a process that cannot import this repository."""
    checkpoint = save_small(tmp_path / "best.pt", crop_pct=0.5)
    photo = Image.fromarray(load_sample_images().images[1])
    photo.save(tmp_path / "photo.png")
    ((expected, _),) = checkpoint.predict(photo, top=1)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), flags=re.S)
    assert len(examples) == 3
    for example in examples:
        (name,) = re.findall(r'"(vit\.\w+)"', example)
        done = run("export.py", tmp_path / "best.pt", tmp_path / name)
        assert done.returncode == 0 and len(example.splitlines()) <= 20, done.stderr
        done = subprocess.run([sys.executable, "-I", "-c", example], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.slow
def test_int8_is_smaller_and_almost_as_good(tmp_path, cifar_root):
    target = tmp_path / "x.onnx"
    done = run("export.py", "model/vit-layer6-32-cifar10", target, "--int8", "--data_path", cifar_root)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(\w+): [\d.]+ MB, ([\d.]+)% of 2,000", done.stdout, flags=re.M))
    assert float(found["float32"]) > 85 and float(found["float32"]) - float(found["int8"]) < 1
    told = json.loads((tmp_path / "x.json").read_text())
    assert f"{told['int8']['accuracy']:.2%}" == f"{found['int8']}%" and str(tmp_path / "x.json") in done.stdout
    assert pytest.importorskip("onnx").load(target).ir_version == IR_VERSION
    weights = load_checkpoint(ROOT / "model/vit-layer6-32-cifar10").model.parameters()
    assert target.stat().st_size < 0.5 * 4 * sum(weight.numel() for weight in weights)


def test_images_for_int8_lie_on_the_cpu_wherever_the_model_was_trained(tmp_path):
    config = TrainConfig.create(dataset="digits", device="cuda", embed_dim=16, depth=1, num_heads=2)
    facts = dict(classes=DATASETS["digits"].classes, mean=[0.3], std=[0.4], history=[])
    save_checkpoint(tmp_path / "x.pt", build_model(config), config, **facts)
    pixels, labels = load_test_pixels(load_checkpoint(tmp_path / "x.pt"), "unused")
    digits = load_digits()
    known = {
        bytes(image): label for image, label in zip((digits.images * 255 / 16).round().astype(np.uint8), digits.target)
    }
    assert pixels.shape == (360, 1, 8, 8) and [known[bytes(image)] for image in pixels] == labels.tolist()


def test_export_says_what_it_cannot_do(tmp_path):
    save_small(tmp_path / "cnn.pt", "tiny_cnn")
    for argv, words in (
        (["cnn.pt", "x.onnx", "--attention"], ["--attention", "tiny_cnn"]),
        (["cnn.pt", "x.pt2", "--int8"], ["--int8", ".onnx"]),
        (["cnn.pt", "x.onnx", "--half"], ["--half", ".safetensors"]),
        (["cnn.pt", "x.onyx"], ["x.onyx", ".onnx"]),
        (["cnn.pt", "x.onnx", "--int8", "--data_path", "nowhere"], ["nowhere"]),
    ):
        assert_refused(run("export.py", *argv, cwd=tmp_path), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.pt"]
