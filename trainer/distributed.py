"""The only door to torch.distributed.

Every function works for one rank as for many: a process group always exists, so world size 1 is not a branch anywhere.
Control messages travel as JSON bytes in tensors; nothing that a peer sends is ever unpickled.

Legend: W ranks, n rows of one rank, N rows of all.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer import watchdog


class CollectiveTimeout(RuntimeError):
    """A peer did not arrive in time, or left; the message names the stage. Exit code 5."""

    exit_code = 5


_stage = "start-up"
_at_most_s: float | None = None
_waited_s = 0.0


def initialise(timeout_s: float) -> None:
    """Join the process group that the launcher's environment describes, or form a group of one.

    A group that is there already (Ray Train forms one and chooses the GPU) is used as it is. A group of one leaves
    nothing in the environment: what is started from here later, a training from a notebook, is no rank of it.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    with _described():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


@contextmanager
def _described() -> Iterator[None]:
    """Have the environment describe a group: the launcher's, or for a while one of this process alone."""
    before = set(os.environ)
    alone = "RANK" not in before
    if alone:
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    try:
        _choose_interface()
        yield
    finally:
        for name in set(os.environ) - before if alone else ():
            del os.environ[name]


def _choose_interface() -> None:
    """Have gloo talk over the interface that leads to rank 0; by itself it takes the one of this machine's name."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    host = os.environ["MASTER_ADDR"]
    own = _address_towards(host)
    if own.startswith("127.") and not host.startswith("127."):
        return  # a machine's own name is often a loopback address to itself, which its peers could not reach
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _address_towards(host: str) -> str:
    """Return the address of this machine on the way to a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((socket.gethostbyname(host), 1))  # sends nothing: the kernel picks the address
        return str(probe.getsockname()[0])


def another_group(timeout_s: float) -> dist.ProcessGroup:
    """Return a second group of all ranks, for a library that wants one of its own; it ends with `shut_down`."""
    return dist.new_group(timeout=timedelta(seconds=timeout_s))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shut_down() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_nodes() -> int:
    """Return on how many machines (agents of torchrun) the ranks are."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def leads_node() -> bool:
    """Return whether this is the first rank of its machine."""
    return local_rank() == 0


def node_addresses() -> tuple[str | None, str | None]:
    """Return the addresses of rank 0's machine and of this one, as other machines know them; None where there are none
    or all are on one host."""
    if num_nodes() == 1:
        return None, None
    # Rank 0 may know its own name as a loopback address only; the last rank is on another machine.
    head = str(broadcast_json(socket.gethostbyname(os.environ["MASTER_ADDR"]), source=world_size() - 1))
    if head.startswith("127."):
        return None, None
    return head, head if os.environ.get("GROUP_RANK") == "0" else _address_towards(head)


def device() -> torch.device:
    """Return this rank's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def stage(name: str, at_most_s: float | None = None) -> Iterator[None]:
    """Name what the ranks are doing, so that a collective that never ends says where.

    `at_most_s` is for waits with a deadline of their own: how long the stage may show nothing to the watchdog.
    """
    global _stage, _at_most_s
    before = _stage, _at_most_s
    _stage, _at_most_s = name, at_most_s if at_most_s is not None else _at_most_s
    watchdog.pat(name, _at_most_s)
    try:
        with _deadline():
            yield
    finally:
        _stage, _at_most_s = before
        watchdog.pat(_stage, _at_most_s)


@contextmanager
def _deadline() -> Iterator[None]:
    """Turn what gloo, NCCL and the store raise when peers leave or are late into CollectiveTimeout, with stacks."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        lost = ("gloo", "nccl", "timed out", "timeout", "connection", "peer")
        if isinstance(error, CollectiveTimeout) or not any(word in str(error).lower() for word in lost):
            raise
        said = str(error).splitlines()[0]
        found = CollectiveTimeout(f"rank {os.environ.get('RANK', '0')} lost its peers during {_stage}: {said}")
        found.__cause__ = error
        watchdog.dump(found)
        raise found from error


@contextmanager
def _collective() -> Iterator[None]:
    """Count the time of a collective as waiting for peers."""
    global _waited_s
    began = time.monotonic()
    with _deadline():
        yield
    _waited_s += time.monotonic() - began


def waited_s() -> float:
    """Return how long this rank has been in collectives of this module, in seconds."""
    return _waited_s


def pat() -> None:
    """Show the watchdog that this rank gets on within its stage."""
    watchdog.pat(at_most_s=_at_most_s)


@_collective()
def gather_rows(local: Tensor) -> Tensor:
    """Return the rows of every rank in rank order: (n, ...) with equal n on each -> (W * n, ...). No gradient."""
    whole = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
    dist.all_gather_single(whole, local.contiguous())
    return whole


def gather_runs(local: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of every rank in rank order, (sum of counts, ...), where rank r holds counts[r] rows."""
    longest = max(counts)
    if min(counts) == longest:
        return gather_rows(local)
    padded = local.new_zeros((longest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    pieces = gather_rows(padded).split(longest)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def gather_uneven_rows(local: Tensor) -> Tensor:
    """Return the rows of every rank in rank order, (N, ...), where each rank may hold another number of rows."""
    return gather_runs(local, gather_number(local.shape[0]))


def gather_number(value: int) -> list[int]:
    """Return the number (of 63 bits) of every rank in rank order."""
    numbers: list[int] = gather_rows(torch.tensor([value], device=device())).tolist()
    return numbers


def gather_numbers(values: list[float]) -> list[list[float]]:
    """Return the numbers of every rank in rank order: (n) on each -> (W, n)."""
    rows: list[list[float]] = gather_rows(torch.tensor([values], dtype=torch.float64, device=device())).tolist()
    return rows


def gather_arrays(local: np.ndarray) -> list[np.ndarray]:
    """Return the one-dimensional array of every rank, of any lengths but one dtype, in rank order."""
    value = torch.from_numpy(np.ascontiguousarray(local)).to(device())
    counts = gather_number(len(local))
    return [piece.cpu().numpy() for piece in gather_runs(value, counts).split(counts)]


@_collective()
def broadcast_json(value: Any, source: int = 0) -> Any:
    """Return rank `source`'s JSON-able value on every rank."""
    payload = json.dumps(value).encode() if rank() == source else b""
    length = torch.tensor([len(payload)], device=device())
    dist.broadcast(length, source)
    body = torch.zeros(int(length), dtype=torch.uint8, device=device())
    if rank() == source:
        body.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(body, source)
    return json.loads(bytes(body.cpu().numpy()).decode())


@_collective()
def copy_from_leader(tensors: list[Tensor]) -> None:
    """Overwrite tensors of one dtype with rank 0's, in place."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.broadcast(flat, 0)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


@_collective()
def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank; the same answer everywhere."""
    total = torch.tensor([int(flag)], device=device())
    dist.all_reduce(total)
    return bool(total.item())


def barrier() -> None:
    """Wait for every rank."""
    any_rank(False)


def clock_differences() -> list[float]:
    """Return by how many seconds each rank's wall clock is ahead of rank 0's.

    Clocks are read right after a barrier; the smallest of three differences counts, since a busy machine delays some.
    """
    readings = []
    for _ in range(3):
        barrier()
        now = [moment for [moment] in gather_numbers([time.time()])]
        readings.append([moment - now[0] for moment in now])
    return [min(found, key=abs) for found in zip(*readings, strict=True)]


def data_parallel(module: nn.Module) -> nn.Module:
    """Wrap a network so that `backward` averages gradients over the ranks while it still runs.

    One rank has nobody to average with: the wrapper's buckets took 10 % of a step of ResNet-18 on one core.
    """
    if world_size() == 1:
        return module
    devices = [device()] if torch.cuda.is_available() else None
    return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True)


def on_its_own(network: nn.Module) -> AbstractContextManager[object]:
    """Have `backward` of a network that `data_parallel` gave add up this rank's gradients only, for a while."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the global batch, on CPU and GPU (torch's own exists on GPUs only).

    Mean and variance are those of all ranks' images together, so the result does not depend on the number of ranks.
    Expects the same number of images on every rank.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        count = x.numel() / x.shape[1] * world_size()
        mean = _SumOverRanks.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
