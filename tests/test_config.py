"""Settings: their layers, their spellings, and what is refused."""

from pathlib import Path

import pytest

from vitlab.cli import Parser, UserError, whole_number
from vitlab.config import SETTINGS, TrainConfig


def test_layers_weakest_first(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("dataset: digits\nn_layers: 3\nlearning_rate: 1e-3\nweight_decay: 1\n")
    config = TrainConfig.from_args(["--config", str(file), "--depth", "2"])
    assert config.drop_rate == 0.1  # the dataclass
    assert config.patch_size == 2  # the data set
    assert config.learning_rate == 0.001 and isinstance(config.learning_rate, float)  # the file
    assert config.weight_decay == 1.0 and isinstance(config.weight_decay, float)
    assert config.depth == 2  # the flag
    assert config.folder_name == "vit-layer2-8-digits"


def test_defaults_are_the_documented_ones():
    config = TrainConfig.create()
    assert (config.dataset, config.img_size, config.in_chans, config.num_classes) == ("cifar10", 32, 3, 10)
    assert (config.warmup_epochs, config.augment, config.val_split) == (10, "crop-flip", 0.1)
    assert config.folder_name == "vit-layer6-32-cifar10"
    assert TrainConfig.create(epochs=20).warmup_epochs == 2
    assert TrainConfig.create(dataset="cifar100").num_classes == 100


def test_both_spellings_are_one_setting():
    old = (
        "--image_size 48 --n_channels 1 --n_classes 10 --n_layers 2 --n_attention_heads 8 --forward_mul 3 --dropout 0.2"
    )
    new = "--img_size 48 --in_chans 1 --num_classes 10 --depth 2 --num_heads 8 --mlp_ratio 3 --drop_rate 0.2"
    assert TrainConfig.from_args(old.split()) == TrainConfig.from_args(new.split())
    for spelling in ("-lr", "--lr", "--learning-rate"):
        assert TrainConfig.from_args([spelling, "0.01"]).learning_rate == 0.01
    assert TrainConfig.create({"lr": 0.01, "batch-size": 3}) == TrainConfig.create(learning_rate=0.01, batch_size=3)
    for spelling in ("--no-qkv_bias", "--no-qkv-bias", "--no_qkv_bias"):
        assert not TrainConfig.from_args([spelling, "--img-size=64"]).qkv_bias


def test_a_command_of_a_script_suggests_its_flags():
    parser = Parser()
    commands = parser.add_subparsers()
    commands.add_parser("gif").add_argument("--frame_ms", type=int)
    commands.add_parser("filters")
    assert parser.parse_args(["gif", "--frame-ms", "30"]).frame_ms == 30
    with pytest.raises(UserError, match="--frame_mss is no flag; did you mean --frame_ms"):
        parser.parse_args(["gif", "--frame_mss", "30"])
    for command in (["filters", "--frame-ms", "30"], ["--frame_ms=30", "gif"]):
        with pytest.raises(UserError, match="--frame.ms.* is a flag of gif; give it after that"):
            parser.parse_args(command)


def test_more_asked_for_than_there_are():
    with pytest.raises(UserError, match="--num_images 8: it takes at least 50, and there are only 8"):
        whole_number("--num_images", low=50, high=8)(8)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [name for name, known in SETTINGS.items() if known.is_path]
    assert set(names) >= {name for name in SETTINGS if name.endswith("_path")} | {"resume", "init_from"}
    for name in names:
        expected = f"{tmp_path}/x"
        (tmp_path / "a.yaml").write_text(f"{name}: ~/x")
        configs = [
            TrainConfig.create({name: "~/x"}),
            TrainConfig.create({name: Path("~/x")}),
            TrainConfig.from_args([f"--{name}=~/x"]),
            TrainConfig.from_args([f"--{name}", "~/x"]),
            TrainConfig.from_args(["--config=~/a.yaml"]),
        ]
        assert [getattr(config, name) for config in configs] == 5 * [expected]
    assert TrainConfig.create(resume="auto").resume == "auto"


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--epochs 0", ["--epochs 0", "at least 1"]),
        ("--epochs -3", ["--epochs -3", "at least 1"]),
        ("--epochs 2.5", ["--epochs", "2.5", "whole number"]),
        ("--epochs 10000000", ["--epochs", "at most"]),
        ("--learning_rate nan", ["--learning_rate", "nan"]),
        ("--learning_rate inf", ["--learning_rate", "at most"]),
        ("--learning_rate fast", ["--learning_rate", "fast", "number"]),
        ("--dropout 1", ["--dropout 1", "at most"]),
        ("--weight_decay=-1", ["--weight_decay -1", "at least 0"]),
        ("--batch_size 0", ["--batch_size 0"]),
        ("--val_split 1", ["--val_split 1"]),
        ("--epochs 5 --warmup_epochs 5", ["--warmup_epochs 5", "--epochs 5"]),
        ("--min_lr 1", ["--min_lr 1", "--learning_rate"]),
        ("--dataset mnits", ["mnits", "cifar10, cifar100, digits, mnist"]),
        ("--n_classes 5", ["--n_classes 5", "10"]),
        ("--n_classes 12", ["--n_classes 12", "10"]),
        ("--n_channels 2", ["--n_channels 2", "1, 3"]),
        ("--pool max", ["--pool", "max", "cls, mean"]),
        ("--amp fp8", ["--amp", "fp8", "bf16"]),
        ("--folder_name a/b", ["--folder_name", "a/b"]),
        ("--colour red", ["--colour is no flag"]),
        ("--epoch 3", ["--epoch is no flag; did you mean --epochs?"]),  # no abbreviations
        ("--batch-sise=3", ["--batch-sise=3 is no flag; did you mean --batch_size?"]),
        ("--batch-size 0", ["--batch_size 0: must be at least 1"]),
        ("--epochs", ["--epochs", "argument"]),
        ("--config nowhere.yaml", ["nowhere.yaml", "No such file"]),
    ],
)
def test_bad_flags_are_refused_in_one_line(argv, words):
    with pytest.raises(UserError) as caught:
        TrainConfig.from_args(argv.split())
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("epoch: 3", ["'epoch'", "epochs"]),
        ("epochs: 3.5", ["--epochs 3.5"]),
        ("epochs: true", ["--epochs True", "whole number"]),
        ("no_test: 1", ["--no_test 1", "true or false"]),
        ("data_path: 3", ["--data_path 3", "text"]),
        ("n_layers: 3\ndepth: 4", ["depth", "twice"]),
        ("epochs: 1\nepochs: 2", ["epochs is there twice"]),
        ("learning_rate: [1]", ["--learning_rate"]),
        ("folder_name: 2024-06-01", ["--folder_name 2024-06-01", "put it in quotes"]),
        ("folder_name: 2024-13-45", ["not YAML"]),
        ("epochs: !!int x", ["not YAML"]),
        ("- a", ["setting: value"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_bad_yaml_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        TrainConfig.from_args(["--config", str(file)])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_a_file_switches_on_a_flag_switches_off(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("compile: true\namp: off\n")  # off is false in YAML
    config = TrainConfig.from_args(["--config", str(file), "--no-compile"])
    assert not config.compile and config.amp == "off"


def test_help_groups_the_flags_and_explains_each(capsys):
    with pytest.raises(SystemExit) as done:
        TrainConfig.from_args(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{group}:") for group in ("data", "model", "recipe", "run")]
    assert places == sorted(places)
    for name, field in SETTINGS.items():
        for spelling in (name, *field.older):
            assert f"--{spelling}" in text
        assert "".join(field.help.split()) in "".join(text.split())
