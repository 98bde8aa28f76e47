"""Replicas of a searcher as a Ray Serve deployment on a Ray of their own, and how the service asks them.

Serve's own HTTP proxy is off: it would read bodies of any size before anybody could refuse them, take fixed ports, and
let health wait in the queue of searches. The service calls the deployment by its handle instead; requests beyond what
replicas work on and the queue holds are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException

from cluster.telemetry import num_visible_gpus
from data_shards.errors import UserError
from launch.retrieval.answer import Answer, Query, Refused
from launch.retrieval.serving import Pool
from launch.retrieval.web import Busy

BATCH = 8
_BATCH_WAIT_S = 0.005
_APPLICATION, _DEPLOYMENT = "subspace", "Replica"


class Replica:
    """One process with the network and the index; searches that wait at the same time share a forward pass."""

    def __init__(self, run: str, folder: str, num_threads: int) -> None:
        from launch.retrieval.searcher import Searcher  # torch, in the environment that the run's configuration pins

        self._searcher = Searcher(Path(run), Path(folder), num_threads)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def search(self, queries: list[Query]) -> list[Answer | tuple[str, int]]:
        """Answer queries; a refusal is (sentence, status), since Serve would raise an exception for the whole batch."""
        answers = await asyncio.to_thread(self._searcher.answers, queries)
        return [(str(found), found.status) if isinstance(found, Refused) else found for found in answers]

    def __del__(self) -> None:
        if hasattr(self, "_searcher"):
            self._searcher.__exit__(None, None, None)


class Asking:
    """The replicas as `retrieval.web.Service` wants them."""

    def __init__(self, handle: Any, pool: Pool) -> None:
        self._handle, self._pool = handle, pool

    async def ask(self, query: Query) -> Answer:
        """Return the answer of a replica. Raises Refused, and Busy when the queue is full or nobody answers in time."""
        response = self._handle.search.remote(query)
        try:
            found = await asyncio.wait_for(_awaited(response), self._pool.timeout_s)
        except BackPressureError:
            raise Busy("all replicas are busy; try again in a second") from None
        except asyncio.TimeoutError:
            response.cancel()
            raise Busy(f"no replica has answered within {self._pool.timeout_s:g} s") from None
        except (ray.exceptions.RayActorError, RayServeException):
            raise Busy("a replica was lost; another one is being started") from None
        if isinstance(found, Answer):
            return found
        raise Refused(*found)

    def alive(self) -> bool:
        """Tell whether a replica is running."""
        found = serve.status().applications.get(_APPLICATION)
        states = found.deployments[_DEPLOYMENT].replica_states if found and found.deployments else {}
        return any(str(getattr(state, "value", state)) == "RUNNING" and count for state, count in states.items())


async def _awaited(response: Any) -> Any:
    return await response


@contextmanager
def replicas(run: Path, folder: Path, pool: Pool) -> Iterator[Asking]:
    """Start the replicas on the Ray of this process; they end with it.

    Raises:
        UserError: they do not start, with the reason of the last that tried.
    """
    gpus = num_visible_gpus()
    deployment: Any = serve.deployment(
        Replica,
        name=_DEPLOYMENT,
        num_replicas=pool.replicas,
        max_ongoing_requests=2 * BATCH,
        max_queued_requests=pool.queued,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": 0, "num_gpus": min(1.0, gpus / pool.replicas) if gpus else 0},
    )
    threads = max(1, (os.cpu_count() or 1) // pool.replicas)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        bound = deployment.bind(str(run.resolve()), str(folder.resolve()), threads)
        handle = serve.run(bound, name=_APPLICATION, route_prefix=None, logging_config=quiet)
        yield Asking(handle, pool)
    except RuntimeError as error:
        raise UserError(f"the replicas did not start: {_last_line(error)}") from None
    finally:
        serve.shutdown()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
