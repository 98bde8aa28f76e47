"""Prior masks: drawn and from a folder, keyed by step and place, binary, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.errors import UserError
from launch.priors import shape_priors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, shape in enumerate([(80, 60), (50, 50)]):
        mask = np.zeros(shape, dtype=np.uint8)
        mask[10:30, 20 : 24 + 6 * number] = 255
        Image.fromarray(mask).save(masks / f"{number}.png")
    return masks


@pytest.mark.parametrize("name", ["vessels", "discs", "folder"])
def test_masks_are_binary_and_depend_on_step_and_place_alone(name: str, folder: Path) -> None:
    priors = shape_priors(str(folder) if name == "folder" else name, 64, seed=3)
    whole = priors(5, np.arange(6))
    assert whole.shape == (6, 64, 64) and set(whole.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(
        shape_priors(str(folder) if name == "folder" else name, 64, seed=3)(5, np.array([4, 1])), whole[[4, 1]]
    )
    assert not torch.equal(priors(6, np.arange(6)), whole)
    assert len({mask.numpy().tobytes() for mask in whole}) == 6
    again = shape_priors(str(folder) if name == "folder" else name, 64, seed=4)
    assert not torch.equal(again(5, np.arange(6)), whole)


def test_a_drawn_mask_is_shown_from_its_eight_sides() -> None:
    priors, places = shape_priors("vessels", 64, seed=3), np.arange(2)
    views = [priors(step, places)[1] for step in range(8)]
    whole = {
        np.rot90(side, turn).tobytes() for side in (views[0].numpy(), views[0].numpy()[:, ::-1]) for turn in range(4)
    }
    assert {view.numpy().tobytes() for view in views} == whole and len(whole) == 8
    assert priors(8, places)[1].numpy().tobytes() not in whole


def test_drawn_vessels_take_the_share_that_is_asked_for() -> None:
    shares = shape_priors("vessels", 64, 0, (0.15, 0.2))(0, np.arange(12)).mean(dim=(1, 2))
    assert float(shares.min()) >= 0.15 and float(shares.max()) <= 0.2
    for name, share in (
        ("discs", (0.1, 0.2)),
        ("vessels", (0.2, 0.1)),
        ("vessels", (0.1, 0.9)),
        ("vessels", (0.1, 0.11)),
    ):
        with pytest.raises(UserError, match=r"shape\.share"):
            shape_priors(name, 64, 0, share)


def test_what_is_no_prior_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="neither vessels nor discs nor a folder"):
        shape_priors("vesels", 64, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no masks"):
        shape_priors(str(tmp_path / "empty"), 64, 0)
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.png"):
        shape_priors(str(folder), 64, 0)
