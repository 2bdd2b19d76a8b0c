"""The numbers at which the package decides: from how much on, and up to how much.

Whoever decides reads `limits` when it decides. Tests set some of them for a while:
`with hag_plugin.testing.limits(few_messages=0): ...`. To add one, write it here, with its unit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Limits:
    """The limits.

    Attributes:
        few_messages: of a PyG layer's call, in numbers: with fewer in all its messages (edges times
            features) stock's code is mostly the faster one in training. Measured, forward and
            backward: the times meet at 1,000 (FastRGCNConv) to 25,000 (PNAConv with one sum).
        block_edges: of a call of a PyG layer whose messages are made of both ends of an edge, or of
            what it has of its own: with fewer edges stock's code is mostly the faster one.
        block_messages: of such a call, in numbers: the same for its messages, as wide as their
            widest step. Tensors of this size (64 MiB of float32) go back to the system when they
            are freed, and stock's code pays for their pages in every step; below, it does not.
            Measured with new edges in each call, forward and backward: the times meet at 2 (linear
            layers on nodes) to 16 million.
        block_matrix: numbers of a matrix that NNConv makes of an edge: with fewer, blocks are not
            sure to be as fast as stock's code in training.
        block_bytes: of the messages that are computed at a time: as many as the second cache holds.
        searched_edges: edges of a graph that comes back: with more, its HAG is not built during
            training, but only where `build_hag` or `ToHAG` is called.
        pyg_graphs: how many graphs one accelerated model of PyG's remembers; as many as a model has
            edge types. Read when a model is accelerated.
        dgl_graphs: the same of DGL's.
        dgl_edges: of a graph that DGL meets first: with fewer its own kernels are as fast as ours,
            made on the spot. With more they are, too, but for two kinds:
        dgl_row_bytes: of the rows of which DGL takes a maximum or minimum without gradients over a
            graph that is met first. Measured: the times meet at 512 bytes; from 1,024 on our
            kernel is 1.5 to 2.3 times faster.
        dgl_gradient_bytes: of the gradient of a sum or mean over such a graph, which DGL writes
            twice, to pages that are new each time. Measured: from 32 MiB on 1.6 to 2.5 times.
        loop_calls: of one layer on one graph, outside of the model's forward, that may be turns of
            a loop; with more the graph came back (see `occasions`).
        constant_bytes: what all layers keep together of aggregates of constant features. Above it
            they compute as if nothing was constant.
        tree_gain: how many times faster an LSTM over the prefix tree must be, as the counts say, to
            run there.
        passing_gain: how many times faster the fused kernels must be predicted to be on a graph
            that a model meets for the first time, the making of its CSR included, to run
            there; 0: always, also for attention over few messages in compiled code. Measured:
            with two threads for stock, batches predicted at 1.15 to 1.54 ran at 0.75 to 1.07 times
            its speed, and at 1.69 at 1.08 to 1.28.
        strangers: how many graphs in a row a layer must have met first, and left to stock,
            to leave those that follow to stock as they come, but for one of so many: it is looked
            at, as those before were. Looking at a graph takes some 20 us.
        op_sources: rows that an op reads, on a GPU. One that reads more is split into parts, so
            that no instance runs much longer than the rest.
        program_levels: levels of a program, on a GPU. A deeper one gets shortcuts, at the price of
            more rows read: every level is a launch.
        window_ops: ops of a window, on a GPU. Ops of a level are sorted by length inside windows:
            instances that share a loop get rows of like length (SELL-C-sigma, arXiv 1307.6209), and
            neighbours in the graph stay near.
        compared_bytes: of a tensor of the data that a plan shares out: of larger ones only rows
            here and there are compared between ranks.
        mapped_bytes: of the features of a part of a store: more stay in their file, on a CPU.
        walked_bytes: of the rows of such features that are read at a time.
        measured_edges: edges of a block of a plan. Larger ones are measured at this size, and
            scaled.
        calibration_step: measuring the cost constants times every n-th of its kinds of programs.
        calibration_seconds: what measuring them may take where nobody asked for it.
        calibration_wait: seconds that a process waits for another one that measures them.
        sampled_reads: rows of x that the samples read by which the candidates for a matrix are
            compared: those of each, as the plain graph reads them.
        sampled_bytes: of the features that samples are timed on, at most.
        timed_seconds: that choosing among the candidates for a matrix may take where a twentieth of
            the time of the search is less, but not more than
        timed_share: of the time of the search.
        read_characters: characters of a file with edges that are read at a time.
        kernels_anywhere: whether the Triton kernels take tensors of every device, as their
            interpreter does.
        unseen_dispatch: whether operators run at once, whatever mode of torch's dispatch looks on.
    """

    few_messages: int = 4096
    block_edges: int = 4096
    block_messages: int = 1 << 24
    block_matrix: int = 1024
    block_bytes: int = 1 << 20
    searched_edges: int = 20_000_000
    pyg_graphs: int = 64
    dgl_graphs: int = 8
    dgl_edges: int = 16384
    dgl_row_bytes: int = 1024
    dgl_gradient_bytes: int = 32 << 20
    loop_calls: int = 16
    constant_bytes: int = 1 << 30
    tree_gain: float = 1.1
    passing_gain: float = 1.6
    strangers: int = 16
    op_sources: int = 128
    program_levels: int = 16
    window_ops: int = 1024
    compared_bytes: int = 1 << 26
    mapped_bytes: int = 4 << 30
    walked_bytes: int = 256 << 20
    measured_edges: int = 1 << 20
    calibration_step: int = 1
    calibration_seconds: float = 1.0
    calibration_wait: float = 20.0
    sampled_reads: int = 1 << 18
    sampled_bytes: int = 256 << 20
    timed_seconds: float = 20e-3
    timed_share: float = 0.25
    read_characters: int = 1 << 20
    kernels_anywhere: bool = False
    unseen_dispatch: bool = False


limits = Limits()
