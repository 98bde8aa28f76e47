"""What the loop tells the outside."""

from __future__ import annotations

from typing import Any, Protocol

from trainer.state import RunState


class Recorder(Protocol):
    """Lines of steps and epochs, events, and what is going on; only rank 0's does anything.

    A `phase` is clustering, training, validation or final scores.
    """

    def step(self, line: dict[str, Any]) -> None: ...
    def epoch(self, line: dict[str, Any]) -> None: ...
    def event(self, event: str, state: RunState, **details: Any) -> None: ...
    def status(self, status: str, state: RunState, **details: Any) -> None: ...
    def phase(self, text: str, total: int | None = None) -> None: ...
