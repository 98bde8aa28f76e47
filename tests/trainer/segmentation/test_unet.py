"""The U-Net: keyed from start to end, and it learns the labels that it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.evaluation import mask_views
from data_shards.reader import ShardFolder, SplitReader
from trainer.segmentation.unet import UNetOptions, batches, flipped, probabilities, train_unet, unet, weighted_loss

CONFIG = AugmentConfig(size=32)
CPU = torch.device("cpu")
SMALL = UNetOptions(epochs=2, batch_size=8, widths=(4, 4, 8, 8, 8, 4))


def test_start_weights_are_keyed_and_of_the_right_size() -> None:
    torch.manual_seed(0)
    one = unet(3, UNetOptions()).state_dict()
    torch.manual_seed(1)
    two, other = unet(3, UNetOptions()).state_dict(), unet(3, UNetOptions(seed=1)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    weights = [name for name in one if one[name].ndim == 4 and one[name].numel() > 100]
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    for name in weights:
        taps = 1 if "deconv" in name else one[name][0, 0].numel()
        inputs = one[name].shape[0 if "deconv" in name else 1]
        assert float(one[name].std()) == pytest.approx((2 / (inputs * taps)) ** 0.5, rel=0.25), name


@pytest.mark.parametrize("size", [16, 28, 50, 64])
def test_any_size_from_16_pixels_on(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert unet(1, SMALL)(torch.randn(2, 1, size, size)).shape == (2, 1, size, size)
    assert not capsys.readouterr().out


def test_every_image_comes_once_an_epoch_flipped_by_its_own_key() -> None:
    ids = np.arange(21) * 7 + 3
    epochs: list[dict[int, tuple[bool, bool]]] = [{}, {}]
    for progress, places, flips in batches(21, ids, SMALL):
        assert 6 <= len(places) <= 8
        for place, flip in zip(places.tolist(), flips.tolist(), strict=True):
            assert place not in epochs[int(progress)]
            epochs[int(progress)][place] = tuple(flip)
    assert [sorted(e) for e in epochs] == [list(range(21))] * 2
    assert list(epochs[0]) != list(epochs[1])
    assert epochs[0] != epochs[1]
    alone = next(iter(batches(1, ids[4:5], SMALL)))
    assert tuple(alone[2][0].tolist()) == epochs[0][4]


def test_images_and_labels_are_flipped_alike() -> None:
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    flips = torch.tensor([[True, False], [True, True]])
    found = flipped(images, flips)
    assert torch.equal(found[0], images[0].flip(-1))
    assert torch.equal(found[1], images[1].flip(-1).flip(-2))
    assert torch.equal(flipped(images[:, 0], flips), found[:, 0])


def test_it_learns_what_it_is_told_without_a_look_at_true_masks(
    phantoms: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = phantoms.split("train"), phantoms.split("test")
    rows, true = np.arange(len(train)), mask_views(test, np.arange(len(test)), CONFIG)
    masks = torch.from_numpy(mask_views(train, rows, CONFIG))
    monkeypatch.setattr(SplitReader, "mask", lambda *_: pytest.fail("a mask was read"))
    options = UNetOptions(epochs=10, batch_size=8, widths=(8, 8, 16, 16, 16, 8))
    for sign in (True, False):  # the lesion, or what is around it
        network = train_unet(train, rows, lambda places, s=sign: masks[places] == s, CONFIG, options, CPU)
        maps = probabilities(network, CONFIG, CPU)(test, np.arange(len(test)))(slice(None)).numpy()
        predicted = (maps >= 0.5) == sign
        dice = 2 * (predicted & true).sum((1, 2)) / (predicted.sum((1, 2)) + true.sum((1, 2)))
        assert dice.mean() > 0.8


def test_equal_seeds_equal_networks(phantoms: ShardFolder) -> None:
    train, rows = phantoms.split("train"), np.arange(16)

    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 5)
        options = UNetOptions(1, 8, widths=(4, 4, 8, 8, 8, 4), seed=seed)
        network = train_unet(train, rows, lambda p: torch.ones(len(p), 32, 32), CONFIG, options, CPU)
        return torch.cat([p.detach().ravel() for p in network.parameters()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_images_too_small_are_refused(phantoms: ShardFolder) -> None:
    with pytest.raises(UserError, match="16 pixels at least"):
        train_unet(
            phantoms.split("train"), np.arange(2), lambda p: torch.ones(2, 8, 8), AugmentConfig(size=8), SMALL, CPU
        )


def test_pixels_without_weight_have_no_part_in_the_loss() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    weights = torch.ones_like(masks)
    weights[..., 2:] = 0
    half = weighted_loss(logits[..., :2], masks[..., :2], weights[..., :2])
    torch.testing.assert_close(weighted_loss(logits, masks, weights), half)
    logits.requires_grad_()
    weighted_loss(logits, masks, weights).backward()
    assert logits.grad is not None and float(logits.grad[..., 2:].abs().max()) == 0
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[..., :2], masks[..., :2])
    p, g = logits[..., :2].sigmoid(), masks[..., :2]
    dice = 2 * (p * g).sum(dim=(1, 2, 3)) / (p + g).sum(dim=(1, 2, 3))
    torch.testing.assert_close(half, entropy + (1 - dice).mean(), atol=1e-5, rtol=1e-4)
