"""What is said when numbers are not finite any more."""

from __future__ import annotations


class NonFinite(RuntimeError):
    """Vectors, a loss or gradients are NaN or infinite; names the step, the ranks and the samples. Exit code 4."""

    exit_code = 4


def diverged(what: str, step: int) -> str:
    """Return the sentence for values of the network that are not finite."""
    return (
        f"{what} are not finite after step {step}: the weights have diverged; the newest checkpoint is from before it;"
        " lower optim.lr"
    )
