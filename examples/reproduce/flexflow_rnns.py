"""The recurrent networks of FlexFlow's evaluation: RNNTC, RNNLM and NMT.

Layers are as published (arXiv 1807.05358, table 3), unrolled for 40 steps. Hidden sizes and
vocabularies are assumptions (the paper says that they match prior work); NMT's give the 65.8 GB
that data parallelism sends with 64 GPUs (figure 8b) within 5 %. A layer's time steps run in blocks
of 10, each an operation with a configuration of its own, as in the released code (nmt/rnn.h).
"""

from __future__ import annotations

from .flexflow_soap import Network, Operation, Read

STEPS, BLOCK = 40, 10
STATE = Read("all", ((1, 1, 0), (1, 1, 0)), last=True)
SHARED = Read(weights=True)


class Recurrent:
    """Builds a network over sequences, layer by layer: an operation for each block of time steps.

    Rows of an output are samples times steps; operations of a layer share its weights, which
    travel from block to block, as gradients do the other way.
    """

    def __init__(self, name: str, batch: int, hidden: int, vocabulary: int) -> None:
        self.network = Network(name)
        self.batch, self.hidden, self.vocabulary = batch, hidden, vocabulary

    def _add(self, name: str, kind: str, channels: int, inputs: list[list[tuple[int, Read]]],
             flops: float, weights: float, exchanges: int = 0) -> list[int]:  # fmt: skip
        """A layer, from what each block reads; `flops` are of a block."""
        first, number = len(self.network.operations), len(self.network.layers)
        blocks = []
        for block, reads in enumerate(inputs):
            shared = [(first + block - 1, SHARED)] if block else []
            blocks.append(Operation(
                f"{name} {number} {block}", kind, (self.batch, channels, BLOCK, 1),
                (*reads, *shared), flops, weights, "nc", exchanges,
            ))  # fmt: skip
        return self.network.add(*blocks)

    def embedding(self, name: str) -> list[int]:
        """A row of a table for each word."""
        weights = self.vocabulary * self.hidden
        return self._add(name, "embedding", self.hidden, [[] for _ in range(STEPS // BLOCK)], 0.0,
                         weights)  # fmt: skip

    def lstm(self, source: list[int], state: list[int] | None = None) -> list[int]:
        """An LSTM layer; `state` is the layer whose last state it starts from."""
        size, first = self.hidden, len(self.network.operations)
        before = [None if state is None else state[-1], *range(first, first + len(source) - 1)]
        inputs = [
            [(x, Read())] + ([] if last is None else [(last, STATE)])
            for x, last in zip(source, before, strict=True)
        ]
        return self._add("lstm", "lstm", size, inputs, self._dense(8 * size * size),
                         8 * size * size + 4 * size, BLOCK)  # fmt: skip

    def attention(self, decoder: list[int], encoder: list[int]) -> list[int]:
        """Scores of each step against all of the encoder's, and a dense layer over both."""
        size, whole = self.hidden, Read("all", "all")
        weights = 2 * size * size
        inputs = [[(x, Read()), *((y, whole) for y in encoder)] for x in decoder]
        return self._add("attention", "attention", size, inputs,
                         self._dense(2 * STEPS * size + weights), weights)  # fmt: skip

    def softmax(self, source: list[int], classes: int) -> list[int]:
        """A dense layer, softmax and loss at each step."""
        weights = self.hidden * classes
        return self._add("softmax", "linear", classes, [[(x, Read())] for x in source],
                         self._dense(weights), weights)  # fmt: skip

    def _dense(self, products: int) -> float:
        """Floating-point operations of a block with so many products a word."""
        return 2.0 * self.batch * BLOCK * products


def rnntc(batch: int) -> Network:
    """Text classification: 4 LSTM layers of 1,024 and a softmax; 20,000 words."""
    net = Recurrent("RNNTC", batch, 1024, 20_000)
    x = net.embedding("embedding")
    for _ in range(4):
        x = net.lstm(x)
    net.softmax(x, 2)
    return net.network


def rnnlm(batch: int) -> Network:
    """A language model: 2 LSTM layers of 2,048 and a softmax over Penn Treebank's 10,000 words."""
    net = Recurrent("RNNLM", batch, 2048, 10_000)
    net.softmax(net.lstm(net.lstm(net.embedding("embedding"))), 10_000)
    return net.network


def nmt(batch: int) -> Network:
    """Translation: 2 + 2 LSTM layers of 1,024, attention and a softmax over 32,000 words."""
    net = Recurrent("NMT", batch, 1024, 32_000)
    first = net.lstm(net.embedding("source"))
    second = net.lstm(first)
    x = net.lstm(net.lstm(net.embedding("target"), first), second)
    net.softmax(net.attention(x, second), 32_000)
    return net.network
