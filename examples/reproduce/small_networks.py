"""Small versions of the networks of OptCNN's and FlexFlow's evaluations, and a transformer.

Each takes its inputs and the labels, and returns its loss and its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, WORDS = 6, 11
SAMPLES, STEPS = 6, 5


class Classifier(nn.Module):
    """Features of images, then a dense part."""

    def __init__(self, features: nn.Module, dense: nn.Module) -> None:
        super().__init__()
        self.features, self.dense = features, dense

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = self.dense(self.features(x).flatten(1))
        return F.cross_entropy(out, y), out


def alexnet() -> nn.Module:
    """Convolutions with strides and padding, overlapping pooling, dense layers."""
    features = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip
    return Classifier(features, nn.Sequential(nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, CLASSES)))


def vgg() -> nn.Module:
    """Convolutions with normalisation, in pairs before each pooling."""
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
    )  # fmt: skip
    return Classifier(features, nn.Linear(32, CLASSES))


class Residual(nn.Module):
    """A bottleneck of ResNet, whose sum is in place."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs, width, 1, bias=False)
        self.first = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 2 * width, 3, stride, 1, groups=2, bias=False)
        self.second = nn.BatchNorm2d(2 * width, momentum=0.3)
        self.shortcut = nn.Conv2d(inputs, 2 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.wide(F.relu(self.first(self.narrow(x)))))
        out += self.shortcut(x)
        return F.relu(out)


def resnet() -> nn.Module:
    """Two blocks, and the mean over each plane."""
    return Classifier(
        nn.Sequential(Residual(3, 4, 1), Residual(8, 4, 2), nn.AdaptiveAvgPool2d(1)),
        nn.Linear(8, CLASSES),
    )


class Inception(nn.Module):
    """Branches that are concatenated; then the mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.row, self.column = nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.Conv2d(4, 4, (3, 1))
        self.pooled = nn.Conv2d(3, 2, 1)
        self.dense = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        branches = [
            self.one(x), self.column(F.pad(self.row(x), (0, 0, 1, 1))),
            self.pooled(F.avg_pool2d(x, 3, 1, 1)),
        ]  # fmt: skip
        out = self.dense(torch.cat(branches, 1).relu().mean((2, 3)))
        return F.cross_entropy(out, y, label_smoothing=0.1), out


class RNNLM(nn.Module):
    """A language model; words of number 0 do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)
        self.dense = nn.Linear(8, WORDS)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = self.dense(self.lstm(self.embedding(x))[0])
        return F.cross_entropy(out.reshape(-1, WORDS), y.reshape(-1), ignore_index=0), out


class NMT(nn.Module):
    """Translation: the decoder starts from the encoder's state and attends to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 6), nn.Embedding(WORDS, 6)
        self.encoder, self.decoder = nn.LSTM(6, 8), nn.LSTM(6, 8)
        self.joined, self.dense = nn.Linear(16, 8), nn.Linear(8, WORDS)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        encoded, state = self.encoder(self.source(x).transpose(0, 1))
        decoded, _ = self.decoder(self.target(y).transpose(0, 1), state)
        queries, keys = decoded.transpose(0, 1), encoded.transpose(0, 1)
        scores = torch.softmax(queries @ keys.transpose(1, 2), -1)
        out = self.dense(torch.tanh(self.joined(torch.cat([scores @ keys, queries], -1))))
        return F.cross_entropy(out.transpose(1, 2), y, weight=self.weight(out)), out

    def weight(self, out: Tensor) -> Tensor:
        """Of each word."""
        return torch.linspace(0.5, 2.0, WORDS, dtype=out.dtype)


class Transformer(nn.Module):
    """An encoder layer, with attention by torch and by hand, and log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.heads = nn.MultiheadAttention(8, 4, batch_first=True)
        self.norm, self.dense = nn.LayerNorm(8), nn.Linear(8, WORDS)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layer(self.embedding(x))
        h = self.norm(h + self.heads(h, h, h)[0])
        out = self.dense(F.gelu(h.cumsum(1))).log_softmax(-1)  # a sum that has no axes
        return F.nll_loss(out.view(-1, WORDS), y.view(-1)), out


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "AlexNet": alexnet, "VGG": vgg, "ResNet": resnet, "Inception": Inception, "RNNLM": RNNLM,
    "NMT": NMT, "Transformer": Transformer,
}  # fmt: skip


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network of the table, and its inputs."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    if name in ("RNNLM", "NMT", "Transformer"):
        x, y = torch.randint(WORDS, (2, SAMPLES, STEPS))
        return model, (x, y)
    x = torch.randn(SAMPLES, 3, 10, 10, dtype=dtype)
    if name == "AlexNet":
        x = torch.randn(SAMPLES, 3, 12, 12, dtype=dtype)
    return model, (x, torch.randint(CLASSES, (SAMPLES,)))
