"""Every ZeRO stage computes what DDPEngine computes, and its checkpoints are the same tensors.

All engines take the same steps in one process group of three ranks, by which hardly a parameter's size can be divided;
the checkpoints then go to two ranks and another engine. DeepSpeed compares numbers of modules and parameters, counted
per process, over the ranks: hence one call on three ranks and then one on two, from processes with the same past.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.errors import UserError
from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.backbones.small import SmallResNet
from trainer.engines.base import Engine
from trainer.engines.ddp import DDPEngine
from trainer.engines.deepspeed import DeepSpeedEngine, check_zero
from trainer.engines.replicas import ReplicasDiffer
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets
from trainer.model import EmbeddingModel
from trainer.optim import OPTIMISERS, parameter_groups, set_rates

if find_spec("deepspeed") is None:
    pytest.skip("DeepSpeed is not installed (extra 'deepspeed')", allow_module_level=True)

pytestmark = pytest.mark.site

Arrays = dict[str, np.ndarray]
STAGES = (0, 1, 2, 3)
ROWS = 12
PERMUTATION = [3, 1, 0, 2, *range(4, 13)]
RESET = [11, 12]
POISONED = ("ddp", *(f"zero {stage}" for stage in STAGES), "zero 2 pieces", "zero 3 cut small", "zero 2 offload")
# name -> (precision, optimiser, pieces, further arguments of DeepSpeedEngine or None for DDPEngine)
Case = tuple[str, str, int, dict[str, Any] | None]
CASES: dict[str, Case] = {
    "ddp": ("fp32", "adam", 1, None),
    "ddp sgd": ("fp32", "sgd", 1, None),
    "ddp bf16": ("bf16", "adam", 1, None),
    "ddp fp16": ("fp16", "adam", 1, None),
    **{f"zero {stage}": ("fp32", "adam", 1, {"zero_stage": stage}) for stage in STAGES},
    "zero 3 cut small": ("fp32", "adam", 1, {"zero_stage": 3, "persistence_threshold": 0}),
    "zero 2 sgd": ("fp32", "sgd", 1, {"zero_stage": 2}),
    "zero 3 sgd": ("fp32", "sgd", 1, {"zero_stage": 3}),
    **{f"zero {stage} pieces": ("fp32", "adam", 2, {"zero_stage": stage}) for stage in STAGES},
    **{f"zero {stage} offload": ("fp32", "adam", 1, {"zero_stage": stage, "offload": True}) for stage in (1, 2, 3)},
    "zero 1 bf16": ("bf16", "adam", 1, {"zero_stage": 1}),
    "zero 3 bf16": ("bf16", "adam", 1, {"zero_stage": 3}),
    **{f"zero {stage} fp16": ("fp16", "adam", 1, {"zero_stage": stage}) for stage in STAGES},
}


def make_engine(case: Case) -> Engine:
    precision, optimiser, pieces, zero = case
    backbone = SmallResNet(widths=(8, 16), blocks=(1, 1), in_channels=1, seed=3)
    model = EmbeddingModel(
        backbone, LinearEmbedding(16, 13, seed=3), gate.convolutions(backbone, hidden=(8, 4), seed=3)
    )
    model = model.to(memory_format=torch.channels_last)
    make = OPTIMISERS[optimiser]

    def optimise(net: EmbeddingModel) -> torch.optim.Optimizer:
        return make(parameter_groups(net, 1e-2, 3e-2), weight_decay=1e-2, foreach=True)

    of_all = pieces * distributed.world_size()
    shared: dict[str, Any] = {"pieces": of_all, "cached": pieces > 1, "precision": precision, "clip_norm": 0.5}
    if zero is None:
        return DDPEngine(model, optimise, **shared)
    return DeepSpeedEngine(model, optimise, **shared, **zero)


def images() -> Tensor:
    drawn = np.random.default_rng(1).normal(size=(ROWS, 1, 12, 12)).astype(np.float32)
    return torch.from_numpy(drawn).contiguous(memory_format=torch.channels_last)


def global_loss(vectors: Tensor) -> Tensor:
    labels = torch.arange(ROWS) // 3
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return margin_loss(unit, labels, all_triplets(unit, labels))


def embed(engine: Engine) -> Tensor:
    share = ROWS // distributed.world_size()
    local = images()[distributed.rank() * share :][:share]
    return engine.embed(local, None)


def step(engine: Engine, factor: float) -> float:
    loss = global_loss(embed(engine))
    set_rates(engine.optimiser, factor)
    engine.backward(loss)
    assert engine.step().fault is None
    return float(loss.detach())


def arrays(engine: Engine) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in engine.tensors().items()}


def run_case(case: Case) -> dict[str, Any]:
    """Two steps, a growth, a checkpoint, vectors as evaluation sees them, and one step more."""
    engine = make_engine(case)
    losses = [step(engine, 1.0), step(engine, 0.5)]
    before = arrays(engine)
    engine.permute_and_reset(PERMUTATION, RESET, seed=5)
    saved = arrays(engine)
    with engine.averaged(), torch.no_grad():
        engine.model.eval()
        # Ranks look at unlike numbers of blocks; a collective in the forward pass would hang.
        looked = [engine.model(images()).vectors.numpy() for _ in range(1 + distributed.rank())]
        engine.model.train()
    losses.append(step(engine, 0.5))
    return {"losses": losses, "before": before, "saved": saved, "looked": looked[0], "final": arrays(engine)}


def run_cases() -> dict[str, Any]:
    found: dict[str, Any] = {name: run_case(case) for name, case in CASES.items()}
    found["disturbed"] = {name: disturb(case) for name, case in CASES.items() if "fp16" in name}
    found["infinite"] = {stage: overflow_in_full_precision(CASES[f"zero {stage}"]) for stage in STAGES}
    found["poisoned"] = {name: poison(CASES[name]) for name in POISONED}
    found["different"] = {stage: differ(CASES[f"zero {stage}"]) for stage in STAGES}
    return found


def unlike(found: Arrays, other: Arrays) -> list[str]:
    return [key for key in other if not key.startswith("scale/") and not np.array_equal(found[key], other[key])]


def disturb(case: Case) -> dict[str, Any]:
    """Do what a loss that is no number, and gradients that overflow at too large a scale, should leave no trace of."""
    engine = make_engine(case)
    assert engine.scale is not None
    step(engine, 1.0)
    before = arrays(engine)
    engine.backward(global_loss(embed(engine)) * float("nan"))
    found: dict[str, Any] = {"refused": engine.step().fault}
    engine.scale.value = 2.0**60
    engine.backward(global_loss(embed(engine)))
    found["left out"] = engine.step().fault
    found.update({"scale": engine.scale.value, "untouched": not unlike(arrays(engine), before)})
    engine.scale.value = 2.0**10
    step(engine, 1.0)
    return {**found, "goes on": bool(unlike(arrays(engine), before)) or distributed.rank() > 0}


def overflow_in_full_precision(case: Case) -> dict[str, Any]:
    engine = make_engine(case)
    before = arrays(engine)
    vectors = embed(engine)
    steep = ((vectors - vectors.detach()) * 1e38).sum()  # zero, with a gradient that the network makes infinite
    engine.backward(steep)
    return {"said": engine.step().fault, "untouched": not unlike(arrays(engine), before)}


def poison(case: Case) -> dict[str, Any]:
    """Have one rank of three see what is not finite, in three places, after a step; take a step then."""
    engine = make_engine(case)
    step(engine, 1.0)
    before, said = arrays(engine), {}
    for where in ("vectors", "loss", "layer"):
        odd = distributed.rank() == 1
        local = images()[ROWS // 3 * distributed.rank() :][: ROWS // 3].clone()
        if odd and where == "vectors":
            local[0, 0, 3, 3] = torch.nan
        loss = global_loss(engine.embed(local, None))
        network = getattr(engine, "trained", engine.model)
        hook = network.head.embedding.bias.register_hook(lambda g: g * torch.inf) if odd and where == "layer" else None
        engine.backward(loss * torch.inf if odd and where == "loss" else loss)
        if hook is not None:
            hook.remove()
        said[where] = engine.step().fault
    untouched = not unlike(arrays(engine), before)
    step(engine, 1.0)
    return {**said, "untouched": untouched, "goes on": bool(unlike(arrays(engine), before)) or distributed.rank() > 0}


def differ(case: Case) -> list[bool]:
    """Flip a bit of one rank's weights, and of its moments where they are whole; return what is noticed."""
    engine = make_engine(case)
    step(engine, 1.0)
    engine.check_replicas(1)
    noticed = []
    for tensor in engine._replicas()[:1]:
        if distributed.rank() == 2:
            tensor.data.view(-1).view(torch.int32)[2] ^= 1
        try:
            engine.check_replicas(2)
            noticed.append(False)
        except ReplicasDiffer as error:
            noticed.append("at step 2 rank 2 held" in str(error))
    return noticed


def resume(name: str, saved: Arrays) -> Arrays:
    engine = make_engine(CASES[name])
    step(engine, 1.0)  # what is loaded replaces this
    engine.load_tensors({key: torch.from_numpy(value.copy()) for key, value in saved.items()})
    again = arrays(engine)
    for key, value in again.items():
        np.testing.assert_array_equal(value, saved[key], err_msg=key)
    step(engine, 0.5)
    return arrays(engine)


def resumes(pairs: list[tuple[str, Arrays]]) -> list[Arrays]:
    return [resume(name, saved) for name, saved in pairs]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Return what rank 0 saw of every case on three ranks."""
    return run_on_ranks(run_cases, 3)[0]


def assert_close(found: Arrays, expected: Arrays, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=tolerance * scale + 1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [(name, "ddp", 2e-4) for name, case in CASES.items() if case[:2] == ("fp32", "adam") and case[3] is not None]
    + [(f"zero {stage} sgd", "ddp sgd", 1e-4) for stage in (2, 3)]
    # Other layouts of the weights (DDP: channels last) round otherwise inside the network.
    + [(f"zero {stage} bf16", "ddp bf16", 5e-2) for stage in (1, 3)]
    + [(f"zero {stage} fp16", "ddp fp16", 5e-2) for stage in STAGES],
)
def test_steps_growth_and_checkpoints_are_those_of_ddp(
    results: dict[str, Any], name: str, reference: str, tolerance: float
) -> None:
    found, expected = results[name], results[reference]
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert len(set(found["losses"])) == 3
    for moment in ("before", "saved", "final"):
        assert_close(found[moment], expected[moment], tolerance)
    np.testing.assert_allclose(found["looked"], expected["looked"], atol=1e-3)
    assert any(key.startswith("optim/") for key in found["saved"])


@pytest.mark.parametrize("name", [f"zero {stage}" for stage in STAGES] + ["zero 3 cut small", "zero 3 sgd"])
def test_growth_moves_masters_and_moments_together(results: dict[str, Any], name: str) -> None:
    before, after = results[name]["before"], results[name]["saved"]
    kept = [i for i in range(13) if i not in RESET]
    moved = [key for key in before if "head.embedding" in key and before[key].ndim]
    assert len(moved) == (4 if "sgd" in name else 6)
    for key, old in before.items():
        if key not in moved:
            np.testing.assert_array_equal(after[key], old)
            continue
        np.testing.assert_array_equal(after[key][kept], old[PERMUTATION][kept])
        assert not np.array_equal(after[key][RESET], old[RESET])
        if key.startswith("optim/"):
            assert not after[key][RESET].any()


def test_lower_precisions_differ_from_float32_but_not_much(results: dict[str, Any]) -> None:
    for name in ("zero 1 bf16", "zero 3 fp16"):
        assert results[name]["losses"] != results["ddp"]["losses"]
        assert results[name]["losses"] == pytest.approx(results["ddp"]["losses"], rel=0.05)
    assert results["zero 3 fp16"]["saved"]["scale/good_steps"] == 2


def test_checkpoints_cross_engines_stages_and_numbers_of_ranks(results: dict[str, Any]) -> None:
    pairs = [("ddp", "zero 3"), ("ddp", "zero 1"), ("zero 0", "zero 2"), ("zero 1", "zero 3 cut small")]
    pairs += [("zero 2", "ddp"), ("zero 3", "ddp"), ("zero 3 cut small", "zero 1"), ("zero 3 offload", "zero 2")]
    pairs += [("ddp sgd", "zero 3 sgd"), ("zero 2 sgd", "ddp sgd"), ("ddp fp16", "zero 2 fp16")]
    pairs += [("zero 1 fp16", "zero 3 fp16")]
    found = run_on_ranks(resumes, 2, [(reader, results[writer]["saved"]) for reader, writer in pairs])[0]
    for (reader, _), final in zip(pairs, found, strict=True):
        reference = "ddp" + "".join(f" {word}" for word in ("sgd", "fp16") if word in reader)
        assert_close(final, results[reference]["final"], 5e-2 if "fp16" in reader else 3e-4)


def test_what_is_not_finite_is_never_applied(results: dict[str, Any]) -> None:
    for name, answers in results["disturbed"].items():
        expected = {"refused": "the loss", "left out": None, "scale": 2.0**59, "untouched": True, "goes on": True}
        assert answers == expected, name


def test_an_infinite_gradient_in_full_precision_is_reported(results: dict[str, Any]) -> None:
    for stage, answers in results["infinite"].items():
        assert answers == {"said": "the gradients", "untouched": True}, stage


def test_what_is_not_finite_on_one_rank_is_applied_on_none(results: dict[str, Any]) -> None:
    places = {"vectors": "the vectors of rank 1", "loss": "the loss on rank 1", "layer": "the gradients"}
    for name, answers in results["poisoned"].items():
        assert answers == {**places, "untouched": True, "goes on": True}, name


def test_a_flipped_bit_of_one_rank_is_noticed_wherever_the_ranks_hold_the_same(results: dict[str, Any]) -> None:
    assert results["different"] == {0: [True], 1: [True], 2: [True], 3: []}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zero_stage": 4}, "stages 0, 1, 2 and 3, got 4"),
        ({"zero_stage": 0, "offload": True}, "needs train.engine.zero_stage 1, 2 or 3"),
        ({"offload": "cpu"}, "true or false, got 'cpu'"),
        ({"persistence_threshold": -1}, "got -1"),
    ],
)
def test_options_are_checked_before_anything_starts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_zero(**options)
