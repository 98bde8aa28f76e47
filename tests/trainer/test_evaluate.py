"""Which images are left out of whose gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate import has_relevant, owners
from trainer.metrics.retrieval import query_scores


@dataclass
class Reader:
    """What is used of a split."""

    paths: list[str]
    groups: Any = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> str:
        return self.paths[row]


def test_groups_are_the_column_and_scans_the_files_that_patches_were_cut_from() -> None:
    paths = ["a/scan3.tif#x=2000,y=0", "a/scan3.tif#x=0,y=0", "a/scan3.tif", "b/scan3.tif#x=0,y=0"]
    reader: Any = Reader(paths, np.array(["p", "", "p", "q"], dtype=object))
    found = owners(reader, "scan")
    assert found is not None
    assert found.tolist() == ["a/scan3.tif", "a/scan3.tif", "a/scan3.tif", "b/scan3.tif"]
    assert np.array_equal(owners(reader, "group"), reader.groups)  # type: ignore[arg-type]
    assert owners(reader, "none") is None


@pytest.mark.parametrize("grouped", [False, True])
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "b"])), min_size=2, max_size=20))
def test_queries_that_have_something_to_find_are_those_that_are_scored(grouped: bool, pairs: list[Any]) -> None:
    labels, groups = np.array([label for label, _ in pairs]), np.array([group for _, group in pairs])
    given_groups = groups if grouped else None
    scored = query_scores(np.eye(len(pairs)), labels, groups=given_groups)["num_relevant"] > 0
    assert np.array_equal(has_relevant(labels, given_groups), scored)
