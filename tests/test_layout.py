"""Where the splits and classes of a folder of images lie, by the names of its folders."""

import os

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vitlab.catalog import describe
from vitlab.checkpoint import Checkpoint
from vitlab.cli import UserError
from vitlab.config import TrainConfig
from vitlab.datasets.folders import FolderIndex
from vitlab.datasets.splits import load_data
from vitlab.layout import find_layout
from vitlab.models.registry import build_model


def touch(root, *paths):
    """Empty files, with their folders."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def tree(root, *folders, classes=("cat", "dog")):
    return touch(root, *(f"{folder}/{name}/1.png" for folder in folders for name in classes))


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("train", None, "test"),
        ("Train", None, "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
        ("training_set", None, "test_set"),
        ("Train Data", "Val-Images", "testset"),
    ],
)
def test_splits_go_by_the_spellings_that_people_use(tmp_path, train, val, test):
    layout = find_layout(tree(tmp_path, *filter(None, (train, val, test))))
    assert layout.classes == ("cat", "dog") and layout.notes == ()
    assert (layout.train, layout.test) == (tmp_path / train, tmp_path / test)
    assert layout.val == (val and tmp_path / val)


def test_val_alone_is_the_test_split(tmp_path):
    layout = find_layout(tree(tmp_path, "train", "Valid"))
    assert (layout.val, layout.test) == (None, tmp_path / "Valid")


def test_a_class_may_be_called_like_a_split(tmp_path):
    for number, classes in enumerate((("bus", "train"), ("invalid", "valid"), ("test_tube", "train_station"))):
        assert find_layout(tree(tmp_path / str(number), ".", classes=classes)).classes == classes
    assert find_layout(tree(tmp_path / "in", "train", "test", classes=("test", "train"))).classes == ("test", "train")


@pytest.mark.parametrize("unlabelled", ["test/1.png", "test/images/1.png"])
def test_a_split_without_labels_is_not_used_and_that_is_said(tmp_path, unlabelled):
    touch(tree(tmp_path, "train", "extra"), unlabelled)
    layout = find_layout(tmp_path)
    assert (layout.train, layout.val, layout.test) == (tmp_path / "train", None, None)
    assert [note.split(":")[0] for note in layout.notes] == [
        f"{tmp_path / 'extra'} is not used",
        f"{tmp_path / 'test'} is not used",
        f"the test split is a fifth of {tmp_path / 'train'}, chosen by file names",
    ]
    assert find_layout(tree(tmp_path, "val")).test == tmp_path / "val"


def test_tiny_imagenet_is_read_as_it_comes(tmp_path):
    """train/CLASS/images/*, val/images/* with val_annotations.txt, test/images/* without labels."""
    for name, grey in (("n01", 50), ("n02", 200)):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        (tmp_path / "train" / name / f"{name}_boxes.txt").touch()
        for i in range(10):
            Image.new("RGB", (8, 8), (grey, grey, i)).save(tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG")
    for split in ("val", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / split / "images" / f"{split}_{i}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t8\t8\nval_1.JPEG\tn01\t0\t0\t8\t8\nval_2.JPEG\tn01\t0\t0\t8\t8\n"
    )
    index = FolderIndex(tmp_path)
    assert [(file.name, label) for file, label in index.splits["test"]] == [
        ("val_1.JPEG", 0),
        ("val_2.JPEG", 0),
        ("val_0.JPEG", 1),
    ]
    assert f"{tmp_path / 'val'}: left out 1 not in val_annotations.txt" in index.notes
    sets = load_data(TrainConfig.create(dataset="folder", data_path=str(tmp_path), image_size=8))
    assert (len(sets.train.labels), len(sets.val.labels), len(sets.test.labels)) == (18, 2, 3)


IDS = ("n01440764", "n02012849", "n03126707")
WORDS = "n01440764{0}tench, Tinca tinca\nn02012849{0}crane\nn03126707{0}crane\nn09999999{0}unused\n"
TRUTH = (2, 0, 1, 2)  # the classes of four validation images


def imagenet(root, flat=True):
    """A tiny copy of ImageNet as it is unpacked: train/ID/*.JPEG, and val/ flat or in such folders."""
    touch(root, *(f"train/{name}/{name}_{i}.JPEG" for name in IDS for i in range(2)))
    folders = ["val" if flat else f"val/{IDS[label]}" for label in TRUTH]
    return touch(root, *(f"{folder}/ILSVRC2012_val_{i:08d}.JPEG" for i, folder in enumerate(folders, 1)))


def write_kaggle(folder):
    rows = [f"ILSVRC2012_val_{i:08d},{IDS[label]} 1 2 30 40 {IDS[0]} 5 6 7 8 " for i, label in enumerate(TRUTH, 1)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")
    (folder / "LOC_synset_mapping.txt").write_text(WORDS.format(" "))


def write_devkit(folder):
    """The devkit's numbers follow another order than the names of the folders."""
    folder.mkdir(parents=True)
    synsets = np.zeros((4, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, number, name in zip(synsets[:, 0], (1, 2, 3, 1001), (IDS[1], IDS[2], IDS[0], "n00001740")):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = number, name, "..."
    savemat(folder / "meta.mat", {"synsets": synsets})
    numbers = [{1: 1, 2: 2, 0: 3}[label] for label in TRUTH]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))


@pytest.mark.parametrize("labels", ["folders", "kaggle", "kaggle above", "devkit"])
def test_imagenet_is_read_as_it_is_unpacked(tmp_path, labels):
    root = imagenet(tmp_path / "ILSVRC/Data/CLS-LOC", flat=labels != "folders")
    touch(root, "test/ILSVRC2012_test_00000001.JPEG")  # Kaggle's, without labels
    if "kaggle" in labels:
        write_kaggle(tmp_path if "above" in labels else root)
    elif labels == "devkit":
        write_devkit(root / "ILSVRC2012_devkit_t12" / "data")
    index = FolderIndex(root)
    shown = ("tench", "crane (n02012849)", "crane (n03126707)")
    assert index.classes == (shown if "kaggle" in labels else IDS) == describe("folder", root).classes
    assert [len(index.splits[split] or ()) for split in ("train", "val", "test")] == [6, 0, 4]
    truth = {f"ILSVRC2012_val_{i:08d}.JPEG": label for i, label in enumerate(TRUTH, 1)}
    assert {file.name: label for file, label in index.splits["test"]} == truth
    assert index.splits["train"][2][0] == root / f"train/{IDS[1]}/{IDS[1]}_0.JPEG"


def test_kaggles_labels_from_a_spreadsheet(tmp_path):
    write_kaggle(imagenet(tmp_path))
    file = tmp_path / "LOC_val_solution.csv"
    lines = file.read_text()
    file.write_text(lines, encoding="utf-8-sig")
    assert len(FolderIndex(tmp_path).splits["test"]) == 4
    file.write_text(lines.replace(",", ";"))
    with pytest.raises(UserError, match="lacks the columns ImageId and PredictionString; put the original"):
        FolderIndex(tmp_path)


def test_imagenet_with_half_of_its_devkit_is_refused(tmp_path):
    write_devkit(imagenet(tmp_path) / "data")
    (tmp_path / "data/meta.mat").write_bytes((tmp_path / "data/meta.mat").read_bytes()[:200])
    with pytest.raises(UserError, match="meta.mat cannot be read .*; unpack ILSVRC2012_devkit_t12 again"):
        FolderIndex(tmp_path)
    (tmp_path / "data/meta.mat").unlink()
    with pytest.raises(UserError, match="needs meta.mat beside it"):
        FolderIndex(tmp_path)
    (tmp_path / "data/ILSVRC2012_validation_ground_truth.txt").unlink()
    assert any("val is not used: it has no class folders" in note for note in FolderIndex(tmp_path).notes)


def test_a_model_with_folders_for_class_names_is_still_tested(tmp_path):
    """words.txt appears, or is read by a later version: the order is the same, and so are the classes."""
    imagenet(tmp_path, flat=False)
    config = TrainConfig.create(dataset="folder", data_path=str(tmp_path), img_size=8, mean=3 * [0.5], std=3 * [0.5])
    model = build_model(config)
    about = dict(path=tmp_path, model=model, config=config, mean=config.mean, std=config.std, history=[])
    (tmp_path / "words.txt").write_text(WORDS.format("\t"))
    names = describe("folder", tmp_path).classes
    assert names[0] == "tench"
    for classes in (IDS, names):
        Checkpoint(classes=classes, **about).data_config()
    with pytest.raises(UserError, match="must be the same"):
        Checkpoint(classes=("tench", "crane", "heron"), **about).data_config()


@pytest.mark.parametrize(
    "folders, words",
    [
        (("sub/train", "sub/test"), ["did you mean --data_path {root}/sub?"]),
        (("sub/Training", "sub/x", "other"), ["did you mean --data_path {root}/sub?"]),
        (("a/b/.",), ["did you mean --data_path {root}/a/b?"]),
        (("a/b/train", "a/b/test"), ["did you mean --data_path {root}/a/b?"]),
        (("train/train", "test/test"), ["move what is in {root}/train/train to {root}/train"]),
        (("seg_train", "seg_test"), ["seg_train/ and seg_test/ look like splits", "call them train/ and test/"]),
        (("val", "test"), ["test/ and val/", "no train/"]),
        ((".", "test"), ["test/", "no train/", "rename"]),
        (("train", "val", "Valid"), ["Valid/ and val/", "keep one"]),
    ],
)
def test_a_tree_that_begins_elsewhere_is_refused_with_the_remedy(tmp_path, folders, words):
    tree(tmp_path, *folders)
    with pytest.raises(UserError) as caught:
        find_layout(tmp_path)
    assert all(word.format(root=tmp_path) in str(caught.value) for word in [f"--data_path {tmp_path}", *words])


def test_a_tree_that_begins_above_is_refused_with_the_remedy(tmp_path):
    tree(tmp_path, ".")
    with pytest.raises(UserError, match=f"no folders in {tmp_path}/cat; .*give the folder above, {tmp_path}$"):
        find_layout(tmp_path / "cat")


def test_flat_splits_and_single_classes_are_refused(tmp_path):
    touch(tmp_path / "flat", "train/cat.0.jpg", "test/1.jpg")
    tree(tmp_path / "one", ".", classes=("cat",))
    tree(tmp_path / "half", "train", "test", classes=("cat",))
    for name, words in (("flat", "no train/ with a folder for each class"), ("one", "'cat'"), ("half", "'cat'")):
        with pytest.raises(UserError, match=words):
            find_layout(tmp_path / name)


@pytest.mark.parametrize("name", [b"dog\xff", b"dog\ncat"])
def test_a_class_whose_name_cannot_be_printed_is_refused(tmp_path, name):
    tree(tmp_path, ".", classes=("cat", os.fsdecode(name)))
    with pytest.raises(UserError, match=r"^.*'dog\\.* cannot be printed; rename the folder$"):
        find_layout(tmp_path)


def test_a_link_to_itself_ends(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="--data_path"):
        find_layout(tmp_path)
