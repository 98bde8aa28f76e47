"""What decides whether a Ray may be started or joined."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from launch.services import is_loopback, refuse_open_ray


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:6379", "localhost", "[::1]:6379", "http://127.0.0.1:8265"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["192.0.2.7:6379", "0.0.0.0:6379", "http://192.0.2.7:8265", "auto", "", "no.such.invalid"]
)
def test_other_addresses(address: str) -> None:
    assert not is_loopback(address)


def test_open_ray_is_refused_off_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    refuse_open_ray("127.0.0.1:6379")
    with pytest.raises(UserError, match=r"Ray at 192\.0\.2\.7:6379 would let anybody .* set RAY_AUTH_MODE=token"):
        refuse_open_ray("192.0.2.7:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    refuse_open_ray("192.0.2.7:6379")
    monkeypatch.delenv("RAY_AUTH_MODE")
    refuse_open_ray("192.0.2.7:6379")
