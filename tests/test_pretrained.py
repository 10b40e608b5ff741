"""Weights of other libraries, measured against the libraries themselves; small, random models of theirs."""

import json
import re

import pytest
import torch
from conftest import SHARED, assert_refused, run
from safetensors.torch import save_file
from test_checkpoint import assert_same_logits, timms
from test_model import scramble
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from model import VisionTransformer
from vitlab.checkpoint import load_checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.splits import load_data
from vitlab.models import foreign_weights
from vitlab.models.registry import build_model
from vitlab.models.resampling import adapt_channels, resize_patches, resize_positions
from vitlab.training.fine_tuning import load_weights, take_architecture

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = pytest.mark.parametrize("size, patch", [(32, 8), (224, 16)])


def largest_difference(ours, theirs, size):
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(images)
        return (ours(images) - getattr(expected, "logits", expected)).abs().max().item()


# -------------------------------------------------------------------------------------- each library


@SIZES
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_torchvisions_layout(tmp_path, size, patch, suffix):
    shape = dict(image_size=size, patch_size=patch, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96)
    representation = 48 if suffix == "pt" else None
    theirs = scramble(TorchvisionViT(**shape, num_classes=5, representation_size=representation))
    write = torch.save if suffix == "pt" else save_file
    write(theirs.state_dict(), tmp_path / f"theirs.{suffix}")
    found = load_checkpoint(tmp_path / f"theirs.{suffix}", num_heads=3)
    assert largest_difference(found.model, theirs, size) < 1e-4
    assert found.config.head == ("mlp" if representation else "linear") and found.config.norm_eps == 1e-6
    assert found.mean == IMAGENET["mean"] and found.std == IMAGENET["std"]  # of all its published weights
    own = load_checkpoint(tmp_path / f"theirs.{suffix}", num_heads=3, mean=[0.1] * 3, std=[0.2] * 3)
    assert own.mean == (0.1,) * 3


HUGGING_FACE = [  # timm's name -> that of transformers, in its files
    (r"^(cls_token|dist_token|pos_embed)$", r"vit.embeddings.\1"),
    (r"pos_embed", "position_embeddings"),
    (r"dist_token", "distillation_token"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^blocks", "vit.encoder.layer"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"^norm", "vit.layernorm"),
    (r"^head_dist", "distillation_classifier"),
    (r"^head", "classifier"),
]


def as_transformers(state):
    """A state dict of timm's under the names of transformers' files."""
    renamed = {}
    for name, value in state.items():
        for pattern, instead in HUGGING_FACE:
            name = re.sub(pattern, instead, name)
        if ".attn.qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3))
            renamed |= {name.replace("attn.qkv", f"attention.attention.{part}"): rows for part, rows in parts}
        else:
            renamed[name] = value
    return {name: value.clone() for name, value in renamed.items()}


def write_hub(folder, state, config, preprocessor=None):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


CONFIG = dict(model_type="vit", num_attention_heads=3, layer_norm_eps=1e-6, hidden_act="gelu")


def test_a_folder_of_transformers_says_everything(tmp_path):
    theirs = timms(num_classes=3)
    labels = {"2": "crane", "0": "crane", "1": "bee"}
    preprocessor = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    folder = write_hub(
        tmp_path / "hub", as_transformers(theirs.state_dict()), {**CONFIG, "id2label": labels}, preprocessor
    )
    for path in (folder, folder / "model.safetensors"):
        found = load_checkpoint(path)
        assert_same_logits(found, theirs)
        assert found.classes == ("crane (0)", "bee", "crane (2)") and len(found.notes) == 1
        assert found.mean == (0.1, 0.2, 0.3) and found.std == (0.4, 0.5, 0.6)
    for wrong, words in (
        (dict(num_heads=6), "n_attention_heads 6.* has 3"),
        (dict(mean=[0.5] * 3, std=[0.5] * 3), "--mean"),
    ):
        with pytest.raises(UserError, match=words):
            load_checkpoint(folder, **wrong)
    save_file(as_transformers(theirs.state_dict()), tmp_path / "alone.safetensors")
    alone = load_checkpoint(tmp_path / "alone.safetensors", num_heads=3)
    assert alone.classes == tuple("012") and alone.config.norm_eps == 1e-12


@pytest.mark.slow  # importing transformers takes seconds
@SIZES
def test_hugging_faces_own_model(tmp_path, size, patch):
    transformers = pytest.importorskip("transformers")
    shape = dict(image_size=size, patch_size=patch, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.ViTConfig(**shape, intermediate_size=96, num_labels=5, layer_norm_eps=0.1)
    theirs = scramble(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path / "hub")
    found = load_checkpoint(tmp_path / "hub")
    assert largest_difference(found.model, theirs, size) < 1e-4 and found.config.norm_eps == 0.1
    torch.save(theirs.state_dict(), tmp_path / "memory.pt")  # since version 5 the names in memory are others
    found = load_checkpoint(tmp_path / "memory.pt", num_heads=4, norm_eps=0.1)
    assert largest_difference(found.model, theirs, size) < 1e-4

    deit = transformers.DeiTConfig(**shape, intermediate_size=96, num_labels=5)
    theirs = scramble(transformers.DeiTForImageClassificationWithTeacher(deit))
    theirs.save_pretrained(tmp_path / "deit")
    found = load_checkpoint(tmp_path / "deit")
    assert torch.equal(found.model.head.weight, theirs.cls_classifier.weight)
    assert any("distillation token" in note for note in found.notes)


@SIZES
def test_timms_folder_says_its_pooling_and_normalisation(tmp_path, size, patch):
    timm = pytest.importorskip("timm")
    shape = dict(img_size=size, patch_size=patch, embed_dim=48, depth=2, num_heads=4, num_classes=5, global_pool="avg")
    theirs = scramble(timm.create_model("vit_tiny_patch16_224", **shape, init_values=0.1, no_embed_class=True))
    timm.models.save_for_hf(theirs, tmp_path / "hub", safe_serialization=True, model_args=dict(num_heads=4))
    config = json.loads((tmp_path / "hub/config.json").read_text())
    for names in (list("abcde"), {str(4 - i): name for i, name in enumerate("edcba")}):
        (tmp_path / "hub/config.json").write_text(json.dumps({**config, "label_names": names}))
        assert load_checkpoint(tmp_path / "hub").classes == tuple("abcde")
    (tmp_path / "hub/config.json").write_text(json.dumps({**config, "label_names": {"1": "cat"}}))
    with pytest.raises(UserError, match="has not the numbers 0 to 0"):
        load_checkpoint(tmp_path / "hub")
    for name in "vwxyz":
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "hub/config.json").write_text(json.dumps({**config, "label_names": list("abcde")}))
    with pytest.raises(UserError, match=r"v, w, x, y, z, .* by its config.json \(--classes names them otherwise\)"):
        load_checkpoint(tmp_path / "hub", dataset="folder", data_path=tmp_path / "data")
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    found = load_checkpoint(tmp_path / "hub")
    assert largest_difference(found.model, theirs, size) < 1e-4
    assert found.config.pool == "mean" and found.mean == found.std == (0.5,) * 3
    assert len(found.notes) == 1  # nothing was guessed


@SIZES
def test_a_mean_without_cls_is_a_learned_mean_with_a_query_of_zeros(tmp_path, size, patch):
    theirs = timms(img_size=size, patch_size=patch, class_token=False, global_pool="avg", fc_norm=False, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "gap.pt")
    for given in (dict(), dict(pool="mean"), dict(pool="seq")):
        found = load_checkpoint(tmp_path / "gap.pt", num_heads=3, **given)
        assert found.config.pool == "seq" and largest_difference(found.model, theirs, size) < 1e-4
    model = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=48, depth=2, num_heads=3, mlp_ratio=4, pool="seq"
    )
    load_weights(model, tmp_path / "gap.pt", range(10))
    assert not model.seq_pool.weight.any() and torch.equal(model.pos_embed, theirs.pos_embed)


def test_a_plain_state_dict_of_our_own_model(tmp_path):
    ours = scramble(VisionTransformer(img_size=32, embed_dim=48, depth=2, num_heads=3, pool="seq", head="mlp"))
    save_file(ours.state_dict(), tmp_path / "ours.safetensors")
    assert_same_logits(load_checkpoint(tmp_path / "ours.safetensors", num_heads=3), ours)


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_the_distillation_token_of_deit_is_dropped_and_said(tmp_path, layout):
    deit = pytest.importorskip("timm.models.deit")
    shape = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=48, depth=2, num_heads=3)
    distilled, plain = scramble(deit.VisionTransformerDistilled(**shape)), timms(**shape)
    state = distilled.state_dict()
    save_file(as_transformers(state) if layout == "transformers" else state, tmp_path / "deit.safetensors")
    known = dict(pool="cls", num_heads=3, norm_eps=1e-6)
    found = load_checkpoint(tmp_path / "deit.safetensors", **known)
    assert any("distillation token and its head are dropped" in note for note in found.notes)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 2:]], dim=1)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert_same_logits(found, plain)


def test_facebooks_names_of_layer_scale_and_mae_that_was_fine_tuned(tmp_path):
    theirs = timms(init_values=0.1, no_embed_class=True)  # DeiT III
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): value for name, value in theirs.state_dict().items()}
    assert any("gamma_1" in name for name in state)
    torch.save({"model": state}, tmp_path / "deit3.pth")
    assert_same_logits(load_checkpoint(tmp_path / "deit3.pth", num_heads=3, pool="cls"), theirs)
    theirs = timms(global_pool="avg")  # MAE's fine-tuned models have fc_norm and no norm
    torch.save({"model": theirs.state_dict(), "epoch": 99, "scaler": {"scale": 1.0}}, tmp_path / "mae.pth")
    assert_same_logits(load_checkpoint(tmp_path / "mae.pth", num_heads=3, pool="mean"), theirs)


def test_the_width_of_an_mlp_is_read_exactly(tmp_path):
    theirs = timms(embed_dim=60, mlp_ratio=2.0500001)  # 123 wide; 60 * (123 / 60) is a little less in floating point
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert_same_logits(load_checkpoint(tmp_path / "theirs.pt", num_heads=3, pool="cls"), theirs)


# -------------------------------------------------------------------------------- what is refused


def changed(**names):
    """The state dict of a small timm model with a tensor more, "__" for a dot."""
    return {**timms().state_dict(), **{name.replace("__", "."): torch.ones(48) for name in names}}


@pytest.mark.parametrize(
    "make, config, words",
    [
        (lambda: changed(rope__periods=1), None, "has rotary positions"),
        (lambda: changed(storage_tokens=1), None, "has register tokens"),
        (lambda: changed(blocks__0__attn__temperature=1), None, "has blocks.0.attn.temperature, which this"),
        (changed, {**CONFIG, "model_type": "dinov2"}, "is a dinov2 of transformers; this reads its vit"),
        (changed, {**CONFIG, "hidden_act": "quick_gelu"}, "has quick_gelu in its MLPs"),
        (changed, {**CONFIG, "id2label": {"a": 1}}, "config.json of .* is not as transformers"),
        (changed, dict(architecture="vit_x_quickgelu"), "has quick_gelu in its MLPs"),
        (changed, dict(model_args=dict(act_layer="quick_gelu")), "has quick_gelu in its MLPs"),
        (changed, dict(architecture="vit_x", global_pool="max"), "pools by max"),
        (
            lambda: timms(class_token=False, global_pool="avg").state_dict(),
            None,
            "no CLS token and its last norm comes",
        ),
        (lambda: TorchvisionViT(32, 8, 1, 3, 48, 96, representation_size=16).state_dict(), None, "of another width"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_name(tmp_path, make, config, words):
    if config:
        path = write_hub(tmp_path / "hub", make(), config)
    else:
        path = tmp_path / "theirs.pt"
        torch.save(make(), path)
    for read in (lambda: load_checkpoint(path, num_heads=3), lambda: take_architecture(path, dict(num_heads=3))):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_patches_that_no_convolution_cuts_are_refused(tmp_path):
    for shape in ((48, 48), (48, 3, 2, 8, 8)):  # a linear layer, and a convolution of videos
        torch.save({**timms().state_dict(), "patch_embed.proj.weight": torch.ones(shape)}, tmp_path / "theirs.pt")
        with pytest.raises(UserError, match="does not cut its patches by a 2-D convolution"):
            load_checkpoint(tmp_path / "theirs.pt", num_heads=3, pool="cls")


def test_damaged_files_end_in_one_line(tmp_path):
    save_file(timms().state_dict(), tmp_path / "whole.safetensors")
    blob = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(blob[: len(blob) // 2])
    folder = write_hub(tmp_path / "hub", timms().state_dict(), CONFIG)
    (folder / "config.json").write_text('{"model_type": ')
    lacking = timms().state_dict()
    del lacking["blocks.1.mlp.fc2.bias"]
    torch.save(lacking, tmp_path / "lacking.pt")
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{}")
    for file, words in (
        ("cut.safetensors", "not a complete .safetensors file"),
        ("hub", "config.json is not complete JSON"),
        ("lacking.pt", "lacks 'blocks.1.mlp.fc2.bias'"),
        ("sharded", "is saved in several files"),
    ):
        with pytest.raises(UserError, match=words):
            take_architecture(tmp_path / file, dict(num_heads=3))
    done = run("train.py", "--dataset", "digits", "--init_from", "cut.safetensors", cwd=tmp_path)
    assert_refused(done, "cut.safetensors is not a complete .safetensors file")
    assert not (tmp_path / "model").exists() and not (tmp_path / "output").exists()


# ------------------------------------------------------------- other grids, patches and channels


def test_resampling_is_timms():
    layers = pytest.importorskip("timm.layers")
    positions = torch.randn(1, 1 + 49, 24)
    for new in (5, 7, 12):
        expected = layers.resample_abs_pos_embed(positions, new_size=[new, new], num_prefix_tokens=1)
        torch.testing.assert_close(resize_positions(positions, old=7, new=new, prefix=1), expected)
    weight = torch.randn(24, 3, 8, 8)
    for size in (4, 8, 14):
        expected = layers.resample_patch_embed(weight, [size, size])
        torch.testing.assert_close(resize_patches(weight, size), expected, atol=1e-4, rtol=1e-4)
    adapt = pytest.importorskip("timm.models").adapt_input_conv
    for channels in (1, 3, 4):
        torch.testing.assert_close(adapt_channels(weight, channels), adapt(channels, weight))
    torch.testing.assert_close(adapt_channels(weight[:, :1], 3), weight[:, :1].expand(-1, 3, -1, -1) / 3)


def test_fine_tuning_with_other_patches_and_channels(tmp_path):
    """As timm's own loading of the same file: create_model(checkpoint_path) with another patch size and in_chans."""
    timm = pytest.importorskip("timm")
    theirs = timms(num_classes=0)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    given = dict(num_heads=3, dataset="digits", patch_size=4, img_size=32, in_chans=1, mean=[0.5], std=[0.5])
    config = TrainConfig.create(take_architecture(tmp_path / "theirs.pt", given), given)
    ours = build_model(config).eval()
    lines = load_weights(ours, tmp_path / "theirs.pt", "0123456789")
    for line in ("from 3 to 1 channels", "from 8 to 4 pixels a side", "from 4 x 4 to 8 x 8 patches"):
        assert any(line in said for said in lines)

    vit = timm.models.vision_transformer
    other = timms(num_classes=0, patch_size=4, in_chans=1)
    state = vit.checkpoint_filter_fn(theirs.state_dict(), other)
    state["patch_embed.proj.weight"] = timm.models.adapt_input_conv(1, state["patch_embed.proj.weight"])
    other.load_state_dict(state)
    ours.head = torch.nn.Identity()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), other(images), atol=1e-4, rtol=0)


# --------------------------------------------------------------------------- a whole fine-tuning


def test_the_normalisation_of_the_source_is_used_and_stored(tmp_path, capsys):
    theirs = timms(num_classes=10, img_size=16, patch_size=8)
    config = dict(architecture="vit_x", global_pool="token", pretrained_cfg=dict(IMAGENET))
    write_hub(tmp_path / "hub", theirs.state_dict(), config)
    flags = "--dataset digits --num_train_images 64 --epochs 1 --no_test --init_from hub --num_heads 3".split()
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tuned = load_checkpoint(tmp_path / "model/vit-layer2-16-digits")
    assert tuned.mean == IMAGENET["mean"] and tuned.std == IMAGENET["std"]
    assert tuned.config.pool == "cls" and "does not say" not in done.stdout
    assert_refused(run("train.py", *flags, "--mean", 0.5, cwd=tmp_path), "--mean and --std: give both, with 3 values")

    given = dict(dataset="digits", num_heads=3)
    for more, mean in ((dict(in_chans=1), (0.449,)), (dict(mean=(0.1,) * 3, std=(0.2,) * 3), (0.1,) * 3)):
        config = TrainConfig.create(take_architecture(tmp_path / "hub", {**given, **more}), given, more)
        sets = load_data(config, ("train",))
        assert sets.mean == pytest.approx(mean)  # for one channel the average
    assert "--mean (0.1, 0.1, 0.1) wins over (0.485, 0.456, 0.406)" in capsys.readouterr().out
    for wrong in (dict(mean=(0.1, 0.2), std=(0.1, 0.2)), dict(mean=(0.1,))):
        with pytest.raises(UserError, match="--mean and --std: give both, with 1 values each"):
            TrainConfig.create(given, wrong)


@pytest.mark.slow
def test_a_whole_fine_tuning_at_224_pixels(tmp_path):
    """From a file of timm's vit_tiny_patch16_224 to Imagenette, all by the scripts: train, test, look, export."""
    timm = pytest.importorskip("timm")
    if not (SHARED / "imagenette").is_dir():
        pytest.skip("Imagenette is not in ../shared/data")
    for split in ("train", "val"):
        for name in sorted((SHARED / "imagenette" / split).iterdir())[:2]:
            (tmp_path / "data" / split / name.name).mkdir(parents=True)
            for file in sorted(name.iterdir())[:6]:
                (tmp_path / "data" / split / name.name / file.name).symlink_to(file)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    save_file(theirs.state_dict(), tmp_path / "vit_tiny_patch16_224.safetensors")
    flags = "--dataset folder --data_path data --init_from vit_tiny_patch16_224.safetensors --epochs 1 --batch_size 6"
    flags += " --freeze 10 --layer_decay 0.75 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --folder_name tuned"
    done = run("train.py", *flags.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "14 x 14 = 196 patches from 224 pixels",
        "fresh: head.weight, head.bias",
        "frozen: the embedding and 10",
    ):
        assert line in done.stdout
    tuned = load_checkpoint(tmp_path / "model/tuned")
    assert torch.equal(tuned.model.blocks[9].mlp.fc2.weight, theirs.blocks[9].mlp.fc2.weight)
    assert not torch.equal(tuned.model.blocks[11].mlp.fc2.weight, theirs.blocks[11].mlp.fc2.weight)
    assert tuned.mean == (0.5,) * 3 and tuned.config.num_heads == 3 and len(tuned.classes) == 2

    done = run("test.py", "--model_path", "model/tuned", "--data_path", "data", cwd=tmp_path)
    assert done.returncode == 0 and "12 images" in done.stdout, done.stderr
    look = ["--model_path", "model/tuned", "--data_path", "data", "--index", 3, "--layers", 11]
    done = run("visualize.py", "maps", *look, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("output/tuned/visualize/*maps*.png"))
    attention = tuned.model(torch.zeros(1, 3, 224, 224), return_attention=True)[1]
    assert attention.shape == (1, 12, 3, 1 + 14 * 14, 1 + 14 * 14)
    done = run("export.py", "model/tuned", "small.pt", cwd=tmp_path)
    assert done.returncode == 0 and load_checkpoint(tmp_path / "small.pt").model.grid_size == 14, done.stderr


def test_translate_leaves_the_given_weights_alone():
    state = timms(init_values=0.1).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    theirs = foreign_weights.translate(state, "theirs", num_heads=3, pool="cls")
    assert theirs.notes == ["theirs: timm layout, 2 blocks 48 wide"] and theirs.facts == theirs.normalisation == {}
    assert before.keys() == state.keys() and all(torch.equal(before[name], state[name]) for name in state)
