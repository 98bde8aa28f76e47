"""What no whole run may leave behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runs import assert_nothing_left


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """See after each file, and after its clusters have ended, that no process and no temporary file is left."""
    yield
    assert_nothing_left()
