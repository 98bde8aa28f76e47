"""Start weights from a file that somebody else wrote: which of its tensors belong where, and nothing by halves.

Names are compared exactly, once the wrappers that training scripts put around a network are taken off (`module.` and
so on; whichever leaves most names alike) and with the names that other libraries have for the same parts (a backbone's
`dialects`). Then it is strict: every tensor of the backbone must be in the file with its shape, and a part that the
backbone uses may hold nothing else there, since a ResNet-34 would fit a ResNet-18 otherwise. What lies behind the last
level, and a classifier, may be in the file; it is named and left aside. Three differences are bridged:

* A network of one input channel takes the sum of the first convolution over RGB: it sees the grey image three times.
* Counters of batches (`num_batches_tracked`) may be missing: files before 2018 have none, and nothing here reads them.
* A linear layer takes a 1x1 convolution, which is the same map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from data_shards.errors import UserError, printable
from data_shards.files import sha256_of
from trainer.backbones.foreign import Dialect
from trainer.model import EmbeddingModel, not_finite
from trainer.tensor_file import read_weights

# "model/" is what our own checkpoints write.
WRAPPERS = ("module.", "model.", "model/", "backbone.", "encoder.", "net.", "features.")
MAX_WRAPPERS = 3
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Match(NamedTuple):
    """How our names became the file's (said in `dialect`, less our wrapper, plus theirs), and those that are in it."""

    names: dict[str, str]
    dialect: Dialect = ()
    ours: str = ""
    theirs: str = ""

    def theirs_for(self, name: str) -> str:
        """Return what the file would call one of our parts or tensors."""
        return self.theirs + spoken(name, self.dialect).removeprefix(self.ours)


def load(model: EmbeddingModel, path: Path, name: str, only_backbone: bool = False) -> str:
    """Fill the backbone, called `name`, from a file; return what was done.

    Those parts of gate and head that the file has, and that fit whole, are taken too, unless `only_backbone`.

    Raises:
        UserError: no file of weights, or of another network.
    """
    state = read_weights(path)
    own = model.backbone.state_dict()
    try:
        match = best_match(model.backbone, state)
        taken = fitted(model.backbone, state, match)
    except UserError as error:
        raise UserError(f"{path} does not fit {name}: {error}") from None
    model.backbone.load_state_dict(taken, strict=False)
    used, filled = {*match.names.values()}, []
    for part, module in [] if only_backbone else _parts_beside(model):
        beside = _beside(part, module, state, match)
        if beside:
            module.load_state_dict(beside)
            used.update(_beside_name(match, part, key) for key in beside)
            filled.append(part)
    said = f"weights {path} sha256 {sha256_of(path)}: {len(taken)} of {len(own)} tensors"
    said += "" if len(taken) == len(own) else f"; not in the file: {_listed(key for key in own if key not in taken)}"
    said += "" if used.issuperset(state) else f"; not used: {_listed(key for key in state if key not in used)}"
    return printable(said + (f"; {', '.join(filled)} of the file too" if filled else ""))


def best_match(backbone: nn.Module, state: Mapping[str, Tensor]) -> Match:
    """Return the dialect and the wrappers that leave most names alike; of equals, the plainest.

    Raises:
        UserError: no name is alike.
    """
    own = list(backbone.state_dict())
    dialects: Sequence[Dialect] = ((), *getattr(backbone, "dialects", ()))
    best = Match({})
    prefixes = _prefixes(state)
    for dialect in dialects:
        words = {key: spoken(key, dialect) for key in own}
        for ours in _prefixes(words.values()):
            bare = {key: word[len(ours) :] for key, word in words.items() if word.startswith(ours)}
            for theirs in prefixes:
                names = {key: theirs + word for key, word in bare.items() if theirs + word in state}
                if len(names) > len(best.names):
                    best = Match(names, dialect, ours, theirs)
    if not best.names:
        there = f"it has '{next(iter(state)):.80}'" if state else "it is empty"
        raise UserError(f"no name in it is one of the network's: {there}, the network '{own[0]}'")
    return best


def fitted(backbone: nn.Module, state: Mapping[str, Tensor], match: Match) -> dict[str, Tensor]:
    """Return the backbone's tensors from the file, by our names.

    Raises:
        UserError: one is missing, superfluous, of another shape or kind, or not finite.
    """
    own = backbone.state_dict()
    _refuse_surplus(backbone, state, match)
    missing = [key for key in own if key not in match.names and not key.endswith(STATISTICS[-1])]
    if missing:
        raise UserError(f"'{missing[0]}' is missing")
    stem = next(iter(own))
    taken = {key: _shaped(key, state[name], own[key], key == stem) for key, name in match.names.items()}
    wrong = not_finite(taken)
    if wrong:
        raise UserError(f"'{wrong[0]}' is not finite")
    return taken


def _refuse_surplus(backbone: nn.Module, state: Mapping[str, Tensor], match: Match) -> None:
    """Raise UserError for a tensor of the file inside a part that the backbone uses, for which it has no place."""
    inside = tuple(match.theirs_for(f"{part}.") for part in getattr(backbone, "parts", ()))
    used = set(match.names.values())
    surplus = [key for key in state if key.startswith(inside) and key not in used]
    if any(key.endswith(STATISTICS) for key in surplus) and not any(key.endswith(STATISTICS) for key in match.names):
        raise UserError("it has batch norms; use model.backbone.norm 'frozen' or 'batch', not 'group'")
    if surplus:
        raise UserError(f"'{surplus[0]:.80}' has no place in it")


def _shaped(key: str, value: Tensor, target: Tensor, is_stem: bool) -> Tensor:
    if value.is_floating_point() != target.is_floating_point():
        raise UserError(f"'{key}' is of {value.dtype}")
    shape, wanted = tuple(value.shape), tuple(target.shape)
    if is_stem and target.ndim == 4 and (wanted[1], shape[1:2]) == (1, (3,)):
        value = value.float().sum(dim=1, keepdim=True)
    elif shape == (*wanted, 1, 1):
        value = value.reshape(wanted)
    if value.shape != target.shape:
        raise UserError(f"'{key}' has shape {shape} instead of {wanted}")
    return value


def _parts_beside(model: EmbeddingModel) -> list[tuple[str, nn.Module]]:
    """Return the parts of gate and head that are taken one by one: "gate.base", "head.decoder", ..."""
    owners = [("gate", model.gate), ("head", model.head)]
    return [(f"{name}.{part}", child) for name, owner in owners if owner for part, child in owner.named_children()]


def _beside(part: str, module: nn.Module, state: Mapping[str, Tensor], match: Match) -> dict[str, Tensor]:
    """Return the tensors of a gate or head of ours that lies beside the backbone in the file; none unless all fit."""
    own = module.state_dict()
    found = {key: state[name] for key in own if (name := _beside_name(match, part, key)) in state}
    fits = all(key in found and found[key].shape == value.shape for key, value in own.items())
    return found if fits and not not_finite(found) else {}


def _beside_name(match: Match, part: str, key: str) -> str:
    return f"{match.theirs.removesuffix('backbone.')}{part}.{key}"


def spoken(name: str, dialect: Dialect) -> str:
    """Return what one of our parts or tensors is called in a dialect."""
    for pattern, replacement in dialect:
        name = re.sub(pattern, replacement, name)
    return name


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the wrappers around any of the names, none first, then the shortest."""
    found = {""}
    for name in names:
        prefix = ""
        for _ in range(MAX_WRAPPERS):
            prefix += next((word for word in WRAPPERS if name.startswith(word, len(prefix))), "")
            found.add(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _listed(names: Iterable[str], limit: int = 6) -> str:
    words = [f"{name:.80}" for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
