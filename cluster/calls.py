"""Calls between the processes of a run: one deadline, repeated over the death of an actor, our own errors.

Whatever is killed is started again by Ray, and told again by whoever needs its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayTaskError,
)

from cluster.errors import ClusterTimeout, StoreFull
from cluster.hung import answer
from data_shards.errors import UserError

POLL_S = 0.1
PATIENCE_S = 30.0  # of silence, before an actor is asked whether it is there at all


class PeerLost(ClusterTimeout):
    """The process that owned an object died."""


def namespace_of(run_id: str) -> str:
    """Return the Ray namespace of a run."""
    return f"subspace-{run_id}"


def finder(name: str, namespace: str) -> Callable[[], Any]:
    return lambda: ray.get_actor(name, namespace)


def call(
    find: Callable[[], Any],
    method: str,
    arguments: Sequence[Any],
    timeout_s: float,
    stage: str,
    patience_s: float = PATIENCE_S,
) -> Any:
    """Call an actor and return its answer, again and again while it is being restarted, until the time is up.

    An actor that is silent for twice `patience_s` is killed (see `cluster.hung`). Raises ClusterTimeout naming `stage`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClusterTimeout(f"No answer from {stage} within {timeout_s:g} s.")
        try:
            actor = find()
            return answer(actor, getattr(actor, method).remote(*arguments), left, patience_s)
        except GetTimeoutError:
            continue
        except RayTaskError as error:
            raise translated(error) from None
        except (RayActorError, ValueError):  # dead, being restarted, or not there yet
            time.sleep(min(POLL_S, left))


def translated(error: RayTaskError) -> Exception:
    """Return our own error out of Ray's wrapping; a lost object means that the rank that owned it died."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, ObjectLostError):
        return PeerLost("A rank died before its embeddings were read; the run goes on from its last checkpoint.")
    if isinstance(cause, (ObjectStoreFullError, OutOfDiskError)):
        return store_full()
    if isinstance(cause, GetTimeoutError):
        return ClusterTimeout("The embeddings of a rank could not be fetched in time.")
    return error


def store_full() -> StoreFull:
    """Return the error of embeddings that do not fit."""
    return StoreFull(
        "Ray's object store and the disk that it spills to are full: free the disk of Ray's temporary folder (TMPDIR),"
        " or start Ray with a larger --object-store-memory."
    )
