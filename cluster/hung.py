"""An actor that does not answer: is it at work or hung, and how to end it for certain.

Ray notices processes that die, not ones that hang (a stopped process, a dead filesystem, a deadlock): a call to them is
pending for ever, and `ray.kill` asks the process to end itself, which it cannot. So who waits asks whether the actor
is there at all, and kills the process by its id, through a task on its own node. First its stacks are written to
RUN/logs/stacks-NAME.txt (`cluster.processes.dump_stacks_on_signal`), for whoever wants to know where it hung.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray._private import state as ray_state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.processes import STACKS_SIGNAL

_DUMP_S = 0.5  # for the stacks to be written


def answer(actor: Any, promise: Any, timeout_s: float, patience_s: float) -> Any:
    """Return what an actor's method gave. After `patience_s` of silence the actor is asked whether it is there (by
    `where`, for as long again), and killed when it is not: then the call fails like any call to a dead actor.

    Raises GetTimeoutError after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        if ray.wait([promise], timeout=min(patience_s, left))[0] or left == 0.0:
            return ray.get(promise, timeout=left)
        if not ray.wait([actor.where.remote()], timeout=min(patience_s, left))[0]:
            end_hung(actor, patience_s)


def place_of(actor: Any) -> tuple[int, str, str]:
    """Return (process id, node id, class) of a living actor, (0, "", "") of one that is not alive now.

    Asked of Ray's directory, since the actor itself may not answer.
    """
    found = ray_state.actors(actor._actor_id.hex())
    if found.get("State") != "ALIVE":
        return 0, "", ""
    return found["Pid"], found["Address"]["NodeID"], found["ActorClassName"]


def end_hung(actor: Any, timeout_s: float) -> None:
    """Kill the process of an actor, however stuck; Ray then starts the actor again. Nothing to do for a dead one."""
    pid, node, name = place_of(actor)
    if not node:
        return
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(kill_actor_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        ray.get(task.remote(pid, name), timeout=timeout_s)
    except ray.exceptions.RayError:  # the node is gone, or hangs as well
        ray.kill(actor, no_restart=False)


def kill_actor_process(pid: int, name: str) -> None:
    """Kill -9 a process of this node, provided that it is an actor of class `name`; its stacks first."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if name in "".join(psutil.Process(pid).cmdline()):
            os.kill(pid, STACKS_SIGNAL)
            time.sleep(_DUMP_S)
            os.kill(pid, signal.SIGKILL)
