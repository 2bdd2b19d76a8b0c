"""The recurrent networks of FlexFlow's evaluation: RNNTC, RNNLM and NMT.

Layers are as published (arXiv 1807.05358, table 3), unrolled for 40 steps. Hidden sizes and
vocabularies are assumptions (the paper says that they match prior work); NMT's give the 65.8 GB
that data parallelism sends with 64 GPUs (figure 8b) within 5 %. A layer's time steps run in blocks
of 10, as in the released code (nmt/nmt.cc).
"""

from __future__ import annotations

from .flexflow_soap import Network, Operation, Read

STEPS, BLOCK = 40, 10


class Recurrent:
    """Builds a network over sequences. Rows of the output are samples times steps."""

    def __init__(self, name: str, batch: int, hidden: int, vocabulary: int) -> None:
        self.network = Network(name)
        self.batch, self.hidden, self.vocabulary = batch, hidden, vocabulary

    def _add(self, name: str, kind: str, channels: int, inputs: list[tuple[int, Read]],
             flops: float, weights: float, **more: int) -> int:  # fmt: skip
        return self.network.add(Operation(
            f"{name} {len(self.network.operations)}", kind, (self.batch, channels, STEPS, 1),
            tuple(inputs), flops, weights, "nc", STEPS // BLOCK, **more,
        ))  # fmt: skip

    def embedding(self, name: str) -> int:
        """A row of a table for each word."""
        return self._add(name, "embedding", self.hidden, [], 0.0, self.vocabulary * self.hidden)

    def lstm(self, source: int, state: int | None = None) -> int:
        """An LSTM layer; `state` is the layer whose last state it starts from."""
        size = self.hidden
        flops = 2.0 * self.batch * STEPS * 8 * size * size
        inputs = [(source, Read())]
        if state is not None:
            inputs.append((state, Read("all", ((1, 1, 0), (1, 1, 0)), "last")))
        return self._add("lstm", "lstm", size, inputs, flops, 8 * size * size + 4 * size,
                         exchanges=BLOCK)  # fmt: skip

    def attention(self, decoder: int, encoder: int) -> int:
        """Scores of each step against all of the encoder's, and a dense layer over both."""
        size = self.hidden
        flops = 2.0 * self.batch * STEPS * (2 * STEPS * size + 2 * size * size)
        whole = Read("all", "all", "all")
        return self._add("attention", "attention", size, [(decoder, Read()), (encoder, whole)],
                         flops, 2 * size * size)  # fmt: skip

    def softmax(self, source: int, classes: int) -> int:
        """A dense layer, softmax and loss at each step."""
        flops = 2.0 * self.batch * STEPS * self.hidden * classes
        return self._add("softmax", "linear", classes, [(source, Read())], flops,
                         self.hidden * classes)  # fmt: skip


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
