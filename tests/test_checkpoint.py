"""Our own files, the foreign layouts, and what is refused."""

import argparse
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image
from test_model import scramble
from torch import nn

from model import VisionTransformer
from vitlab.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint, write_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.models import foreign_weights
from vitlab.models.registry import build_model
from vitlab.models.resampling import resize_positions
from vitlab.pt_files import write_safetensors
from vitlab.training.fine_tuning import load_weights

SMALL = dict(dataset="cifar10", image_size=16, n_layers=2, embed_dim=32)


def save_small(path, **args):
    config = TrainConfig.create(**{**SMALL, **args})
    model = scramble(build_model(config))
    history = [{"epoch": 1, "train_loss": 2.0}]
    save_checkpoint(path, model, config, classes=list("abcdefghij"), mean=[0.4] * 3, std=[0.2] * 3, history=history)
    return model


def test_a_file_says_everything_of_itself(tmp_path):
    model = save_small(tmp_path / "best.pt", head="mlp", pool="mean")
    for path in (tmp_path / "best.pt", tmp_path):  # a file, or a run's folder
        found = load_checkpoint(path)
        images = torch.randn(2, 3, 16, 16)
        assert torch.equal(found.model(images), model(images))
        assert not found.model.training
        assert found.classes == tuple("abcdefghij") and found.mean == (0.4,) * 3 and found.std == (0.2,) * 3
        assert found.history == [{"epoch": 1, "train_loss": 2.0}]
        assert found.config.depth == 2 and found.config.head == "mlp"


def test_predict_is_the_model_on_the_normalised_image(tmp_path):
    model = save_small(tmp_path / "best.pt")
    found = load_checkpoint(tmp_path / "best.pt")
    image = Image.effect_noise((16, 16), 80).convert("RGB")
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    shares = model((pixels[None] - 0.4) / 0.2).softmax(-1)[0]
    guesses = found.predict(image)
    assert len(guesses) == 5 and [share for _, share in guesses] == sorted((s for _, s in guesses), reverse=True)
    for name, share in guesses:
        assert share == pytest.approx(shares["abcdefghij".index(name)].item(), abs=1e-5)
    assert sum(share for _, share in found.predict(image, top=99)) == pytest.approx(1)


def test_a_picture_is_what_its_file_is(tmp_path):
    save_small(tmp_path / "best.pt")
    found = load_checkpoint(tmp_path / "best.pt")
    noise = Image.effect_noise((24, 16), 80).convert("RGB")
    noise.putpixel((12, 8), (9, 99, 199))
    turn = Image.Exif()
    turn[0x0112] = 6  # the camera was held upright
    noise.save(tmp_path / "turned.png", exif=turn)
    noise.save(tmp_path / "clear.png", transparency=(9, 99, 199))
    grey = np.asarray(noise.convert("L")).astype(np.int32)
    Image.fromarray(grey * 256).save(tmp_path / "deep.pgm")
    for name in ("turned.png", "clear.png", "deep.pgm"):
        with Image.open(tmp_path / name) as image:
            assert torch.equal(found.batch(image), found.batch(tmp_path / name))
            assert image.size == (24, 16) and not torch.equal(found.batch(image), found.batch(noise))


def test_a_published_copy_is_small_and_says_the_same(tmp_path):
    model = save_small(tmp_path / "a.pt", stem="conv")
    contents = read_checkpoint(tmp_path / "a.pt")
    write_checkpoint(tmp_path / "a.pt", {**contents, "training": {"optimizers": [torch.zeros(100000)]}})
    sizes = [(tmp_path / "a.pt").stat().st_size]
    for name, flags in (("whole.pt", []), ("half.pt", ["--half"])):
        done = run("export.py", tmp_path / "a.pt", tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] < sizes[0] - 400000 and sizes[2] < 0.7 * sizes[1]
    whole = load_checkpoint(tmp_path / "whole.pt").model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())
    images = torch.randn(2, 3, 16, 16)
    found = load_checkpoint(tmp_path / "half.pt")
    assert found.classes == tuple(contents["classes"]) and found.history == contents["history"]
    torch.testing.assert_close(found.model(images), model(images), atol=0.02, rtol=0)


def test_export_refuses_in_one_line(tmp_path):
    torch.save(VisionTransformer(depth=1).state_dict(), tmp_path / "theirs.pt")
    save_small(tmp_path / "ours.pt")
    for argv, words in (
        ([tmp_path / "no.pt", tmp_path / "b.pt"], ["no.pt does not exist"]),
        ([tmp_path / "theirs.pt", tmp_path / "b.pt"], ["theirs.pt is not a checkpoint of this repository"]),
        ([tmp_path / "theirs.pt"], ["target"]),
        (["a", "b", "--quarter"], ["--quarter"]),
        ([tmp_path / "ours.pt", tmp_path / "b.pt", "--n_layers", "9"], ["--n_layers 9", "has 2"]),
    ):
        assert_refused(run("export.py", *argv), *words)
    assert not (tmp_path / "b.pt").exists()


def test_predicting_needs_no_slow_imports():
    code = "import sys, vitlab.checkpoint; print(*set(sys.modules) & set(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "torchvision", "scipy", "sklearn", "matplotlib"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_fine_tuning_reads_the_file_once(tmp_path, monkeypatch):
    theirs = scramble(Teaching())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    calls, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    model = VisionTransformer(img_size=16, embed_dim=24, depth=2, head="mlp")
    lines = load_weights(model, tmp_path / "theirs.pt", classes=range(10))
    assert len(calls) == 1
    assert [line for line in lines if "fresh" in line] == ["fresh: head.fc2.weight, head.fc2.bias"]


# ---------------------------------------------------------------------------------- foreign layouts


class TeachingBlock(nn.Module):
    """An encoder block with the names of the teaching layout, written from its description."""

    def __init__(self, width, hidden, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Module()
        for name in ("queries", "keys", "values", "out_projection"):
            setattr(self.attention, name, nn.Linear(width, width))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.heads = heads

    def forward(self, x):
        a, y = self.attention, self.norm1(x)
        heads = []
        for q, k, v in zip(*(part(y).chunk(self.heads, dim=-1) for part in (a.queries, a.keys, a.values))):
            heads.append(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v)
        x = x + a.out_projection(torch.cat(heads, dim=-1))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Teaching(nn.Module):
    def __init__(self, width=24, patches=16, patch=4, layers=2, heads=4, classes=10):
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.conv1 = nn.Conv2d(3, width, patch, stride=patch)
        self.embedding.pos_embedding = nn.Parameter(torch.randn(1, patches, width))
        self.embedding.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.encoder = nn.ModuleList(TeachingBlock(width, 2 * width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Module()
        self.classifier.fc1, self.classifier.fc2 = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, images):
        x = self.embedding.conv1(images).flatten(2).mT + self.embedding.pos_embedding
        x = torch.cat([self.embedding.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.encoder:
            x = block(x)
        return self.classifier.fc2(torch.tanh(self.classifier.fc1(self.norm(x)[:, 0])))


def test_the_teaching_layout_is_recognised(tmp_path):
    theirs = scramble(Teaching())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    found = load_checkpoint(tmp_path / "theirs.pt", dataset="cifar10")
    images = torch.randn(3, 3, 16, 16) * 0.3
    torch.testing.assert_close(found.model(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert found.mean == found.std == (0.5,) * 3
    assert found.classes[3] == "cat"
    assert found.model.norm.eps == 1e-5
    assert any("--n_attention_heads" in note for note in found.notes)  # 4 was a guess, and it says so

    six = scramble(Teaching(heads=6))
    torch.save({"state_dict": {f"module.{k}": v for k, v in six.state_dict().items()}}, tmp_path / "six.pt")
    found = load_checkpoint(tmp_path / "six.pt", num_heads=6)
    torch.testing.assert_close(found.model(images), six(images), atol=1e-5, rtol=1e-5)


def timms(**args):
    """A small VisionTransformer of timm, none of whose weights is as it began."""
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    shape = dict(img_size=32, patch_size=8, num_classes=100, embed_dim=48, depth=2, num_heads=3)
    return scramble(timm_vit.VisionTransformer(**{**shape, **args}))


def assert_same_logits(checkpoint, theirs):
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(checkpoint.model(images), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(checkpoint.model(images, return_attention=True)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "args",
    [
        dict(),
        dict(no_embed_class=True),
        dict(qkv_bias=False),
        dict(qk_norm=True),
        dict(init_values=0.1),
        dict(fc_norm=True),
        dict(global_pool="avg"),
        dict(global_pool="avg", fc_norm=False),
        dict(global_pool="avg", no_embed_class=True, init_values=0.1),
    ],
)
def test_timms_layout_is_recognised_and_its_pooling_asked_for(tmp_path, args):
    """The file holds the same tensors whether its head reads CLS or the mean: nothing is guessed."""
    theirs = timms(**args)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(UserError, match="--pool cls .*or --pool mean"):
        load_checkpoint(tmp_path / "theirs.pt", num_heads=3)
    pool = "mean" if args.get("global_pool") else "cls"
    found = load_checkpoint(tmp_path / "theirs.pt", num_heads=3, dataset="cifar100", pool=pool)
    assert_same_logits(found, theirs)
    assert found.config.mlp_ratio == 4 and found.classes[0] == "apple"

    other = timms(
        **{**args, "global_pool": "avg" if pool == "cls" else "token", "fc_norm": "fc_norm.bias" in theirs.state_dict()}
    )
    other.load_state_dict(theirs.state_dict())
    assert_same_logits(
        load_checkpoint(tmp_path / "theirs.pt", num_heads=3, pool="mean" if pool == "cls" else "cls"), other
    )


def test_the_norms_of_queries_tell_the_number_of_heads(tmp_path):
    theirs = timms(qk_norm=True)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    found = load_checkpoint(tmp_path / "theirs.pt", pool="cls")
    assert_same_logits(found, theirs)
    assert found.config.qk_norm and not any("attention heads" in note for note in found.notes)


def test_what_leaves_no_trace_is_asked_for_or_told(tmp_path):
    torch.save(timms().state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(UserError, match="heads.*--n_attention_heads"):
        load_checkpoint(tmp_path / "narrow.pt", pool="cls")
    theirs = timms(embed_dim=192)  # three heads of 64, as in every named model of that width
    torch.save(theirs.state_dict(), tmp_path / "tiny.pt")
    found = load_checkpoint(tmp_path / "tiny.pt", pool="cls")
    assert_same_logits(found, theirs)
    assert any("taken to be 3; --n_attention_heads" in note for note in found.notes)


WRAPPINGS = {
    "net": lambda s: {"net": s, "acc": 91.2, "epoch": 3},
    "ema": lambda s: {"model": {k: v + 1 for k, v in s.items()}, "model_ema": s},
    "timm": lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s, "arch": "vit"},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "hyper_parameters": {"lr": 1e-3}},
    "compiled": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "parallel": lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "averaged": lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
    "dino": lambda s: {
        "student": {f"module.backbone.{k}": v + 1 for k, v in s.items()},
        "teacher": {f"backbone.{k}": v for k, v in s.items()},
    },
    "beside": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=np.float64(0.1), n=np.int64(3), out="x", sizes=np.arange(3)),
        "best": np.float32(91.5),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_of_training_scripts_are_taken_off(tmp_path, wrapping):
    theirs = timms()
    torch.save(WRAPPINGS[wrapping](theirs.state_dict()), tmp_path / "theirs.pt")
    found = load_checkpoint(tmp_path / "theirs.pt", num_heads=3, pool="cls")
    assert_same_logits(found, theirs)
    twice = wrapping in ("ema", "timm", "dino")
    assert twice == any(("ema" in note or "teacher" in note) and "is used" in note for note in found.notes)


def test_two_models_in_one_file_are_refused(tmp_path):
    torch.save({"a": timms().state_dict(), "b": timms().state_dict()}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"several models \(a, b\)"):
        load_checkpoint(tmp_path / "two.pt", num_heads=3, pool="cls")


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(reg_tokens=4), "has register tokens"),
        (dict(pre_norm=True), "has a norm before the first block"),
        (dict(global_pool="map"), "has attention pooling"),
        (dict(class_token=False, global_pool="avg"), "has no CLS token"),
        (dict(pos_embed="none"), "has no position embedding"),
        (dict(scale_mlp_norm=True), "has norms inside its blocks"),
        (dict(final_norm=False), "lacks 'norm.weight'"),
        (dict(num_classes=0), "a backbone without a head.*--init_from"),
        (dict(img_size=(32, 64)), "32 patches of 8 x 8 pixels make no square"),
    ],
)
def test_what_is_refused_says_why(tmp_path, args, words):
    torch.save(timms(**args).state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "theirs.pt", num_heads=3, pool="cls")


def test_what_a_foreign_file_does_not_say_can_be_said(tmp_path):
    theirs = timms(num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    known = dict(num_heads=3, pool="cls", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    found = load_checkpoint(tmp_path / "theirs.pt", **known, classes=["cat", "dog", "eel"])
    assert found.classes == ("cat", "dog", "eel") and found.mean == (0.485, 0.456, 0.406)
    assert not any("normalised" in note for note in found.notes)
    for name in ("ape", "bee", "cow"):
        (tmp_path / "data" / name).mkdir(parents=True)
    found = load_checkpoint(tmp_path / "theirs.pt", **known, dataset="folder", data_path=tmp_path / "data")
    assert found.classes == ("ape", "bee", "cow") and found.data_config().data_path == str(tmp_path / "data")
    assert any("taken to be ape, bee, cow" in note for note in found.notes)
    named = dict(dataset="folder", data_path=tmp_path / "data", classes=["cow", "ape", "bee"])  # the file's own order
    images = torch.randn(2, 3, 32, 32)
    expected = found.model(images)[:, [1, 2, 0]]
    found = load_checkpoint(tmp_path / "theirs.pt", **known, **named)
    assert found.classes == ("ape", "bee", "cow") and torch.allclose(found.model(images), expected)
    for wrong, words in (
        (dict(mean=[0.5]), "--mean and --std.*3 values"),
        (dict(std=[0.5]), "--mean and --std.*3 values"),
        (dict(mean=[123.7, 116.3, 103.5]), "--mean 123.7: must be at most 1"),
        (dict(std=[0, 0, 0]), "--std 0.0: must be above 0"),
        (dict(n_heads=3), "'n_heads' is unknown; did you mean num_heads"),
        (dict(std=None), "needs both"),
        (dict(classes=["a", "b"]), "--classes has 2 classes, .* has 3"),
        (dict(dataset="folder", data_path=tmp_path / "data", classes=["bee", "ape", "cat"]), "must be the same"),
    ):
        with pytest.raises(UserError, match=words):
            load_checkpoint(tmp_path / "theirs.pt", **{**known, **wrong})
    torch.save(timms(in_chans=4).state_dict(), tmp_path / "infrared.pt")
    with pytest.raises(UserError, match="images of 4 channels; train.py --init_from"):
        load_checkpoint(tmp_path / "infrared.pt", num_heads=3, pool="cls")
    save_small(tmp_path / "ours.pt")
    with pytest.raises(UserError, match=r"--mean .*0.4"):
        load_checkpoint(tmp_path / "ours.pt", mean=[0.5] * 3, std=[0.2] * 3)


def test_translating_needs_no_file_and_leaves_the_weights_alone():
    state = scramble(Teaching()).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    theirs = foreign_weights.translate(state, "theirs", num_heads=6)
    assert theirs.arguments == dict(
        img_size=16, patch_size=4, in_chans=3, num_classes=10, embed_dim=24, depth=2, num_heads=6, mlp_ratio=2.0,
        qkv_bias=True, qk_norm=False, pool="cls", head="mlp", norm_eps=1e-5,
    )  # fmt: skip
    VisionTransformer(**theirs.arguments).load_state_dict(theirs.state)
    assert theirs.notes == ["theirs: teaching layout, 2 blocks 24 wide"]
    assert before.keys() == state.keys() and all(torch.equal(before[name], state[name]) for name in state)


def test_resized_positions_keep_the_prefix_and_the_picture():
    ramp = torch.arange(8.0).expand(8, 8).reshape(1, 64, 1)  # grows from left to right
    cls = torch.full((1, 1, 1), 99.0)
    larger = resize_positions(torch.cat([cls, ramp], dim=1), old=8, new=16, prefix=1)
    assert larger.shape == (1, 257, 1) and larger[0, 0] == 99
    grid = larger[0, 1:].view(16, 16)
    assert torch.allclose(grid, grid[:1].expand(16, 16), atol=1e-5)
    assert torch.allclose(grid[0, 4:12], torch.arange(16)[4:12] / 2 - 0.25, atol=1e-4)


def test_what_contradicts_the_file_is_an_error(tmp_path):
    torch.save(scramble(Teaching()).state_dict(), tmp_path / "theirs.pt")
    save_small(tmp_path / "ours.pt")
    for name, given, words in (
        ("theirs.pt", dict(embed_dim=64), ("--embed_dim 64", "24")),
        ("theirs.pt", dict(pool="mean"), ("--pool mean", "cls")),
        ("theirs.pt", dict(num_heads=5), ("5 heads", "24")),
        ("theirs.pt", dict(dataset="cifar100"), ("cifar100", "100", "10")),
        ("ours.pt", dict(depth=7), ("--n_layers 7", "2")),
        ("ours.pt", dict(dataset="digits"), ("digits", "cifar10")),
    ):
        with pytest.raises(UserError) as caught:
            load_checkpoint(tmp_path / name, **given)
        assert all(word in str(caught.value) for word in words), caught.value
    assert load_checkpoint(tmp_path / "ours.pt", depth=2, dataset="cifar10").config.depth == 2


def test_weights_meet_only_data_of_the_same_classes_by_name(tmp_path):
    """Equal in number is not enough: a renamed or reordered class would be measured as another."""
    save_small(tmp_path / "letters.pt")  # of cifar10's size, but its classes are a to j
    with pytest.raises(UserError, match="--dataset cifar10 has the classes airplane, .* was trained on a, b"):
        load_checkpoint(tmp_path / "letters.pt").data_config()
    for name in "abcdefghi":
        (tmp_path / "data" / name).mkdir(parents=True)
    for last, fits in (("j", True), ("z", False)):
        (tmp_path / "data" / last).mkdir()
        checkpoint = load_checkpoint(tmp_path / "letters.pt")
        checkpoint.config.dataset = "folder"
        if fits:
            assert checkpoint.data_config(data_path=str(tmp_path / "data")).dataset == "folder"
            (tmp_path / "data" / last).rmdir()
            continue
        with pytest.raises(UserError, match="i, z, .* i, j"):
            checkpoint.data_config(data_path=str(tmp_path / "data"))


# ---------------------------------------------------------------------------------------- bad files


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Pointers:
    """An array of objects of numpy whose eight bytes would be taken for the address of one."""

    def __reduce__(self):
        return np.ndarray, ((1,), "O", b"A" * 8)


class Inside:
    def __reduce__(self):
        return OrderedDict, (Pointers(),)


@pytest.mark.parametrize("beside", [Pointers, Inside])
def test_no_byte_beside_the_weights_becomes_an_object(tmp_path, beside):
    torch.save({"model": VisionTransformer(depth=1).state_dict(), "best": beside()}, tmp_path / "bad.pt")
    done = run("test.py", "--model_path", tmp_path / "bad.pt", "--image_path", "no.png", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr  # and not killed by the kernel


def test_bad_checkpoints_are_refused(tmp_path):
    save_small(tmp_path / "whole.pt")
    blob = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(blob[: len(blob) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    state = scramble(Teaching()).state_dict()
    del state["encoder.1.fc2.bias"]
    torch.save(state, tmp_path / "lacking.pt")
    for name, word in (
        ("no.pt", "does not exist"),
        ("cut.pt", "not a complete checkpoint"),
        ("empty.pt", "not a complete checkpoint"),
        ("text.pt", "not a complete checkpoint"),
        ("other.pt", "another architecture"),
        ("module.pt", "state_dict()"),
        ("evil.pt", "refused and was not run"),
        ("evil.pkl", "refused and was not run"),
        ("list.pt", "list"),
        ("script.pt", "a TorchScript program, which is not run; where you trust it, save its state dict"),
        ("lacking.pt", "encoder.1.fc2.bias"),
    ):
        with pytest.raises(UserError) as caught:
            load_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and word in str(caught.value)
    assert_refused(run("test.py", "--model_path", tmp_path / "evil.pt", cwd=tmp_path), "evil.pt", "was not run")
    (tmp_path / "ours.onnx").touch()
    assert_refused(run("test.py", "--model_path", "ours.onnx", cwd=tmp_path), "ours.onnx", "was exported")
    assert not list(tmp_path.glob("**/ran")) and not os.path.exists("ran")
    assert not (tmp_path / "output").exists()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_small(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    def full_inside(contents, file):  # how torch tells it
        try:
            full(0)
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:664]")

    for module, name, instead in ((os, "fsync", full), (torch, "save", full_inside)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, instead)
            with pytest.raises(UserError, match="No space left.*intact"):
                save_small(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_an_export_to_safetensors_is_for_all_and_a_full_disk_is_a_line(tmp_path, monkeypatch):
    contents = {"model": {"w": torch.zeros(1)}}
    write_safetensors(tmp_path / "x.safetensors", contents)
    (tmp_path / "y").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "y").stat().st_mode  # others may read it too

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="z.safetensors could not be written .*No space left"):
        write_safetensors(tmp_path / "z.safetensors", contents)
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", "y"}


def test_foreign_models_are_our_class(tmp_path):
    torch.save(scramble(Teaching()).state_dict(), tmp_path / "theirs.pt")
    assert isinstance(load_checkpoint(tmp_path / "theirs.pt").model, VisionTransformer)
