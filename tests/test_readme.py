"""README tells what is true: its flags, defaults, files and figures."""

import csv
import json
import re

from conftest import ROOT, run

from config import FIELDS, TrainConfig, read_settings
from data import DATASETS

README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_the_table_with_its_default():
    for name, field in FIELDS.items():
        spellings = ", ".join(f"`--{spelling}`" for spelling in (name, *field.metadata["older"]))
        row = re.search(rf"^\| {re.escape(spellings)}.*?\| (.*?) \|", README, flags=re.M)
        assert row, f"--{name} is not in README"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert float(row[1]) == field.default, name
    for flag in set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", README)):
        known = {spelling for f in FIELDS.values() for spelling in (f.name, *f.metadata["older"])}
        assert flag in known | {"config", "mode", "index", "image_path", "no_image", "no-qkv_bias", "rounds"}, flag


def test_files_it_names_exist():
    for name in re.findall(r"^    (\w+\.py) ", README, flags=re.M):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"configs/[\w-]+\.yaml", README):
        assert (ROOT / name).exists(), name


def test_published_results_are_those_of_their_reports():
    """Each row of the results that names an output/ folder agrees with the report.json in it."""
    rows = re.findall(r"^\|.*?`(output/[\w-]+)`.*$", README, flags=re.M)
    assert rows
    for line in README.splitlines():
        named = re.search(r"`(output/[\w-]+)`", line)
        if not line.startswith("|") or not named:
            continue
        report = json.loads((ROOT / named[1] / "report.json").read_text())
        test = report["test"]
        assert f"{test['accuracy']:.2%}".replace("%", " %") in line, line
        low, high = (f"{100 * bound:.1f}" for bound in test["ci95"])
        assert f"{low} to {high}" in line, line
        assert report["hardware"].split(",")[0] in line
        history = list(csv.DictReader((ROOT / named[1] / "metrics.csv").open()))
        assert f" {len(history)} " in line
        minutes = sum(float(row["seconds"]) for row in history) / 60
        assert f"{minutes:.0f} min" in line


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
    for script in ("train.py", "test.py", "benchmark.py"):
        done = run(script, "--help")
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr
