"""Values of single images: against the scores of the run, kept in a file that is never stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from data_shards.errors import DataIntegrityError, UserError
from launch.compare.cells import Cell, cells
from launch.compare.queries import Queries, expected_information, read_queries
from launch.compare.sweep_file import read_sweep
from launch.config import dump_config
from tests.launch.compare.make_sweep import complete, write_evaluation, write_sweep


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    path = write_sweep(tmp_path)
    first = cells(read_sweep(path), path, tmp_path / "out")[0]
    complete(first)
    return first


def told(run: Path) -> tuple[Queries, list[str]]:
    lines: list[str] = []
    return read_queries(run, "test", lines.append), lines


def test_means_are_the_scores_of_the_run(cell: Cell) -> None:
    found, _ = told(cell.run)
    scores = json.loads((cell.run / "evaluation/test.json").read_text())
    for k in (1, 2, 4, 8):
        assert found.values[f"recall_{k}"][found.asked].mean() == pytest.approx(scores["recall"][str(k)])
    assert found.values["map_at_r"][found.asked].mean() == pytest.approx(scores["map_at_r"])
    assert int((~found.asked).sum()) == scores["num_lone_queries"]
    nmi = [normalized_mutual_info_score(found.labels, each) for each in found.clusters]
    assert np.mean(nmi) == pytest.approx(scores["nmi"]["mean"])
    assert len(nmi) == cell.config.evaluate.nmi_seeds


def test_chance_is_what_ami_subtracts() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    entropies = [-sum(p * np.log(p) for p in np.bincount(each) / 50) for each in (labels, clusters)]
    mutual, mean = normalized_mutual_info_score(labels, clusters) * np.mean(entropies), np.mean(entropies)
    chance = expected_information(labels, clusters)
    assert (mutual - chance) / (mean - chance) == pytest.approx(adjusted_mutual_info_score(labels, clusters))


def test_values_are_kept_until_the_vectors_change(cell: Cell) -> None:
    first, lines = told(cell.run)
    assert len(lines) == 1
    again, lines = told(cell.run)
    assert lines == []
    for name, value in first.values.items():
        np.testing.assert_array_equal(value, again.values[name])
    np.testing.assert_array_equal(first.clusters, again.clusters)
    np.testing.assert_array_equal(first.asked, again.asked)
    write_evaluation(cell.run, "test", noise=2.0, size=120, draw=5)
    changed, lines = told(cell.run)
    assert len(lines) == 1
    assert not np.array_equal(changed.values["map_at_r"], first.values["map_at_r"])
    assert len(list((cell.run / "evaluation").glob("*-queries-*"))) == 1


def test_a_kept_file_that_was_cut_short_is_made_again(cell: Cell) -> None:
    first, _ = told(cell.run)
    (kept,) = (cell.run / "evaluation").glob("*-queries-*")
    kept.write_bytes(kept.read_bytes()[:100])
    again, lines = told(cell.run)
    assert len(lines) == 1
    np.testing.assert_array_equal(first.values["recall_1"], again.values["recall_1"])


def test_missing_and_forged_vectors_are_named(cell: Cell) -> None:
    source = cell.run / "evaluation/test.safetensors"
    arrays = load_file(source)
    save_file({**arrays, "labels": arrays["labels"][:-1].copy()}, source)
    with pytest.raises(DataIntegrityError, match=r"test\.safetensors"):
        told(cell.run)
    source.unlink()
    with pytest.raises(DataIntegrityError, match="is missing"):
        told(cell.run)


def test_groups_are_those_of_the_shards(cell: Cell, digits: Path) -> None:
    """The digits have no groups, so excluding them changes nothing; other images than the run's are refused."""
    from data_shards.reader import open_shards
    from trainer.metrics.retrieval import retrieval_scores

    data = cell.config.data.model_copy(update={"shards": str(digits)})
    evaluation = cell.config.evaluate.model_copy(update={"exclude": "group"})
    config = cell.config.model_copy(update={"data": data, "evaluate": evaluation})
    (cell.run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match="does not hold the test images"):
        told(cell.run)
    reader = open_shards(digits, verify=False).split("test")
    size = len(reader)
    vectors = np.random.default_rng(0).standard_normal((size, 4)).astype(np.float32)
    arrays = {"vectors": vectors, "labels": np.asarray(reader.labels, np.int64)}
    save_file(
        {**arrays, "sample_ids": np.asarray(reader.sample_ids, np.int64)}, cell.run / "evaluation/test.safetensors"
    )
    found, _ = told(cell.run)
    expected = retrieval_scores(vectors, reader.labels, groups=np.asarray(reader.groups))
    assert found.values["map_at_r"].mean() == pytest.approx(expected["map_at_r"])
