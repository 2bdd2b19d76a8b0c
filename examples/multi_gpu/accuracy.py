"""How far predictions are from measurements, where the noise allows to say so."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.05  # above it, no accuracy is stated
PLANNED = "auto"


def noise_floor(seconds: Mapping[str, Sequence[float]]) -> float:
    """The largest relative difference between medians of odd and even rounds.

    Example:
        >>> noise_floor({"a": [1.0, 1.0, 1.0, 1.0], "b": [2.0, 2.5, 2.0, 2.5]})
        0.25
    """
    halves = [(statistics.median(s[::2]), statistics.median(s[1::2])) for s in seconds.values()]
    return max(abs(a - b) / min(a, b) for a, b in halves)


@dataclass(frozen=True)
class Accuracy:
    """Of predictions of several plans.

    Attributes:
        bias: mean of predicted / measured - 1; below 0 means predicted too fast.
        mean_error: mean of its absolute values.
        largest_error: the largest of them.
        kendall_tau: of the order of plans, over pairs that differ by more than twice the noise;
            None where there is no such pair.
        pairs: how many pairs those are.
    """

    bias: float
    mean_error: float
    largest_error: float
    kendall_tau: float | None
    pairs: int

    @classmethod
    def of(
        cls, predicted: Mapping[str, float], measured: Mapping[str, float], noise: float
    ) -> Accuracy:
        """From seconds by plan.

        Example:
            >>> measured = {"a": 1.0, "b": 2.0, "c": 2.01}
            >>> found = Accuracy.of({"a": 0.5, "b": 2.0, "c": 1.0}, measured, noise=0.01)
            >>> found.kendall_tau, found.pairs, round(found.bias, 2)
            (1.0, 2, -0.33)
        """
        errors = [predicted[name] / measured[name] - 1 for name in measured]
        agree = []
        for a, b in itertools.combinations(measured, 2):
            gap = measured[a] - measured[b]
            if abs(gap) > 2 * noise * min(measured[a], measured[b]):
                order = (predicted[a] - predicted[b]) * gap
                agree.append((order > 0) - (order < 0))
        return cls(
            statistics.mean(errors),
            statistics.mean(abs(e) for e in errors),
            max(abs(e) for e in errors),
            sum(agree) / len(agree) if agree else None,
            len(agree),
        )

    def __str__(self) -> str:
        tau = "" if self.kendall_tau is None else f" {self.kendall_tau:.2f}"
        return (
            f"predictions: bias {self.bias:+.0%}, mean error {self.mean_error:.0%}, largest "
            f"{self.largest_error:.0%}; Kendall's tau{tau} over {self.pairs} pairs that differ "
            "by more than twice the noise"
        )


def table(result: dict[str, Any]) -> str:
    """What a sweep found, for people."""
    measured, predicted = result["measured_seconds"], result["predicted_seconds"]
    lines = [
        f"{result['model']} on {result['graph']}",
        f"{result['ranks']} ranks ({result['device']}), {result['rounds']} rounds\n",
        f"{'strategy of all layers':<32}{'measured, ms':>13}{'predicted, ms':>14}{'ratio':>7}"
        f"{'sent, MB':>10}",
    ]
    for name in sorted(measured, key=measured.__getitem__):
        ratio = predicted[name] / measured[name]
        label = "as planned" if name == PLANNED else name
        lines.append(
            f"{label:<32}{measured[name] * 1e3:>13.2f}{predicted[name] * 1e3:>14.2f}"
            f"{ratio:>7.2f}{result['sent_bytes'][name] / 1e6:>10.2f}"
        )
    lines += [f"{name:<32}refused: {why}" for name, why in result["refused"].items()]
    lines.append(f"\nnoise: the same plans measured twice differ by up to {result['noise']:.1%}")
    if result["accuracy"] is None:
        lines.append(
            f"That is more than {NOISE:.0%}: no accuracy is stated. Run again on an idle machine, "
            "with a core for each rank, with more rounds or a larger graph."
        )
    else:
        lines.append(str(Accuracy(**result["accuracy"])))
        lines.append(
            f"regret: the plan is {result['regret']:.1%} slower than the best that was measured"
        )
    return "\n".join(lines)
