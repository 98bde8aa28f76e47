"""Shards that all whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.build import build


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of scikit-learn's digits at 16 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "digits16"
    build("digits", folder, size=16)
    return folder
