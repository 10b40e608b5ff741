"""Augmentation: every image of the batch has a draw of its own, and pixels are only moved."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from vitlab.datasets import augment


def images(n=64, size=12):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", augment.POLICIES)
def test_shape_and_seed(name):
    policy, batch = augment.POLICIES[name], images()
    first = policy(batch, draw(1))
    assert first.shape == batch.shape and first.dtype == batch.dtype
    assert torch.equal(first, policy(batch, draw(1)))
    if name != "none":
        assert not torch.equal(first, policy(batch, draw(2)))


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_crops_of_the_padded_image(flip):
    batch = images(400, 8)
    out = augment.crop_and_flip(batch, draw(), padding=2, flip=flip)
    padded = TF.pad(batch, [2])
    places = {"plain": set(), "mirrored": set()}
    for i in range(400):
        for top in range(5):
            for left in range(5):
                crop = padded[i, :, top : top + 8, left : left + 8]
                for name, candidate in (("plain", crop), ("mirrored", crop.flip(-1))):
                    if torch.equal(out[i], candidate):
                        places[name].add((i, top, left))
    found = len({place[0] for both in places.values() for place in both})
    assert found == 400  # each is one of them
    assert {place[1:] for place in places["plain"]} == {(top, left) for top in range(5) for left in range(5)}
    assert (120 < len(places["mirrored"]) < 280) if flip else not places["mirrored"]


SIZE = 21  # odd, and with a texture that turning changes
TEXTURE = TF.gaussian_blur(images(6, SIZE), 3)
BILINEAR = TF.InterpolationMode.BILINEAR


def one_op(name, magnitude):
    """apply_ops with the same operation and magnitude for every image."""
    names = [*augment.GEOMETRIC, *(function.__name__ for function in augment.COLOUR)]
    n = len(TEXTURE)
    return augment.apply_ops(TEXTURE, torch.full((n,), names.index(name)), torch.full((n,), float(magnitude)))


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operations_are_torchvisions(name, sign):
    magnitude = sign * {"shear": 0.25, "translate": 4.7, "rotate": 25}[name.split("_")[0]]
    degrees = float(torch.tensor(magnitude).atan().rad2deg())
    rest = dict(interpolation=BILINEAR)
    theirs = {
        "shear_x": lambda: TF.affine(TEXTURE, 0.0, [0, 0], 1.0, [degrees, 0.0], center=[0, 0], **rest),
        "shear_y": lambda: TF.affine(TEXTURE, 0.0, [0, 0], 1.0, [0.0, degrees], center=[0, 0], **rest),
        "translate_x": lambda: TF.affine(TEXTURE, 0.0, [int(magnitude), 0], 1.0, [0.0, 0.0], **rest),
        "translate_y": lambda: TF.affine(TEXTURE, 0.0, [0, int(magnitude)], 1.0, [0.0, 0.0], **rest),
        "rotate": lambda: TF.rotate(TEXTURE, magnitude, **rest),
    }[name]()
    ours = one_op(name, magnitude)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - TEXTURE).abs().mean() > 0.05


@pytest.mark.parametrize(
    "name, magnitude, theirs",
    [
        ("identity", 0, lambda x: x),
        ("brightness", 1.7, lambda x: TF.adjust_brightness(x, 1.7)),
        ("brightness", 0.3, lambda x: TF.adjust_brightness(x, 0.3)),
        ("color", 1.8, lambda x: TF.adjust_saturation(x, 1.8)),
        ("contrast", 0.2, lambda x: TF.adjust_contrast(x, 0.2)),
        ("sharpness", 1.9, lambda x: TF.adjust_sharpness(x, 1.9)),
        ("solarize", 0.4, lambda x: TF.solarize(x, 0.4)),
        ("autocontrast", 0, TF.autocontrast),
    ],
)
def test_colour_operations_are_torchvisions(name, magnitude, theirs):
    torch.testing.assert_close(one_op(name, magnitude), theirs(TEXTURE), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name, magnitude, theirs", [("posterize", 3, lambda x: TF.posterize(x, 3)), ("equalize", 0, TF.equalize)]
)
def test_operations_on_bytes_are_torchvisions(name, magnitude, theirs):
    ours = (one_op(name, magnitude) * 255).round().byte()
    flat = TEXTURE.clone()
    expected = theirs((flat * 255).round().byte())
    assert torch.equal(ours, expected)


def test_each_image_gets_its_own_operation():
    batch = TEXTURE[:1].expand(N := 14 * 30, -1, -1, -1)
    for policy in (augment.trivialaugment, lambda x, g: augment.randaugment(x, g, num_ops=1)):
        out = policy(batch, draw())
        assert len({bytes(image.numpy()) for image in out}) > 14
        unchanged = (out == batch).flatten(1).all(1).sum().item()
        assert N / 14 * 0.4 < unchanged < N / 14 * 4  # identity, and what does nothing to this image
        assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("wide", [False, True])
def test_strengths_are_torchvisions(wide):
    """The magnitude table against the augmentation spaces that torchvision documents."""
    from torchvision.transforms import v2

    side, n = 32, augment.N_OPS
    theirs = (v2.TrivialAugmentWide if wide else v2.RandAugment)()._AUGMENTATION_SPACE
    level = 9 / 30
    ranges = dict(shear=0.99, shift=32, degrees=135, factor=0.99, bits=6) if wide else dict(
        shear=0.3, shift=150 / 331 * side, degrees=30, factor=0.9, bits=4)  # fmt: skip
    ours = augment.magnitudes(torch.arange(n), torch.full((n,), level), draw(), **ranges)
    names = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
             "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"]  # fmt: skip
    assert set(theirs) == set(names)
    for value, name in zip(ours.tolist(), names):
        table = theirs[name][0](31, side, side)
        if table is None:
            continue
        expected = float(table[9])
        if name in ("Brightness", "Color", "Contrast", "Sharpness"):
            value = value - 1
        if name == "Posterize":
            assert value == expected
        else:
            assert abs(value) == pytest.approx(abs(expected), abs=1e-5), name


def test_erasing_takes_its_share():
    batch = torch.ones(2000, 3, 32, 32)
    out = augment.random_erasing(batch, draw(), probability=0.25, value=[0.1, 0.2, 0.3])
    erased = out[:, 0] == 0.1
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.04
    share = erased[hit].flatten(1).float().mean(1)
    assert 0.01 < share.min() and share.max() < 0.4 and abs(share.mean() - 0.175) < 0.02
    for image in out[hit][:50]:
        rows, columns = (image[0] == 0.1).any(1).nonzero(), (image[0] == 0.1).any(0).nonzero()
        box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert torch.equal(box, torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand_as(box))


def test_random_affine_of_nothing_is_the_image_and_of_a_shift_moves_it():
    torch.testing.assert_close(augment.random_affine(TEXTURE, draw(), degrees=0, shift=0, scale=0), TEXTURE)
    one = torch.zeros(1, 1, 9, 9)
    one[0, 0, 4, 4] = 1
    moved = augment.warp(one, torch.tensor([[[1.0, 0, -2], [0, 1, 1]]]))  # shows what lies 2 to the left, 1 below
    assert moved[0, 0, 3, 6] == pytest.approx(1, abs=1e-5)
