"""What decides whether a Ray may be started or joined."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from launch.services import refuse_open_ray


def test_open_ray_is_refused_off_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    refuse_open_ray("127.0.0.1:6379")
    with pytest.raises(UserError, match=r"Ray at 192\.0\.2\.7:6379 would let anybody .* set RAY_AUTH_MODE=token"):
        refuse_open_ray("192.0.2.7:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    refuse_open_ray("192.0.2.7:6379")
    monkeypatch.delenv("RAY_AUTH_MODE")
    refuse_open_ray("192.0.2.7:6379")
