"""The convolutional networks of both papers, with their layers' true shapes.

Batch normalisation and activations belong to the convolution before them. A multiply-add is two
floating-point operations.
"""

from __future__ import annotations

from .flexflow_soap import Network, Operation, Read

Pair = tuple[int, int]


class Layers:
    """Builds a network layer by layer; each method returns the number of what it added."""

    def __init__(self, name: str, batch: int, size: int) -> None:
        self.network = Network(name)
        self.batch = batch
        self.image = (batch, 3, size, size)

    def shape(self, source: int | None) -> tuple[int, int, int, int]:
        """Of an operation's output; None is the image."""
        return self.image if source is None else self.network.operations[source].shape

    def conv(
        self, source: int | None, channels: int, kernel: int | Pair, stride: int = 1,
        padding: int | Pair = 0, name: str = "conv",
    ) -> int:  # fmt: skip
        """A convolution."""
        (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
        n, c, h, w = self.shape(source)
        shape = (n, channels, (h + 2 * ph - kh) // stride + 1, (w + 2 * pw - kw) // stride + 1)
        weights = c * channels * kh * kw + channels
        flops = 2.0 * n * channels * shape[2] * shape[3] * c * kh * kw
        read = Read("all", ((kh, stride, ph), (kw, stride, pw)))
        return self._add(name, "conv", shape, source, read, flops, weights)

    def pool(self, source: int, kernel: int, stride: int, padding: int = 0) -> int:
        """Average or maximum pooling."""
        n, c, h, w = self.shape(source)
        size = tuple((s + 2 * padding - kernel) // stride + 1 for s in (h, w))
        shape = (n, c, size[0], size[1])
        window = (kernel, stride, padding)
        flops = float(n * c * size[0] * size[1] * kernel * kernel)
        return self._add("pool", "pool", shape, source, Read("same", (window, window)), flops, 0)

    def linear(self, source: int, channels: int, name: str = "linear") -> int:
        """A dense layer over all that a sample has."""
        n, c, h, w = self.shape(source)
        inputs = c * h * w
        flops, weights = 2.0 * n * inputs * channels, inputs * channels + channels
        return self._add(name, "linear", (n, channels, 1, 1), source, Read("all", "all"), flops,
                         weights, "nc")  # fmt: skip

    def softmax(self, source: int) -> int:
        """Softmax and loss."""
        n, c, _, _ = self.shape(source)
        return self._add("softmax", "softmax", (n, c, 1, 1), source, Read(), 5.0 * n * c, 0, "n")

    def concat(self, sources: list[int]) -> int:
        """Concatenates channels."""
        n, _, h, w = self.shape(sources[0])
        reads, channels = [], 0
        for source in sources:
            reads.append((source, Read(channels)))
            channels += self.shape(source)[1]
        return self.network.add(Operation(
            self._name("concat"), "concat", (n, channels, h, w), tuple(reads), 0.0, 0.0, "nchw"
        ))[0]  # fmt: skip

    def add(self, sources: list[int]) -> int:
        """Adds, elementwise."""
        shape = self.shape(sources[0])
        reads = tuple((source, Read("same")) for source in sources)
        elements = float(shape[0] * shape[1] * shape[2] * shape[3])
        return self.network.add(
            Operation(self._name("add"), "add", shape, reads, elements, 0.0, "nchw")
        )[0]

    def _name(self, name: str) -> str:
        return f"{name} {len(self.network.operations)}"

    def _add(
        self, name: str, kind: str, shape: tuple[int, int, int, int], source: int | None,
        read: Read, flops: float, weights: float, splits: str = "nchw",
    ) -> int:  # fmt: skip
        inputs = () if source is None else ((source, read),)
        return self.network.add(
            Operation(self._name(name), kind, shape, inputs, flops, weights, splits)
        )[0]


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def alexnet(batch: int) -> Network:
    """AlexNet in one tower (arXiv 1404.5997): 61 M parameters."""
    net = Layers("AlexNet", batch, 224)
    x = net.pool(net.conv(None, 64, 11, 4, 2), 3, 2)
    x = net.pool(net.conv(x, 192, 5, 1, 2), 3, 2)
    x = net.conv(net.conv(net.conv(x, 384, 3, 1, 1), 256, 3, 1, 1), 256, 3, 1, 1)
    x = net.pool(x, 3, 2)
    net.softmax(net.linear(net.linear(net.linear(x, 4096), 4096), 1000))
    return net.network


def vgg16(batch: int) -> Network:
    """VGG-16 (arXiv 1409.1556, configuration D): 138 M parameters."""
    net = Layers("VGG-16", batch, 224)
    x: int | None = None
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.conv(x, channels, 3, 1, 1)
        assert x is not None
        x = net.pool(x, 2, 2)
    assert x is not None
    net.softmax(net.linear(net.linear(net.linear(x, 4096), 4096), 1000))
    return net.network


def resnet101(batch: int) -> Network:
    """ResNet-101 (arXiv 1512.03385): 45 M parameters."""
    net = Layers("ResNet-101", batch, 224)
    x = net.pool(net.conv(None, 64, 7, 2, 3), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 23, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            y = net.conv(net.conv(x, width, 1), width, 3, stride, 1)
            y = net.conv(y, 4 * width, 1)
            if block == 0:
                x = net.conv(x, 4 * width, 1, stride, name="shortcut")
            x = net.add([y, x])
    net.softmax(net.linear(net.pool(x, 7, 1), 1000))
    return net.network


def inception_v3(batch: int, blocks: tuple[int, int, int] = (3, 4, 2)) -> Network:
    """Inception-v3 (arXiv 1512.00567) without its auxiliary head: 24 M parameters.

    Args:
        batch: samples.
        blocks: how many modules of each size; fewer for tests.
    """
    net = Layers("Inception-v3", batch, 299)
    x = net.conv(net.conv(net.conv(None, 32, 3, 2), 32, 3), 64, 3, 1, 1)
    x = net.conv(net.conv(net.pool(x, 3, 2), 80, 1), 192, 3)
    x = net.pool(x, 3, 2)
    for pooled in (32, 64, 64)[: blocks[0]]:
        x = net.concat([
            net.conv(x, 64, 1),
            net.conv(net.conv(x, 48, 1), 64, 5, 1, 2),
            net.conv(net.conv(net.conv(x, 64, 1), 96, 3, 1, 1), 96, 3, 1, 1),
            net.conv(net.pool(x, 3, 1, 1), pooled, 1),
        ])  # fmt: skip
    x = net.concat([
        net.conv(x, 384, 3, 2),
        net.conv(net.conv(net.conv(x, 64, 1), 96, 3, 1, 1), 96, 3, 2),
        net.pool(x, 3, 2),
    ])  # fmt: skip
    for wide in (128, 160, 160, 192)[: blocks[1]]:
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        a = net.conv(net.conv(x, wide, 1), wide, row[0], 1, row[1])
        b = net.conv(net.conv(x, wide, 1), wide, column[0], 1, column[1])
        for channels, (kernel, padding) in ((wide, row), (wide, column), (192, row)):
            b = net.conv(b, channels, kernel, 1, padding)
        x = net.concat([
            net.conv(x, 192, 1), net.conv(a, 192, column[0], 1, column[1]), b,
            net.conv(net.pool(x, 3, 1, 1), 192, 1),
        ])  # fmt: skip
    a = net.conv(net.conv(x, 192, 1), 192, (1, 7), 1, (0, 3))
    x = net.concat([
        net.conv(net.conv(x, 192, 1), 320, 3, 2),
        net.conv(net.conv(a, 192, (7, 1), 1, (3, 0)), 192, 3, 2),
        net.pool(x, 3, 2),
    ])  # fmt: skip
    for _ in range(blocks[2]):
        a = net.conv(x, 384, 1)
        b = net.conv(net.conv(x, 448, 1), 384, 3, 1, 1)
        x = net.concat([
            net.conv(x, 320, 1),
            net.conv(a, 384, (1, 3), 1, (0, 1)), net.conv(a, 384, (3, 1), 1, (1, 0)),
            net.conv(b, 384, (1, 3), 1, (0, 1)), net.conv(b, 384, (3, 1), 1, (1, 0)),
            net.conv(net.pool(x, 3, 1, 1), 192, 1),
        ])  # fmt: skip
    net.softmax(net.linear(net.pool(x, net.shape(x)[2], 1), 1000))
    return net.network
