"""Who may ask what listens on a port."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from launch.listening import Address, bound, brings, check_address, is_for_loopback, is_loopback, token_of, told


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:6379", "localhost", "[::1]:6379", "http://127.0.0.1:8265"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["192.0.2.7:6379", "0.0.0.0:6379", "http://192.0.2.7:8265", "auto", "", "no.such.invalid"]
)
def test_other_addresses(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no such host"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(UserError, match=r"lets other machines look; set a token with --token-env"):
        check_address(Address(host, 0), "look")
    check_address(Address(host, 0, "a token of some length"), "look")
    check_address(Address("127.0.0.1"), "look")


def test_a_token_has_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_of(None) == ""
    monkeypatch.setenv("SEARCH_TOKEN", "short")
    for variable in ("SEARCH_TOKEN", "NO_SUCH_TOKEN"):
        with pytest.raises(UserError, match=variable):
            token_of(variable)
    monkeypatch.setenv("SEARCH_TOKEN", "0123456789abcdef")
    assert token_of("SEARCH_TOKEN") == "0123456789abcdef"
    assert "0123456789" not in repr(Address(token=token_of("SEARCH_TOKEN")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "[::1]:80", "LOCALHOST"])
def test_hosts_of_this_machine(host: str) -> None:
    assert is_for_loopback(host)


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::1", "user@evil.example"])
def test_other_hosts(host: str) -> None:
    assert not is_for_loopback(host)


def test_a_token_is_brought_whole() -> None:
    assert brings("", "")
    assert brings("secret", "Bearer secret")
    assert brings("secret", "bearer secret")
    for header in ("", "secret", "Basic secret", "Bearer secre", "Bearer secret ", "Bearer sécret"):
        assert not brings("secret", header)


def test_a_place_that_is_taken_is_one_sentence() -> None:
    with bound(Address(port=0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert told(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"), bound(Address(port=port)):
            pass
    with pytest.raises(UserError, match="cannot listen on no such host"), bound(Address("no such host")):
        pass
