"""Bands of the growth picture: they tile the embedding at every moment."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launch.report import lineage


def growth(epoch: int, widths: list[int], **more: Any) -> dict[str, Any]:
    return {"event": "growth", "epoch": epoch, "widths": widths, "num_subspaces": len(widths), **more}


def test_widths_before_the_first_growth_are_those_of_the_parent_whole() -> None:
    events = [growth(6, [20, 12], decision_id="a"), growth(9, [15, 12, 5], decision_id="b", parent=0)]
    assert lineage.partitions(events, None) == [(0.0, (32,)), (7.0, (20, 12)), (10.0, (15, 12, 5))]
    first, second = lineage.splits(events)
    assert (first.parent, first.child, first.kept, first.given) == (0, 1, 20, 12)  # without a name: the tail is split
    assert (second.parent, second.child, second.kept, second.given) == (0, 2, 15, 5)


def test_a_decision_logged_again_after_a_restart_counts_once() -> None:
    events = [growth(6, [20, 12], decision_id="a")] * 2
    assert len(lineage.splits(events)) == 1
    assert len(lineage.partitions(events, None)) == 2


def test_rollback_gives_the_dimensions_back() -> None:
    events = [growth(6, [20, 12], decision_id="a")]
    events.append({"event": "rollback", "epoch": 8, "decision_id": "a", "widths": [32]})
    assert lineage.partitions(events, None) == [(0.0, (32,)), (7.0, (20, 12)), (9.0, (32,))]
    assert [s.undone for s in lineage.splits(events)] == [True]


def test_without_growth_the_final_widths_last_all_the_time() -> None:
    assert lineage.partitions([], [16, 16]) == [(0.0, (16, 16))]
    assert lineage.partitions([], None) == []
    assert [(b.low, b.width, b.end) for b in lineage.bands([(0.0, (16, 16))], 5)] == [(0, 16, 5), (16, 16, 5)]


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.1, 0.9)), max_size=6))
def test_bands_tile_the_embedding_at_every_moment(steps: list[tuple[int, float]]) -> None:
    widths, epoch, events = [128], 0, []
    for gap, share in steps:
        epoch += gap
        if widths[-1] < 3:
            break
        kept = int(np.clip(round(share * widths[-1]), 1, widths[-1] - 1))
        widths = [*widths[:-1], kept, widths[-1] - kept]
        events.append(growth(epoch, widths, decision_id=str(epoch)))
    drawn = lineage.bands(lineage.partitions(events, widths), epoch + 3)
    for moment in np.arange(0, epoch + 3) + 0.5:
        alive = sorted((b for b in drawn if b.start <= moment < b.end), key=lambda b: b.low)
        assert [b.low for b in alive] == np.cumsum([0, *(b.width for b in alive)])[:-1].tolist()
        assert sum(b.width for b in alive) == 128
        assert [b.subspace for b in alive] == list(range(len(alive)))
