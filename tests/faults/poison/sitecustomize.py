"""Poisons the numbers of a run from within: Python imports this by itself where the folder is on PYTHONPATH.

The variable POISON holds JSON, a list of {what, rank, first, last, marker}: in rank `rank` (None: all) the steps from
`first` to `last` are poisoned. A marker file is made at each time, as proof; with `once` a marker that is there keeps
the poison from acting again after a restart. Nothing is imported or changed before trainer.loop is.

    vectors  a pixel of this rank's images is NaN       loss  the loss of this rank is infinite
    layer    the gradient of a layer is NaN before it is added up over the ranks
    sum      the gradient of a layer is NaN after that  leave_out  the step is left out, and nothing is poisoned
    bit      after the step one bit of a weight flips   samples  nothing is poisoned, and the marker names the samples
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def poison_batch(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    batch.images.view(-1)[7] = float("nan")


def poison_loss(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    objective, updates = loop.objective, loop.objective.updates

    def poisoned(*arguments: Any) -> Iterator[Any]:
        for update in updates(*arguments):
            update.loss = update.loss * float("inf")
            yield update

    objective.updates = poisoned
    undo.append(lambda: setattr(objective, "updates", updates))


def poison_layer(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    handle = next(loop.engine.model.backbone.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    undo.append(handle.remove)


def poison_sum(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    engine, backward = loop.engine, loop.engine.backward

    def poisoned(loss: Any, *beside: Any) -> None:
        backward(loss, *beside)
        next(engine.model.backbone.parameters()).grad.view(-1)[3] = float("nan")

    engine.backward = poisoned
    undo.append(lambda: setattr(engine, "backward", backward))


def leave_out(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    engine, step = loop.engine, loop.engine.step
    engine.step = lambda: "nothing"
    undo.append(lambda: setattr(engine, "step", step))


def flip_bit(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    import torch

    weights = next(loop.engine.model.backbone.parameters()).data

    def flip() -> None:
        weights[0].view(torch.int32)[..., 0] ^= 1

    undo.append(flip)


def tell_samples(loop: Any, batch: Any, undo: list[Any], marker: Path) -> None:
    marker.write_text(json.dumps(batch.sample_ids.tolist()))


KINDS = {
    "vectors": poison_batch,
    "loss": poison_loss,
    "layer": poison_layer,
    "sum": poison_sum,
    "leave_out": leave_out,
    "bit": flip_bit,
    "samples": tell_samples,
}


def act(poison: dict[str, Any], step: int) -> Path | None:
    """Return the proof, which is left here, when the poison acts in this rank at this step."""
    if poison["rank"] not in (None, int(os.environ["RANK"])) or not poison["first"] <= step <= poison["last"]:
        return None
    marker = Path(f"{poison['marker']}-{step}-{os.environ['RANK']}")
    if poison["once"] and marker.exists():
        return None
    marker.touch()
    return marker


def poisoned_step(original: Any) -> Any:
    poisons = json.loads(os.environ["POISON"])

    def step(loop: Any, batch: Any, *arguments: Any) -> None:
        undo: list[Any] = []
        for poison in poisons:
            if marker := act(poison, loop.state.step + 1):
                KINDS[poison["what"]](loop, batch, undo, marker)
        try:
            original(loop, batch, *arguments)
        finally:
            for back in undo:
                back()

    return step


class After(importlib.abc.MetaPathFinder):
    """Changes trainer.loop once it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "trainer.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            module.Loop._step = poisoned_step(module.Loop._step)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "POISON" in os.environ and "RANK" in os.environ:
    sys.meta_path.insert(0, After())
