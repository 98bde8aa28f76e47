"""What a run asks of a Ray cluster, and whether the cluster can hold it.

Ray lets a request that no node can ever hold wait for ever; here it is refused with the numbers. Sizes are Ray's
logical ones: fractions are allowed, and a GPU shared by a worker and a k-means actor is 0.75 and 0.25 of it, say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_shards.errors import UserError
from launch.config import RunConfig

Resources = Mapping[str, float]
_ADVICE = (
    "lower --num-workers, --cpus-per-worker, --gpus-per-worker, cluster.num_shards, cluster.num_cpus or"
    " cluster.num_gpus, or set ray.autoscaling=true where nodes are started on demand"
)


class NoRoom(UserError):
    """The cluster cannot hold the run."""


def worker_resources(config: RunConfig) -> dict[str, float]:
    """Return what Ray sets aside for one worker."""
    return _positive(config.ray.cpus_per_worker, config.ray.gpus_per_worker)


def actor_resources(config: RunConfig) -> dict[str, float]:
    """Return what Ray sets aside for one k-means actor."""
    return _positive(config.cluster.num_cpus, config.cluster.num_gpus)


def num_actors(config: RunConfig) -> int:
    """Return the number of k-means actors."""
    if config.cluster.backend == "local" or config.cluster.placement == "ranks":
        return 0
    return config.cluster.num_shards or config.launch.nproc


def _positive(num_cpus: float, num_gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount > 0}


def asked(config: RunConfig) -> str:
    """Return in words what the run asks for."""
    workers = f"{config.launch.nproc} workers of {_words(worker_resources(config))}"
    return f"{workers} and {num_actors(config)} k-means actors of {_words(actor_resources(config))}"


def _words(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "0 CPU"


def check_room(config: RunConfig, nodes: Sequence[Resources]) -> None:
    """Raise NoRoom for what the nodes could not hold even if they were idle.

    What passes may still not fit (a worker lies on one node); then `ray.placement_timeout_s` ends the waiting.
    """
    if config.ray.autoscaling:
        return
    parts = [
        ("worker", config.launch.nproc, worker_resources(config)),
        ("k-means actor", num_actors(config), actor_resources(config)),
    ]
    for name in ("CPU", "GPU"):
        have = sum(node.get(name, 0.0) for node in nodes)
        need = sum(number * resources.get(name, 0.0) for _, number, resources in parts)
        if need > have:
            raise NoRoom(f"{asked(config)} need {need:g} {name}, and the whole cluster has {have:g}; {_ADVICE}")
    for what, number, resources in parts:
        if number and not any(_holds(node, resources) for node in nodes):
            raise NoRoom(f"no node of the cluster holds a {what} of {_words(resources)}; {_ADVICE}")


def check_node(resources: Resources, nodes: Sequence[Resources], what: str) -> None:
    """Raise NoRoom where no node, were it idle, holds what a single task asks for."""
    if not any(_holds(node, resources) for node in nodes):
        largest = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes) or "nothing"
        raise NoRoom(
            f"{what}: no node holds {_words(resources)}, the nodes have {largest}; lower launch.nproc, launch.threads"
            " or ray.gpus_per_worker"
        )


def _holds(node: Resources, resources: Resources) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in resources.items())
