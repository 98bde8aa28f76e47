"""Shards that all whole runs share, and what none of them may leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.build import build
from tests.runs import assert_nothing_left


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of scikit-learn's digits at 16 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "digits16"
    build("digits", folder, size=16)
    return folder


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """See after each file, and after its clusters have ended, that no process and no temporary file is left."""
    yield
    assert_nothing_left()
