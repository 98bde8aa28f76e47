"""A part of a training split: nested, of every class, known by sample ids alone."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.build import build
from data_shards.quarantine import TrainingReader
from data_shards.reader import SplitReader, open_shards
from data_shards.subset import part_of

FRACTIONS = (0.01, 0.2, 0.4, 0.6, 0.8, 1.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 3))
def test_parts_are_nested_and_of_every_class(labels_given: list[int], seed: int) -> None:
    labels = np.array(labels_given, dtype=np.int32)
    ids = np.arange(len(labels), dtype=np.int64) * 7 + 3
    inner: set[int] = set()
    for fraction in FRACTIONS:
        rows = part_of(labels, ids, fraction, seed)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert inner <= set(rows.tolist())
        inner = set(rows.tolist())
        for name in set(labels_given):
            there, kept = (labels == name).sum(), (labels[rows] == name).sum()
            assert kept >= min(2, there)
            assert abs(kept - fraction * there) <= 0.5 or kept == min(2, there)
    assert rows.tolist() == list(range(len(labels)))


def test_an_image_is_chosen_by_its_sample_id_wherever_it_stands() -> None:
    labels, ids = np.arange(60, dtype=np.int32) % 3, np.arange(60, dtype=np.int64)
    order = np.random.default_rng(0).permutation(60)
    chosen = {seed: set(ids[part_of(labels, ids, 0.3, seed)].tolist()) for seed in (0, 1)}
    assert set(ids[order][part_of(labels[order], ids[order], 0.3, 0)].tolist()) == chosen[0] != chosen[1]


def part(folder: Path, fraction: float, seed: int = 0) -> SplitReader:
    return open_shards(folder).split("train", partial(TrainingReader, fraction=fraction, seed=seed))


def test_a_reader_of_a_part_gives_the_images_of_its_sample_ids(digits: Path) -> None:
    whole, reader = open_shards(digits).split("train"), part(digits, 0.1)
    row_of = {sample: row for row, sample in enumerate(whole.sample_ids.tolist())}
    rows = np.array([row_of[sample] for sample in reader.sample_ids.tolist()])
    assert len(reader) == len(rows) < 0.11 * len(whole)
    for one in (reader, pickle.loads(pickle.dumps(reader))):
        assert np.array_equal(one.images(range(len(one))), whole.images(rows))
        assert np.array_equal(one.image(5), whole.image(rows[5]))
        assert [one.path(5), one.labels[5], one.groups[5]] == [whole.path(rows[5]), whole.labels[rows[5]], ""]
    assert len(part(digits, 1.0)) == len(whole)


def test_masks_and_factors_follow(tmp_path: Path) -> None:
    build("phantoms", tmp_path / "shards", size=16, options={"num_samples": 60})
    whole, reader = open_shards(tmp_path / "shards").split("train"), part(tmp_path / "shards", 0.3)
    row_of = {sample: row for row, sample in enumerate(whole.sample_ids.tolist())}
    for row, sample in enumerate(reader.sample_ids.tolist()):
        assert all(values[row] == whole.factors[name][row_of[sample]] for name, values in reader.factors.items())
    masked = reader.masked_rows().tolist()
    assert masked and reader.has_masks and max(masked) < len(reader)
    for row in masked:
        assert np.array_equal(reader.mask(row), whole.mask(row_of[int(reader.sample_ids[row])]))
