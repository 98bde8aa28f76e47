"""One-shot localisation: the bell, descriptions by a slow loop, and landmarks found where they were moved to."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from trainer.localisation import Window, described, likeness, peaks


def test_the_bell_sums_to_one_and_is_highest_in_its_middle() -> None:
    weights = Window(9, 2.0).weights()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(weights, weights.flip(0)) and int(weights.argmax()) == 4
    assert (Window.for_image(448).size, Window.for_image(16).size, Window.for_image(448).sigma) == (57, 3, 57 / 4)


def test_descriptions_are_weighted_means_over_the_window() -> None:
    vectors, window = normalize(torch.randn(1, 3, 7, 6), dim=1), Window(5, 1.3)
    found, weights = described(vectors, window)[0], window.weights()
    for y, x in ((0, 0), (3, 2), (6, 5), (1, 4)):
        total = torch.zeros(3)
        for j in range(5):
            for i in range(5):
                row, column = y + j - 2, x + i - 2
                if 0 <= row < 7 and 0 <= column < 6:
                    total += weights[j] * weights[i] * vectors[0, :, row, column]
        torch.testing.assert_close(found[:, y, x], normalize(total, dim=0))


def test_landmarks_are_found_where_the_picture_was_moved_to() -> None:
    torch.manual_seed(0)
    scene = normalize(torch.randn(4, 40, 40), dim=0)
    points = torch.tensor([[12, 20], [22, 9]])
    moved = torch.stack([torch.roll(scene, (dy, dx), (1, 2)) for dx, dy in ((0, 0), (5, -3), (-4, 7))])
    maps = likeness(scene, points, moved, Window(9, 9 / 4))
    assert maps.shape == (3, 2, 40, 40) and float(maps.max()) <= 1 + 1e-5
    found = peaks(maps)
    for n, shift in enumerate(((0, 0), (5, -3), (-4, 7))):
        assert torch.equal(found[n], points + torch.tensor(shift))
    assert float(maps[0, 0, 20, 12]) == pytest.approx(1, abs=1e-5)


def test_a_point_outside_is_refused() -> None:
    scene = normalize(torch.randn(2, 8, 8), dim=0)
    for point in ([8, 0], [0, -1]):
        with pytest.raises(ValueError, match="outside of the 8 x 8"):
            likeness(scene, torch.tensor([point]), scene[None], Window(3, 1.0))
