"""What the Vision Transformer is compared with: two CNNs, an MLP, and torchvision's ResNets.

    model = SimpleCNN(img_size=32, in_chans=3, num_classes=10, drop_rate=0.3)
    python train.py --model simple_cnn

All take normalised images B x in_chans x img_size x img_size and return logits B x num_classes. Each has the
attributes `img_size` and `in_chans`, like a VisionTransformer. registry.MODELS lists them by the names of --model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torchvision import models


def conv(before: int, after: int) -> nn.Conv2d:
    """A 3 x 3 convolution from `before` to `after` channels that keeps the image's side."""
    return nn.Conv2d(before, after, 3, padding=1)


class SimpleCNN(nn.Module):
    """Four 3 x 3 convolutions (32, 64, 128 and 256 channels), each with batch norm and ReLU, max-pooling
    after the first three; then average pooling to 2 x 2, a linear layer of 512, dropout and the head.

    Raises ValueError if the image is too small to be halved three times.
    """

    def __init__(self, *, img_size: int = 32, in_chans: int = 3, num_classes: int = 10, drop_rate: float = 0.3):
        super().__init__()
        if img_size < 8:
            raise ValueError(f"image size {img_size}: simple_cnn halves it three times; choose 8 or more")
        self.img_size, self.in_chans = img_size, in_chans
        self.features = nn.Sequential()
        for i, (before, after) in enumerate([(in_chans, 32), (32, 64), (64, 128), (128, 256)]):
            self.features.add_module(f"conv{i}", conv(before, after))
            self.features.add_module(f"norm{i}", nn.BatchNorm2d(after))
            self.features.add_module(f"act{i}", nn.ReLU())
            if i < 3:
                self.features.add_module(f"pool{i}", nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc1 = nn.Linear(4 * 256, 512)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # B x in_chans x S x S
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.pool(self.features(images)).flatten(1)  # B x 1024
        return self.head(self.drop(self.fc1(x).relu()))  # B x C


class TinyCNN(nn.Module):
    """Two 3 x 3 convolutions (16 and 32 channels), each with ReLU and max-pooling, and a linear layer.

    Raises ValueError if the image is too small to be halved twice.
    """

    def __init__(self, *, img_size: int = 32, in_chans: int = 3, num_classes: int = 10):
        super().__init__()
        if img_size < 4:
            raise ValueError(f"image size {img_size}: tiny_cnn halves it twice; choose 4 or more")
        self.img_size, self.in_chans = img_size, in_chans
        self.features = nn.Sequential(
            conv(in_chans, 16), nn.ReLU(), nn.MaxPool2d(2), conv(16, 32), nn.ReLU(), nn.MaxPool2d(2)
        )  # the last ReLU, before the pooling, is features[4]
        self.head = nn.Linear(32 * (img_size // 4) ** 2, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # B x in_chans x S x S
        images = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.features(images).flatten(1))  # B x C


class FeedForward(nn.Module):
    """A multi-layer perceptron on the pixels: a linear layer for each of `hidden_sizes`, followed by ReLU and
    dropout, and the head."""

    def __init__(
        self,
        *,
        img_size: int = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        hidden_sizes: Sequence[int] = (512, 256),
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.img_size, self.in_chans = img_size, in_chans
        widths = [in_chans * img_size**2, *hidden_sizes]
        self.layers = nn.Sequential()
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            self.layers.add_module(f"fc{i}", nn.Linear(before, after))
            self.layers.add_module(f"act{i}", nn.ReLU())
            self.layers.add_module(f"drop{i}", nn.Dropout(drop_rate))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # B x in_chans x S x S
        return self.head(self.layers(images.flatten(1)))  # B x C


def resnet(
    make: Callable[..., nn.Module], *, img_size: int = 32, in_chans: int = 3, num_classes: int = 10
) -> nn.Module:
    """A torchvision ResNet for small images: its first convolution is 3 x 3 without stride, and no pooling follows it
    (He et al., arXiv:1512.03385, section 4.2). `make` is torchvision's constructor."""
    network = make(num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.img_size, network.in_chans = img_size, in_chans
    return network


def resnet18(**args) -> nn.Module:
    """ResNet-18 (He et al., table 1); arguments as of resnet."""
    return resnet(models.resnet18, **args)


def resnet50(**args) -> nn.Module:
    """ResNet-50 (He et al., table 1); arguments as of resnet."""
    return resnet(models.resnet50, **args)
