"""The losses and miners of pytorch-metric-learning, by their class names (Musgrave et al. 2020,
https://arxiv.org/abs/2008.09164; names and arguments: https://kevinmusgrave.github.io/pytorch-metric-learning/).

Their calls are ours: a loss takes (vectors, labels, tuples), where tuples are triplets, pairs or None. An argument that
is itself an object (`distance`, `reducer`, a regularizer) is a mapping with its class name: {name: CosineSimilarity}.
What they draw comes from torch's and numpy's global streams, so they are built and called inside `keyed_streams`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import UserError, nearest_of

PACKAGE = "pytorch_metric_learning"
PARTS = ("distances", "reducers", "regularizers")
# Wrappers around other losses, and what wants more than vectors, labels and tuples.
NOT_ALONE = {
    "BaseMetricLossFunction",
    "BaseLossWrapper",
    "CrossBatchMemory",
    "GenericPairLoss",
    "ManifoldLoss",
    "MultipleLosses",
    "SelfSupervisedLoss",
    "ThresholdConsistentMarginLoss",
    "VICRegLoss",
    "BaseMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",
}
GIVEN = {"embedding_size": "num_dims", "descriptors_dim": "num_dims", "num_classes": "num_classes"}


def names(kind: str) -> list[str]:
    """Return the class names of "losses", "miners", "distances", "reducers" or "regularizers"."""
    found = vars(import_module(f"{PACKAGE}.{kind}"))
    classes = [name for name, value in found.items() if inspect.isclass(value) and not name.endswith("Mixin")]
    return sorted(name for name in classes if name not in NOT_ALONE)


def make(kind: str, name: str, arguments: Mapping[str, Any], where: str, **given: int) -> Any:
    """Return an object of the library.

    `given` (num_dims, num_classes) go to the arguments that need them. `where` is the setting, for messages.

    Raises:
        UserError: unknown name or argument, the nearest one is named; or values that the class refuses.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f"{where}: unknown '{name}'{nearest_of(name, known)}; there are {', '.join(known)}")
    cls = getattr(import_module(f"{PACKAGE}.{kind}"), name)
    parameters = _parameters(cls)
    for argument in arguments:
        if argument not in parameters:
            raise UserError(f"{where}.{argument}: {name} has no such argument{nearest_of(argument, list(parameters))}")
    values = {argument: _value(value, f"{where}.{argument}") for argument, value in arguments.items()}
    for argument, source in GIVEN.items():
        if argument in parameters and parameters[argument] and argument not in values:
            values[argument] = given[source]
    try:
        return cls(**values)
    except Exception as error:  # the library raises whatever it likes for values that it cannot take
        raise UserError(f"{where}: {name} cannot be made of these arguments: {error}") from error


def _parameters(cls: type) -> dict[str, bool]:
    """Return the names that a class takes, its bases' included, and whether each has to be given."""
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or not base.__module__.startswith(PACKAGE):
            continue
        for name, parameter in inspect.signature(base).parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter.default is parameter.empty)
    return found


def _value(value: Any, where: str) -> Any:
    """Return a user's value; a mapping with a name is an object of the library."""
    if not isinstance(value, Mapping):
        return value
    name = str(value.get("name", ""))
    rest = {key: inner for key, inner in value.items() if key != "name"}
    for kind in PARTS:
        if name in names(kind):
            return make(kind, name, rest, where)
    known = [known for kind in PARTS for known in names(kind)]
    raise UserError(f"{where}.name: unknown '{name}'{nearest_of(name, known)}; there are {', '.join(known)}")


@contextmanager
def keyed_streams(seed: int) -> Iterator[None]:
    """Have torch's and the library's global random streams start from `seed`, and leave them as they were."""
    from pytorch_metric_learning.utils import common_functions

    before = common_functions.NUMPY_RANDOM
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        common_functions.NUMPY_RANDOM = np.random.RandomState(seed % 2**32)
        try:
            yield
        finally:
            common_functions.NUMPY_RANDOM = before


def as_miner(miner: Callable[..., Any], triplets: bool) -> Callable[..., tuple[Tensor, ...]]:
    """Return a miner with our call: (vectors, labels, generator) -> tuples; pairs become `triplets` if asked."""
    from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets

    def mine(vectors: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        with keyed_streams(generator.initial_seed()):
            found = miner(vectors, labels)
            return convert_to_triplets(found, labels) if triplets else found

    return mine
