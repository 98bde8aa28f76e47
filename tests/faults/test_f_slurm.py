"""A real Slurm takes nodes away in mid-epoch: the tests of tests/whole/test_slurm.py, for the record."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from tests import slurm_site
from tests.faults.conftest import Recorder
from tests.runs import events
from tests.slurm_site import Site
from tests.whole import test_slurm as whole
from tests.whole.test_slurm import at_its_limit, site, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.site, pytest.mark.matrix, pytest.mark.timeout(1800)]
FIXTURES = (site, at_its_limit, undisturbed)


@pytest.fixture(scope="module", autouse=True)
def _slurm(record: Recorder) -> None:
    if slurm_site.missing():
        record.impossible("F9", f"no Slurm here: {', '.join(slurm_site.missing())} missing")


def test_f9_requeue(site: Site, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    whole.test_requeue_in_mid_epoch(site, digits, undisturbed, tmp_path)
    [stop] = events(tmp_path / "run", "preempted")
    record("F9", "requeued by a real Slurm in mid-epoch", injected_at_step=stop["step"], steps_lost=0, bitwise=True)


def test_f9_time_limit(site: Site, at_its_limit: tuple[Future[str], Path], undisturbed: Path, record: Recorder) -> None:
    whole.test_time_limit_in_mid_epoch(site, at_its_limit, undisturbed)
    [stop] = events(at_its_limit[1], "preempted")
    record("F9", "met the time limit of a real Slurm", injected_at_step=stop["step"], steps_lost=0, bitwise=True)
