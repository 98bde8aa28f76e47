"""The four top-level packages have plain names: no other distribution may own one of them here."""

from __future__ import annotations

from importlib import import_module, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["data_shards", "cluster", "trainer", "launch"])
def test_package_is_ours(name: str) -> None:
    found = import_module(name).__file__
    assert found is not None
    assert Path(found).parent == ROOT / name
    owners = set(metadata.packages_distributions().get(name, []))
    assert owners <= {"subspace-trainer"}
