"""README and docs/ tell what is true: their flags, defaults, files, links and figures."""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, run
from PIL import Image

import results
import visualize
from model import VisionTransformer
from vitlab.catalog import DATASETS
from vitlab.config import SETTINGS, TrainConfig, read_settings
from vitlab.models.registry import count_flops, count_parameters
from vitlab.study.tables import duration

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
README = PAGES["README.md"]
SCRIPTS = "train.py test.py visualize.py benchmark.py compare.py results.py export.py download.py model.py".split()


def report_of(name):
    return json.loads((ROOT / "output" / name / "report.json").read_text())


def section(page, title):
    """What stands under a heading of a page, up to the next of that level, on one line."""
    return " ".join(re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGES[page], flags=re.S | re.M)[1].split())


def test_readme_is_short():
    assert len(README.splitlines()) <= 250


def test_every_setting_is_in_the_table_with_its_default():
    for name, field in SETTINGS.items():
        spellings = ", ".join(f"`--{spelling}`" for spelling in (name, *field.older))
        row = re.search(rf"^\| {re.escape(spellings)}.*?\| (.*?) \|", PAGES["docs/settings.md"], flags=re.M)
        assert row, f"--{name} is not in docs/settings.md"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert float(row[1]) == field.default, name


@pytest.fixture(scope="module")
def flags():
    """The flags of all scripts and their commands."""
    asked = [[name] for name in SCRIPTS] + [["vitlab.datasets.shards"]]
    asked += [
        ["visualize.py", command] for command in ("explorer", *visualize.IMAGE_COMMANDS, *visualize.MODEL_COMMANDS)
    ]
    return set(re.findall(r"--(\w[\w-]*)", "".join(run(*words, "--help").stdout for words in asked)))


@pytest.mark.parametrize("page", PAGES)
def test_flags_it_names_exist(page, flags):
    torchrun = "standalone nproc_per_node nnodes max-restarts rdzv_id rdzv_backend rdzv_endpoint".split()
    slurm = "nodes ntasks-per-node gpus-per-node gpus cpus-per-task time requeue signal array".split()
    known = {*flags, *torchrun, *slurm, "index-url", "logdir", "no-NAME"}
    for flag in set(re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", PAGES[page])):
        assert flag in known, flag


@pytest.mark.parametrize("page", PAGES)
def test_files_it_names_exist(page):
    for name in re.findall(
        r"configs/[\w/-]+\.yaml|\w[\w/]*\.ipynb|(?:demos|vitlab)/[\w/]+\.(?:py|png)|attention_map_gif/[\w-]+\.gif",
        PAGES[page],
    ):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"python (\w+\.py)", PAGES[page]):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"model/(vit-\w+-cpu[\w-]+|vit-\w+-20min[\w-]+)", PAGES[page]):
        assert (ROOT / "model" / name / "best.pt").exists(), name


def test_structure_is_the_tree():
    told = re.search(r"^## Structure\n(.*?)^## ", README, flags=re.S | re.M)[1]
    top = set(re.findall(r"^    (\w+\.py) ", told, flags=re.M))
    assert top == {path.name for path in ROOT.glob("*.py")} == set(SCRIPTS)
    inside = set(re.findall(r"\w+\.py|\w+/", re.search(r"    vitlab/.*?\n((?: {8}.*\n)+)", told)[1]))
    rooms = {f"{path.name}/" for path in (ROOT / "vitlab").iterdir() if (path / "__init__.py").exists()}
    files = {path.name for path in (ROOT / "vitlab").glob("*.py")} - {"__init__.py"}
    assert rooms | files <= inside <= rooms | files | top
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    folders = {f"{name.split('/')[0]}/" for name in tracked if "/" in name and not name.startswith(".")}
    assert folders <= set(re.findall(r"(?<![\w/])\w+/", told))


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_linked_from_readme():
    assert not {page for page in PAGES.keys() - {"README.md"} if f"]({page})" not in README}


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_that_results_py_makes(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = PAGES[page]
    assert results.refill_tables(text, Path(page)) == text
    if results.START in text:
        _, inside, _ = results.split_at_marks(Path(page))
        names = re.findall(r"^\| `([\w-]+)` \|", inside, flags=re.M)
        assert names and inside == results.relative_links(
            results.results_tables([Path("output") / name for name in names]), Path(page)
        )


def test_every_published_run_is_told():
    """README has a row for each model that comes with the repository, docs/results.md one for each run."""
    tracked = subprocess.run(["git", "ls-files", "model", "output"], cwd=ROOT, capture_output=True, text=True).stdout
    for page, pattern in (
        ("README.md", r"^model/([\w-]+)/best\.pt$"),
        ("docs/results.md", r"^output/([\w-]+)/metrics\.csv$"),
    ):
        text = PAGES[page]
        inside = text[text.index(results.START) : text.index(results.END)]
        rows = re.findall(r"^\| `([\w-]+)` \|", inside, flags=re.M)
        published = re.findall(pattern, tracked, flags=re.M)
        assert sorted(rows) == sorted(published), page
    sources = re.findall(r"<!-- comparison: output/([\w-]+)/", "".join(PAGES.values()))
    assert sorted(sources) == sorted(re.findall(r"^output/([\w-]+)/final_results\.json$", tracked, flags=re.M))


def test_the_claim_is_the_best_published_run():
    claim, plain = re.search(r"\*\*([\d.]+ %)\*\* test accuracy.*?reaches ([\d.]+ %)", README, flags=re.S).groups()
    assert f"| {claim} |" in README and f"| {plain} |" in README
    report = report_of("vit-conv-cpu-32-cifar10")
    assert claim == f"{100 * report['test']['accuracy']:.2f} %" and report["seconds"] < 2 * 3600
    assert plain == f"{100 * report_of('vit-layer6-32-cifar10')['test']['accuracy']:.2f} %"
    hundred = re.search(r"([\d.]+ %) on CIFAR-100", README)[1]
    assert hundred == f"{100 * report_of('vit-conv-32-cifar100')['test']['accuracy']:.2f} %"


def test_times_and_accuracies_of_the_commands_are_measured():
    told = re.findall(r"^python train\.py .*configs/([\w-]+)\.yaml +# (\d+) minutes: ([\d.]+) %$", README, flags=re.M)
    told += re.findall(r"^python train\.py --dataset (digits) .*# (\d+) seconds: ([\d.]+) %$", README, flags=re.M)
    assert len(told) == 3
    for name, time, accuracy in told:
        report = report_of("digits-2threads" if name == "digits" else name)
        assert duration(report["seconds"]).split()[0] == time and f"{100 * report['test']['accuracy']:.2f}" == accuracy
    (minutes,) = re.findall(r"configs/compare-cpu\.yaml .*: (\d+) minutes", README)
    assert f"three seeds, {minutes} min on two" in (ROOT / "configs/compare-cpu.yaml").read_text()


def test_digits_seeds_are_told():
    told = section("docs/results.md", "All runs")
    digits = [100 * report_of(f"digits-seed{seed}")["test"]["accuracy"] for seed in range(5)]
    mean, low, high = sum(digits) / 5, min(digits), max(digits)
    assert f"The mean of the five seeds is {mean:.2f} % (lowest {low:.2f} %, highest {high:.2f} %)" in told
    assert f"that run reached {100 * report_of('digits-2threads')['test']['accuracy']:.2f} %" in told


def test_the_recipes_probes_are_those_of_their_files():
    rows = re.findall(
        r"^\| .* \| [\d.]+ \| \d \| \[([\d.]+) %\]\((\S+\.csv)\) \|$", PAGES["docs/recipe.md"], flags=re.M
    )
    for told, file in rows:
        *_, last = csv.DictReader((ROOT / "docs" / file).open())
        assert told == f"{100 * float(last['val_accuracy']):.1f}", file
    assert {Path(file).name for _, file in rows} == {path.name for path in (ROOT / "output/recipe").iterdir()}


def rows_of(study):
    """The rows of a study by number."""
    contents = json.loads((ROOT / "output" / study / "final_results.json").read_text())
    return {row["number"]: row for row in contents["rows"]}


def test_what_is_said_of_the_studies_is_in_their_tables():
    rows = rows_of("compare-cpu")
    told = section("docs/comparisons.md", r"Does a ViT need more data than a CNN\?")
    quoted = re.findall(r"reaches ([\d.]+) % \(row (\d+)\)", told)
    assert len(quoted) == 2
    for accuracy, number in quoted:
        assert f"{100 * rows[int(number)]['accuracy']['mean']:.1f}" == accuracy, number
    behind = ["{:.1f}".format(-100 * rows[number]["vs"]["difference"]) for number in (1, 3, 5)]
    assert f"{behind[0]}, {behind[1]} and {behind[2]} points behind" in told
    vit, cnn = (100 * rows[number]["accuracy"]["mean"] for number in (5, 8))
    assert f"{vit:.1f} % with 50,000 images in ten epochs, the CNN {cnn:.1f} % with 5,000" in section(
        "README.md", "Compare"
    )

    rows = rows_of("compare-ablation-cpu")
    worth = {number: f"{-100 * rows[number]['vs']['difference']:.1f}" for number in (2, 3, 4)}
    told = section("docs/results.md", "Ablation: what each part of the recipe is worth")
    for number, words in ((2, "stem is worth most"), (3, "Augmentation is worth"), (4, "Muon is worth")):
        assert re.search(rf"{words}:? {worth[number]} points", told), words
    low, high = rows[5]["vs"]["ci95"]
    assert f"at most {100 * max(-low, high):.1f} points either way" in told
    assert f"worth {worth[2]} points, the Muon optimiser {worth[4]}, augmentation {worth[3]}" in section(
        "README.md", "Results"
    )


def test_what_was_not_run_is_told():
    text = " ".join(PAGES["docs/results.md"].split())
    told = re.search(r"Configured and not run yet, for want of a GPU: (.*?), all in", text)[1]
    waiting = {path.stem for path in (ROOT / "configs").rglob("*.yaml") if "waits for a GPU" in path.read_text()}
    assert set(re.findall(r"`([\w-]+)`", told)) == waiting
    told = re.findall(r"For two CPU cores, and not run yet either: (.*?), in", text)
    later = {path.stem for path in (ROOT / "configs").rglob("*.yaml") if "This has not run yet" in path.read_text()}
    assert set(re.findall(r"`([\w-]+)`", " ".join(told))) == later
    assert not any((ROOT / "output" / name / "report.json").exists() for name in waiting | later)


def test_what_is_said_of_faithfulness_is_measured():
    (name,) = re.findall(r"<!-- faithfulness: (\S+) -->", PAGES["docs/attention.md"])
    report = json.loads((ROOT / name).read_text())
    assert f"on {report['n']} test images" in PAGES["docs/attention.md"]
    kinds = ("mean_deletion", "mean_insertion", "blur_deletion", "blur_insertion")
    for kind in kinds:
        sign = 1 if kind.endswith("deletion") else -1
        maps = sorted((row for row in report["rows"] if row["map"] != "random"), key=lambda r: sign * r[kind]["area"])
        assert [row["map"] for row in maps[:2]] == ["gradient rollout", "Grad-CAM"], kind
        assert maps[-1]["map"] == "rollout", kind
        assert all(max(sign * bound for bound in row[kind]["ci95"]) < 0 for row in maps), kind  # better than chance


def test_the_speeds_told_are_the_measured_ones():
    report = json.loads((ROOT / "output/benchmark/published.json").read_text())
    text = " ".join(PAGES["docs/speed.md"].split())
    for name in ("textbook", "timm"):
        low, middle, high = report["steps"][name]["ours_is_faster_by"]
        assert f"{middle:.2f} times as fast ({low:.2f} to {high:.2f}) as" in text, name
    assert f"{report['steps']['textbook']['ours_is_faster_by'][1]:.2f} times as fast as a textbook" in " ".join(
        README.split()
    )
    shares = {name: found["share_of_step"] for name, found in report["augmentation"].items()}
    slowest = max(shares, key=shares.get)
    assert f"The slowest augmentation, `{slowest}`, takes {100 * shares[slowest]:.1f} % of the step" in text
    for seconds in report["seeing"].values():
        assert f"{seconds:.2f} s" in text


def test_how_often_intervals_hold_is_what_was_simulated():
    found = json.loads((ROOT / "output/interval_coverage.json").read_text())
    held, text = found["held_by_standard_deviation"], " ".join(PAGES["docs/comparisons.md"].split())
    first, second, third = (f"{100 * held[points]:.1f}" for points in ("0.3", "1", "3"))
    assert f"{first}, {second} and {third} % of {found['studies']} studies" in text


def test_digits_defaults_are_told():
    defaults = TrainConfig.create(dataset="digits")
    told = re.search(r"`digits` has defaults of its own: (.*?)\.", PAGES["docs/settings.md"], flags=re.S)[1]
    settings = read_settings(dict(re.findall(r"`--(\w+) (\S+)`", told)))
    assert set(settings) == set(DATASETS["digits"].defaults) | {"augment"}
    for name, value in settings.items():
        assert getattr(defaults, name) == value, name


def test_the_model_alone_runs():
    """The first block of Python, a training, is run by test_train.py."""
    _, block = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    space = {}
    exec(block, space)
    assert space["logits"].shape == (1, 10)


def test_fine_tuning_runs_as_it_stands(tmp_path):
    """README's command for one's own images, from another folder, with fewer epochs."""
    command = re.search(r"python (train\.py .*--init_from.*)", README)[1].replace("DIR", "mine").split()
    for label in ("cats", "dogs"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(10):
            Image.effect_noise((40, 32), 50 + i).save(tmp_path / "mine" / label / f"{i}.png")
    done = run(*command, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0 and "fresh: head.weight, head.bias\n" in done.stdout, done.stderr
    weights = yaml.safe_load((ROOT / "output/vit-conv-cpu-32-cifar10/config.yaml").read_text())
    (ours,) = tmp_path.glob("output/*/config.yaml")
    ours = yaml.safe_load(ours.read_text())
    shape = ("img_size", "patch_size", "depth", "embed_dim", "num_heads", "mlp_ratio", "pool")
    for key in (*shape, "stem", "stem_depth", "stem_growth"):
        assert ours[key] == weights[key], key


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_every_script(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_imagenet_on_paper_is_what_its_assumptions_give():
    """The table of docs/cluster.md: 989 TFLOP/s at 30 %, batches of 4,096, 300 epochs."""
    text = " ".join(PAGES["docs/cluster.md"].split())
    for name, width, heads in (("ViT-S/16", 384, 6), ("ViT-B/16", 768, 12)):
        with torch.device("meta"):
            vit = VisionTransformer(
                img_size=224, patch_size=16, embed_dim=width, depth=12, num_heads=heads, mlp_ratio=4, num_classes=1000
            )
            flops = count_flops(vit)
        parameters = count_parameters(vit)
        assert f"{name} {flops / 1e9:.2f} GFLOPs" in text and f"({parameters / 1e6:.2f} M" in text
        rows = re.findall(rf"^\| {name} \| (.*) \|$", PAGES["docs/cluster.md"], flags=re.M)
        for row, gpus, bandwidth in zip(rows, (1, 8, 256), (1, 450e9, 25e9), strict=True):
            rate = gpus * 0.3 * 989.4e12 / (3 * flops)
            seconds = 300 * 1281167 / rate
            cells = [*row.replace("(", "| ").replace(")", "").split(" | ")]
            value, unit = cells[2].split()
            assert int(cells[0]) == gpus and float(value) * {"h": 3600, "min": 60}[unit] == pytest.approx(seconds, 0.02)
            numbers = [float(cell.replace(",", "")) for cell in (cells[1], *cells[3:])]
            traffic = 2 * (gpus - 1) / gpus * 4 * parameters / bandwidth
            wanted = [rate, rate / 260, rate / 1100, rate * 110e3 / 1e9, 4096 / rate * 1e3, traffic * 1e3]
            assert numbers == pytest.approx(wanted, rel=0.03, abs=0.5 if gpus == 1 else 0.06)
