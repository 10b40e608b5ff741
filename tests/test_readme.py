"""README tells what is true: its flags, defaults, files and figures."""

import json
import re
import subprocess
from pathlib import Path

from conftest import ROOT, run

import results
from vitlab.catalog import DATASETS
from vitlab.config import SETTINGS, TrainConfig, read_settings

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_table_with_its_default():
    for name, field in SETTINGS.items():
        spellings = ", ".join(f"`--{spelling}`" for spelling in (name, *field.older))
        row = re.search(rf"^\| {re.escape(spellings)}.*?\| (.*?) \|", README, flags=re.M)
        assert row, f"--{name} is not in README"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert float(row[1]) == field.default, name
    for flag in set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", README)):
        known = {spelling for f in SETTINGS.values() for spelling in (f.name, *f.older)}
        others = "config mode index image_path no_image no-qkv_bias rounds layers heads target frame_ms file".split()
        others += "models patch_sizes train_sizes min_steps grid seeds learning_rates reference jobs help".split()
        assert flag in known | set(others), flag


def test_files_it_names_exist():
    for name in re.findall(r"^    (\w+\.py) ", README, flags=re.M):
        assert (ROOT / name).exists(), name
    for name in re.findall(
        r"configs/[\w-]+\.yaml|[\w/]+\.ipynb|demos/[\w/]+\.(?:py|png)|attention_map_gif/[\w-]+\.gif", README
    ):
        assert (ROOT / name).exists(), name


def test_published_results_are_those_of_their_reports(monkeypatch):
    """What `python results.py` would write is what is there."""
    monkeypatch.chdir(ROOT)
    _, tables, _ = results.split_at_marks(ROOT / "README.md")
    names = re.findall(r"^\| `([\w-]+)` \|", tables, flags=re.M)
    assert names and tables == results.table([Path("output") / name for name in names])
    for history in Path("output").glob("*/metrics.csv"):  # and nothing that was published is left out
        tracked = subprocess.run(["git", "ls-files", history], capture_output=True, text=True).stdout
        assert history.parent.name in names or not tracked
    assert f"| {re.search('Today it reaches ([0-9.]+ %)', README)[1]} |" in tables
    digits = [
        json.loads((ROOT / f"output/digits-seed{seed}/report.json").read_text())["test"]["accuracy"]
        for seed in range(5)
    ]
    assert f"the mean of five seeds is {100 * sum(digits) / 5:.2f} %" in README


def test_what_was_not_run_is_told():
    told = re.search(r"Configured and not run yet, for want of a GPU: (.*?), all in", README, flags=re.S)[1]
    waiting = {path.stem for path in (ROOT / "configs").glob("*.yaml") if "waits for a GPU" in path.read_text()}
    assert set(re.findall(r"`([\w-]+)`", told)) == waiting
    assert not any((ROOT / "output" / name / "report.json").exists() for name in waiting)


def test_the_faithfulness_told_is_the_measured_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert results.refill_tables(README) == README
    (name,) = re.findall(r"<!-- faithfulness: (\S+) -->", README)
    assert json.loads(Path(name).read_text())["n"] == 300


def test_the_speeds_told_are_the_measured_ones():
    report = json.loads((ROOT / "output/benchmark/report.json").read_text())
    text = " ".join(re.search(r"## Speed\n(.*?)\n## ", README, flags=re.S)[1].split())
    for name in ("textbook", "timm"):
        low, middle, high = report["steps"][name]["ours_is_faster_by"]
        assert f"{middle:.2f} times as fast" in text and f"{low:.2f} to {high:.2f}" in text, name
    shares = {name: found["share_of_step"] for name, found in report["augmentation"].items()}
    dearest = max(shares, key=shares.get)
    assert f"The dearest augmentation, `{dearest}`, takes {100 * shares[dearest]:.1f} % of the step" in text
    for seconds in report["seeing"].values():
        assert f"{seconds:.2f} s" in text


def test_set_up_is_two_commands():
    first = re.search(r"(?:^    .+\n)+", README, flags=re.M)[0]
    assert [line.strip() for line in first.splitlines()] == [
        "pip install -r requirements.txt && python train.py --dataset digits --epochs 40",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


def test_digits_defaults_are_told():
    defaults = TrainConfig.create(dataset="digits")
    told = re.search(r"`digits` has defaults of its own: (.*?)\.", README, flags=re.S)[1]
    settings = read_settings(dict(re.findall(r"`--(\w+) (\S+)`", told)))
    assert set(settings) == set(DATASETS["digits"].defaults) | {"augment"}
    for name, value in settings.items():
        assert getattr(defaults, name) == value, name


def test_help_of_every_script():
    for script in (
        "train.py",
        "test.py",
        "visualize.py",
        "benchmark.py",
        "compare.py",
        "results.py",
        "export.py",
        "download.py",
        "model.py",
    ):
        done = run(script, "--help")
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr
