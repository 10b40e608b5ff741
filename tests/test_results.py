"""results.py: the table says what the reports say."""

import hashlib
import json
import re
import shutil

import pytest
from conftest import ROOT, assert_refused, run

import results
from vitlab.cli import UserError
from vitlab.config import in_groups


@pytest.fixture
def page(tmp_path, digits_run):
    """A folder with a finished run, and a page with an empty table."""
    shutil.copytree(digits_run[0] / "output", tmp_path / "output")
    shutil.copytree(digits_run[0] / "model", tmp_path / "model")
    (tmp_path / "README.md").write_text(f"before\n\n{results.START}\n{results.END}\n\nafter\n")
    return tmp_path


def test_a_row_is_the_report(page):
    done = run("results.py", "output/vit-layer4-8-digits", "--file", "README.md", cwd=page)
    assert done.returncode == 0, done.stderr
    text = (page / "README.md").read_text()
    assert text.startswith("before\n\n") and text.endswith(f"{results.END}\n\nafter\n")
    heads, _, cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][:3]
    row = dict(zip(heads, cells))
    report = json.loads((page / "output/vit-layer4-8-digits/report.json").read_text())
    assert row["test accuracy"] == f"{100 * report['test']['accuracy']:.2f} %"
    assert row["loss"] == f"{report['test']['loss']:.3f}" and row["epochs"] == "4" and row["seed"] == "0"
    assert row["config or command"] == "`train.py --dataset digits --epochs 4`"
    weights = (page / "model/vit-layer4-8-digits/best.pt").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in text

    config = "configs/vit-layer12-32-cifar10.yaml"  # linked where the run was made with it, not for its name alone
    for command, told in (
        (f"train.py --config {config} --seed 1", f"]({config})"),
        ("train.py --n_layers 12", "`train"),
    ):
        assert told in results.command_of("vit-layer12-32-cifar10", {"command": command})

    again = run("results.py", cwd=page)  # the rows that are there
    assert again.returncode == 0 and (page / "README.md").read_text() == text


def test_own_runs_go_to_a_file_of_their_own(page):
    """A row more with each run that is named; README stays."""
    before = (page / "README.md").read_text()
    for name in ("second", "third"):
        shutil.copytree(page / "output/vit-layer4-8-digits", page / "output" / name)
    for name in ("vit-layer4-8-digits", "second", "second", "third"):
        done = run("results.py", f"output/{name}", cwd=page)
        assert done.returncode == 0 and "output/results.md" in done.stdout, done.stderr
    text = (page / "output/results.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|", text, flags=re.M)
    assert rows == ["vit-layer4-8-digits", "second", "third"] and text.startswith("# Results\n")
    assert (page / "README.md").read_text() == before
    report = json.loads((page / "output/third/report.json").read_text())
    (page / "output/third").rename(page / "output/my run, c+d")
    (page / "output/my run, c+d/report.json").write_text(json.dumps({**report, "train_pflop": None}))  # an own module
    for name in ("my run, c+d", "second"):
        assert run("results.py", page / "output" / name, "--file", page / "output/more.md", cwd=page).returncode == 0
    assert re.findall(r"^\| `(.+?)` \|", (page / "output/more.md").read_text(), flags=re.M) == ["my run, c+d", "second"]
    (page / "output/my run, c+d").rename(page / "output/third")
    (page / "output/third/report.json").write_text(json.dumps(report))
    done = run("results.py", page / "output/third", "--file", "README.md", cwd=page)
    assert done.returncode == 0 and "| `third` |" in (page / "README.md").read_text()


def test_what_is_no_result_is_refused(page):
    before = (page / "README.md").read_text()
    assert_refused(run("results.py", "output/nothing", cwd=page), "output/nothing", "no finished run")
    assert_refused(run("results.py", cwd=page), "README.md", "no rows yet")
    assert_refused(run("results.py", "--file", "output", cwd=page), "output")
    report = page / "output/vit-layer4-8-digits/report.json"
    report.write_text(report.read_text().replace('"test": {', '"test": null, "was": {'))
    assert_refused(run("results.py", "output/vit-layer4-8-digits", cwd=page), "--no_test")
    assert (page / "README.md").read_text() == before
    with pytest.raises(UserError, match="no finished run"):
        results.result_cells(ROOT)


def test_a_page_includes_the_settings():
    text = results.refill_tables("a\n<!-- settings: model recipe -->\nold\n<!-- /settings -->\nb")
    assert text.startswith("a\n<!-- settings: model recipe -->\n\n| flag |") and "old" not in text
    assert text.endswith(" |\n\n<!-- /settings -->\nb")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(in_groups("model", "recipe")) and "batch_size" not in text
    assert ["`--depth`, `--n_layers`", "6", "encoder blocks"] in rows
    assert ["`--learning_rate`, `--lr`, `-lr`", "5e-4", "peak of the schedule"] in rows
    assert ["`--img_size`, `--image_size`", "the set's", "side images are resized to"] in rows
    assert ["`--head`", "linear", "`linear`, `mlp`: mlp: linear, tanh, linear"] in rows
    few = results.refill_tables("<!-- settings: epochs --> <!-- /settings -->")
    assert "`--epochs`" in few and "`--seed`" not in few and "`--learning_rate`" not in few
    with pytest.raises(UserError, match="settings: models is no group"):
        results.refill_tables(text.replace("settings: model recipe", "settings: models"))


def test_every_page_is_made_again(page):
    """Without arguments README and docs/*.md; links go from the page's folder; a page may have no table of runs."""
    docs = page / "docs"
    docs.mkdir()
    (docs / "runs.md").write_text(f"{results.START}\n{results.END}\n")
    (docs / "settings.md").write_text("<!-- settings: seed -->\n<!-- /settings -->\n")
    report = page / "output/vit-layer4-8-digits/report.json"
    config = "configs/vit-layer4-8-digits.yaml"
    report.write_text(report.read_text().replace("--dataset digits", f"--config {config} --dataset digits"))
    for file in ("README.md", "docs/runs.md"):
        done = run("results.py", "output/vit-layer4-8-digits", "--file", file, cwd=page)
        assert done.returncode == 0, done.stderr
    assert f"]({config})" in (page / "README.md").read_text() and f"](../{config})" in (docs / "runs.md").read_text()
    assert "`--seed`" not in (docs / "settings.md").read_text()
    pages = {file: file.read_text() for file in (page / "README.md", docs / "runs.md")}
    assert run("results.py", cwd=page).returncode == 0
    assert all(file.read_text() == text for file, text in pages.items())
    assert "| `--seed` | 0 |" in (docs / "settings.md").read_text()
    assert_refused(
        run("results.py", "output/vit-layer4-8-digits", "--file", "docs/settings.md", cwd=page), "settings.md"
    )
