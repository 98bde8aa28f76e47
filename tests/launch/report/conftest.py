"""One run of real digits, with shards, shared by the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.report.make_run import build_digit_shards, make_run

GROWTH = {2: [13, 19], 5: [13, 8, 11]}


@pytest.fixture(scope="session")
def digit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    build_digit_shards(root / "shards")
    return make_run(root / "digits", num_epochs=8, growth=GROWTH, shards=root / "shards")
