"""Folders of images that grow, or of which some may not be read."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from test_folder import config, paint

from vitlab.cli import UserError
from vitlab.datasets import splits
from vitlab.datasets.folders import FolderIndex, cut_test, find_copies
from vitlab.datasets.images import find_images
from vitlab.datasets.splits import load_data
from vitlab.layout import find_file

# ----------------------------------------------------------------------------------- the cut of test images


def files_of(count, folder="set"):
    return [(Path(folder, f"class{label}", f"{i}.jpg"), label) for label in range(2) for i in range(count)]


def test_images_that_are_added_leave_the_test_split_as_it_is():
    train, test = cut_test(files_of(200))
    assert len(test) == 80 and sum(label for _, label in test) == 40
    assert train == [file for file in files_of(200) if file not in test]
    one_more = cut_test([*files_of(200), (Path("set/class1/new.jpg"), 1)])[1]
    assert len(set(one_more) & set(train)) <= 1
    twice = cut_test(sorted(files_of(400)))[1]  # what was trained on is not tested on, but for a few at the edge
    assert len(twice) == 160 and len(set(twice) & set(train)) < 16 and len(set(twice) & set(test)) > 64


def test_a_moved_folder_has_the_same_test_split():
    names = [{(file.name, label) for file, label in cut_test(files_of(50, at))[1]} for at in ("set", "/elsewhere/b")]
    assert names[0] == names[1]


def test_only_what_is_asked_for_is_decoded(tmp_path, monkeypatch):
    paint(tmp_path, 10)
    decode, decoded = splits.decode, []
    monkeypatch.setattr(splits, "decode", lambda files, *args: decoded.append(len(files)) or decode(files, *args))
    known = dict(val_split=0.25, mean=3 * [0.5], std=3 * [0.2])  # or else measured on the training images
    load_data(config(tmp_path, **known), ("val",))
    load_data(config(tmp_path, **known, num_train_images=8))
    assert decoded == [6, 6, 2, 6]  # 24 training images, 6 of them for validation; 6 and 2 of the first 8


# ------------------------------------------------------------------------------- without permission to read


@pytest.fixture
def place():
    """A folder that everybody may look into, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in sorted(folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody():
    """Root may read everything; this is a user who may not."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has other permissions")
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(place):
    paint(place / "set", 5)
    (place / "set/red/more").mkdir()
    (place / "set/red/more").chmod(0)
    with as_nobody(), pytest.raises(UserError, match="more cannot be read .Permission denied.; change its permissions"):
        FolderIndex(place / "set")


def test_files_that_may_not_be_looked_at_are_counted(place):
    paint(place / "set", 5)
    (place / "set/red").chmod(0o744)  # its names can be read, and nothing else
    with as_nobody():
        assert find_images(place / "set/red") == ([], {"broken link": 5})


def test_unreadable_files_are_not_compared(place):
    paint(place / "set", 2)
    files = [(file, 0) for file in sorted((place / "set/red").iterdir())]
    shutil.copy(files[0][0], files[1][0])
    splits = {"train": files[:1], "test": files[1:]}
    assert "1 of 1 test images are train images too" in find_copies(splits)[0]
    files[1][0].chmod(0)
    with as_nobody():
        assert find_copies(splits) == []


def test_somebody_elses_private_folder_above_does_not_matter(place):
    (place / "data").mkdir()
    (place / "data").chmod(0)
    (place / "set").mkdir()
    with as_nobody():
        assert find_file(place / "set", "words.txt") is None
