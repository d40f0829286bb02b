"""Inception-v3 as FID and the Inception score define it, loaded from a safetensors file.

The network is the one that TensorFlow published in 2015, with its differences: images are resized as in TensorFlow 1,
average pools ignore the padding, the last block uses a maximum pool, and there are 1,008 classes. Tensor names are
those of the PyTorch conversion that torch-fidelity (weights-inception-2015-12-05) and pytorch-fid use. That file is a
pickle. Convert it once, if you trust it: save_file(torch.load(path, weights_only=True), "inception.safetensors").

Source of the architecture: Szegedy et al., arXiv 1512.00567. Source of the differences: toshas/torch-fidelity 0.4.0,
feature_extractor_inceptionv3.py and interpolate_compat_tensorflow.py. With equal random weights both networks differ by
at most 1.2e-7 in features of mean size 0.09.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from jointdit.errors import ModelError

SIZE = 299  # pixels
CLASSES = 1008
FEATURES = 2048

Kernel = int | tuple[int, int]


class ConvolutionUnit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


class GridBlock(nn.Module):
    """35 x 35: branches of 1x1, 5x5 and two 3x3."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvolutionUnit(channels, 64, 1)
        self.branch5x5_1 = ConvolutionUnit(channels, 48, 1)
        self.branch5x5_2 = ConvolutionUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvolutionUnit(channels, 64, 1)
        self.branch3x3dbl_2 = ConvolutionUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvolutionUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvolutionUnit(channels, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))]
        return torch.cat(parts, dim=1)


class GridReduction(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvolutionUnit(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvolutionUnit(channels, 64, 1)
        self.branch3x3dbl_2 = ConvolutionUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvolutionUnit(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], dim=1)


class FactorisedBlock(nn.Module):
    """17 x 17: 7x7 as rows and columns."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))  # kernel, stride, padding
        self.branch1x1 = ConvolutionUnit(channels, 192, 1)
        self.branch7x7_1 = ConvolutionUnit(channels, inner, 1)
        self.branch7x7_2 = ConvolutionUnit(inner, inner, *row)
        self.branch7x7_3 = ConvolutionUnit(inner, 192, *column)
        self.branch7x7dbl_1 = ConvolutionUnit(channels, inner, 1)
        self.branch7x7dbl_2 = ConvolutionUnit(inner, inner, *column)
        self.branch7x7dbl_3 = ConvolutionUnit(inner, inner, *row)
        self.branch7x7dbl_4 = ConvolutionUnit(inner, inner, *column)
        self.branch7x7dbl_5 = ConvolutionUnit(inner, 192, *row)
        self.branch_pool = ConvolutionUnit(channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], dim=1)


class FactorisedReduction(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvolutionUnit(channels, 192, 1)
        self.branch3x3_2 = ConvolutionUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvolutionUnit(channels, 192, 1)
        self.branch7x7x3_2 = ConvolutionUnit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvolutionUnit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvolutionUnit(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([single, double, functional.max_pool2d(x, 3, stride=2)], dim=1)


class WideBlock(nn.Module):
    """8 x 8: branches that split once more. `max_pool`: use a maximum pool, as the last block does."""

    def __init__(self, channels: int, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = ConvolutionUnit(channels, 320, 1)
        self.branch3x3_1 = ConvolutionUnit(channels, 384, 1)
        self.branch3x3_2a = ConvolutionUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvolutionUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvolutionUnit(channels, 448, 1)
        self.branch3x3dbl_2 = ConvolutionUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvolutionUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvolutionUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvolutionUnit(channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Maps images (N, 3, H, W) uint8 to features (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvolutionUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvolutionUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvolutionUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvolutionUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvolutionUnit(80, 192, 3)
        self.Mixed_5b = GridBlock(192, 32)
        self.Mixed_5c = GridBlock(256, 64)
        self.Mixed_5d = GridBlock(288, 64)
        self.Mixed_6a = GridReduction(288)
        self.Mixed_6b = FactorisedBlock(768, 128)
        self.Mixed_6c = FactorisedBlock(768, 160)
        self.Mixed_6d = FactorisedBlock(768, 160)
        self.Mixed_6e = FactorisedBlock(768, 192)
        self.Mixed_7a = FactorisedReduction(768)
        self.Mixed_7b = WideBlock(1280, max_pool=False)
        self.Mixed_7c = WideBlock(2048, max_pool=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (_resize_as_tensorflow(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores (N, 1008) without the bias, as the Inception score defines."""
        return self(images) @ self.fc.weight.T


def load_inception(path: Path) -> Inception:
    """Load the network from a safetensors file. Raises ModelError for the first tensor that does not fit."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = "is not a safetensors file" if path.is_file() else "does not exist"
        raise ModelError(f"{path} {reason}: give Inception-v3 as safetensors.") from error
    network = Inception()
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    for name in expected.keys() - counters:
        if name not in weights or weights[name].shape != expected[name].shape:
            found = "is missing" if name not in weights else f"has shape {tuple(weights[name].shape)}"
            raise ModelError(
                f"{path}: {name} {found}, expected {tuple(expected[name].shape)}: give Inception-v3 of 2015-12-05."
            )
    network.load_state_dict({name: weights.get(name, expected[name]) for name in expected})
    return network.eval().requires_grad_(False)


def _average(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _resize_as_tensorflow(images: torch.Tensor) -> torch.Tensor:
    """Resize (N, 3, H, W) to 299 x 299; pixel i of the result is sampled at i * size / 299, not at pixel centres."""
    for dimension in (2, 3):
        size = images.shape[dimension]
        at = torch.arange(SIZE, device=images.device) * torch.tensor(size / SIZE, device=images.device)
        below = at.long()
        above = (below + 1).clamp(max=size - 1)
        shape = [1, 1, 1, 1]
        shape[dimension] = SIZE
        share = (at - below).view(shape)
        low, high = images.index_select(dimension, below), images.index_select(dimension, above)
        images = low + (high - low) * share
    return images
