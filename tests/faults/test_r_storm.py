"""A short storm of faults; `make soak` makes a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Recorder
from tests.faults.soak import soak

MINUTES = 2.0


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_r3_fault_storm(tmp_path: Path, record: Recorder) -> None:
    found = soak(tmp_path, MINUTES, seed=0)
    record("R3", "fault storm", **found)
    assert found["faults"] > 0
    assert found["bitwise"]
    assert found["manual_interventions"] == 0
    assert found["leaks"] == 0
