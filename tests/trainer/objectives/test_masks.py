"""Learners that are masks: what they see, how they are divided, and what a checkpoint keeps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets
from trainer.objectives.masks import MaskedObjective
from trainer.optim import OPTIMISERS
from trainer.subspaces.partition import SubspacePartition

WHOLE = SubspacePartition((6,))

pytestmark = pytest.mark.usefixtures("alone")


def objective(penalty: float = 0.5) -> MaskedObjective:
    optimiser = partial(OPTIMISERS["adam"], weight_decay=0.0)
    return MaskedObjective(margin_loss, all_triplets, 0, 6, 4, optimiser, 0.1, penalty)


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    return vectors.requires_grad_(), torch.arange(4).repeat(2)


def trained(steps: int = 4) -> MaskedObjective:
    found = objective()
    found.divide([0, 0])
    for step in range(steps):
        vectors, labels = batch(step)
        (update,) = found.updates(vectors, labels, WHOLE, step % 2, step)
        update.loss.backward()
        found.step(1.0)
    return found


def test_a_learner_sees_the_masked_embedding() -> None:
    found, (vectors, labels) = objective(), batch()
    with torch.no_grad():
        found.masks[0] = torch.tensor([1.0, 0.5, -1.0, 0.0, 2.0, 1.0])
    seen = F.normalize(vectors * torch.tensor([1.0, 0.5, 0.0, 0.0, 2.0, 1.0]), dim=1)
    (update,) = found.updates(vectors, labels, WHOLE, 0, 0)
    torch.testing.assert_close(update.loss, margin_loss(seen, labels, all_triplets(seen, labels)))
    whole = F.normalize(vectors, dim=1)
    (update,) = found.updates(vectors, labels, WHOLE, None, 0)
    torch.testing.assert_close(update.loss, margin_loss(whole, labels, all_triplets(whole, labels)))
    update.loss.backward()
    assert found.masks.grad is None  # once masks are dropped they rest
    found.step(1.0)


def test_overlap_is_the_mean_cosine_of_two_masks() -> None:
    found = trained()
    found.divide([0, 1, 0])
    with torch.no_grad():
        found.masks[2] += torch.linspace(0, 1, 6)
    masks = [mask.relu() for mask in found.masks[:3].detach()]
    pairs = [F.cosine_similarity(masks[i], masks[j], dim=0) for i in range(3) for j in range(i)]
    torch.testing.assert_close(found.overlap().detach(), torch.stack(pairs).mean())


def test_children_start_with_the_mask_of_their_parent() -> None:
    found = trained()
    before = found.masks.detach().clone()
    assert not torch.equal(before[0], before[1])
    found.divide([1, 0, 1, 0])
    assert torch.equal(found.masks.detach(), before[[1, 0, 1, 0]])
    assert not [name for name in found.tensors() if name.startswith("loss_optim")]


def test_what_is_stored_goes_on_as_if_nothing_had_happened() -> None:
    one, other = trained(), objective()
    other.load_tensors({name: value.clone() for name, value in one.tensors().items()}, WHOLE)
    for found in (one, other):
        vectors, labels = batch(9)
        (update,) = found.updates(vectors, labels, WHOLE, 1, 9)
        update.loss.backward()
        found.step(1.0)
    assert other.num_active == 2
    assert torch.equal(one.masks, other.masks)
