"""The driver's way to its workers on a Ray cluster. A file of its own: the process of the actor loads nothing heavy."""

from __future__ import annotations

import asyncio


class Bell:
    """Rings once, for all who wait at it; nobody has to ask again and again."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._listeners = 0

    async def wait(self) -> None:
        """Return when the bell rings."""
        self._listeners += 1
        await self._rung.wait()

    async def ring(self) -> int:
        """Ring; return how many have come to listen so far."""
        self._rung.set()
        return self._listeners
