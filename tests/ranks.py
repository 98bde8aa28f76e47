"""Distributed tests as plain functions: `run_on_ranks(function, W, *arguments)` returns what W real ranks returned.

The processes are started once and reused (a fresh pair costs seconds); every call gets a process group of its own.
`function` must be importable by name, and its arguments and results plain data or arrays.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

_TIMEOUT_S = 120
_workers: list[tuple[Any, Any]] = []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(pipe: Any) -> None:
    import torch

    from trainer import distributed

    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        function, variables, arguments = job
        os.environ.update(variables)
        try:
            distributed.initialise(_TIMEOUT_S)
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        finally:
            distributed.shut_down()


def _grow(world_size: int) -> None:
    context = multiprocessing.get_context("spawn")
    while len(_workers) < world_size:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        _workers.append((process, here))


def run_on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Run `function(*arguments)` on every rank of a fresh group; return the results in rank order."""
    _grow(world_size)
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for rank in range(world_size):
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
        _workers[rank][1].send((function, variables, arguments))
    answers = []
    for rank in range(world_size):
        assert _workers[rank][1].poll(_TIMEOUT_S), f"rank {rank} did not answer"
        answers.append(_workers[rank][1].recv())
    for rank, (fine, answer) in enumerate(answers):
        assert fine, f"rank {rank}:\n{answer}"
    return [answer for _, answer in answers]


def _stop() -> None:
    for process, pipe in _workers:
        pipe.send(None)
        process.join(5)
        process.kill()


atexit.register(_stop)
