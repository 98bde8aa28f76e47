"""The hash of what must stay the same when a run goes on."""

from __future__ import annotations

from typing import Any

import pytest

from launch.config import checked
from launch.run_folder import config_hash

DATA = {"shards": "somewhere", "image_size": 32}


def hashed(**sections: Any) -> str:
    return config_hash(checked({"data": DATA, **sections}, "it"))


def test_settings_at_their_defaults_do_not_count_so_that_new_ones_may_come() -> None:
    assert hashed(train={"batch_size": 32}) != hashed(train={"batch_size": 64})
    default = checked({"data": DATA}, "it").train.batch_size
    assert hashed(train={"batch_size": default}) == hashed()


@pytest.mark.parametrize(
    ("section", "same"),
    [
        ({"launch": {"threads": 2}}, True),
        ({"cluster": {"num_shards": 3}}, True),
        ({"optim": {"lr": 0.123}}, False),
        ({"seed": 7}, False),
        ({"objective": {"loss": {"name": "ContrastiveLoss"}}}, False),
    ],
)
def test_what_a_run_does_counts_and_where_it_does_it_does_not(section: dict[str, Any], same: bool) -> None:
    assert (hashed(**section) == hashed()) == same
