"""The bitwise levels of deterministic runs: the same bytes again, for any number of ranks and of k-means actors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Recorder
from tests.faults.whole import local, same, train
from tests.runs import content_hash, events, status, subspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.matrix
def test_b0_the_same_run_again(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    done = subspace(*local(digits, run))
    assert done.returncode == 0, done.stderr
    record("B0", "nothing: two runs of two ranks", bitwise=same(run, undisturbed), hash=content_hash(run)[:12])


@pytest.mark.matrix
@pytest.mark.parametrize("num_ranks", [1, 3, 4])
def test_b2_other_numbers_of_ranks(
    num_ranks: int, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    run = tmp_path / "run"
    done = subspace(*local(digits, run, "--nproc", str(num_ranks)))
    assert done.returncode == 0, done.stderr
    assert status(run)["world_size"] == num_ranks
    assert status(undisturbed)["world_size"] == 2
    bitwise = same(run, undisturbed)
    record("B2", f"{num_ranks} ranks instead of 2, four logical pieces", bitwise=bitwise, hash=content_hash(run)[:12])


@pytest.mark.matrix
@pytest.mark.parametrize("num_actors", [1, 3])
def test_b3_other_numbers_of_actors(
    num_actors: int, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    run = tmp_path / "run"
    done = subspace(*train(digits, run, f"cluster.num_shards={num_actors}", "evaluate.nmi_seeds=1"))
    assert done.returncode == 0, done.stderr
    assert len(events(run, "recluster")) == 1
    record(
        "B3", f"{num_actors} Ray actors instead of none", bitwise=same(run, undisturbed), hash=content_hash(run)[:12]
    )
