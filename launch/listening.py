"""Who may ask what listens on a port: this machine without a token, everybody else with it.

Without a token only requests for a loopback host are answered, so that a web site whose name is pointed at 127.0.0.1
reads nothing with the browser of whoever visits it.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from data_shards.errors import UserError

MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Address:
    """Where to listen, and the token that requests need; "" is none."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)


def token_of(variable: str | None) -> str:
    """Return the token in an environment variable. Raises UserError when it is not there, or too short to be one."""
    if variable is None:
        return ""
    token = os.environ.get(variable, "")
    if len(token) < MIN_TOKEN_LENGTH:
        raise UserError(
            f"the environment variable {variable} must hold a token of at least {MIN_TOKEN_LENGTH} characters"
        )
    return token


def check_port(port: int) -> None:
    """Raise UserError for what is no port."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port must be 0 to 65535, got {port}")


def check_address(address: Address, do: str) -> None:
    """Raise UserError for a place where others could `do` something without a token."""
    if not address.token and not is_loopback(address.host):
        raise UserError(
            f"--host {address.host} lets other machines {do}; set a token with --token-env NAME, or use 127.0.0.1"
        )


def is_loopback(address: str) -> bool:
    """Return whether only processes of this machine reach HOST, HOST:PORT or a URL of it; False when in doubt."""
    host = urlsplit(address if "//" in address else f"//{address}").hostname
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)} if host else set()
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(ip).is_loopback for ip in found)


def is_for_loopback(host_header: str) -> bool:
    """Return whether a request names this machine by a name that nobody else can give it."""
    try:
        host = urlsplit(f"//{host_header}").hostname
    except ValueError:
        return False
    return host in ("127.0.0.1", "localhost", "::1")


def brings(token: str, authorization: str) -> bool:
    """Return whether a request's Authorization header holds the token, where one is wanted."""
    kind, _, given = authorization.partition(" ")
    return not token or (kind.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode()))


def page_rules(nonce: str) -> str:
    """Return the Content-Security-Policy of a page whose own script and style bear `nonce`, and nothing else runs."""
    rules = f"default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
    return rules + f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@contextmanager
def bound(address: Address) -> Iterator[socket.socket]:
    """Bind now, so that a place that is taken costs a sentence before anything is started; nobody is let in yet."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"cannot listen on {address.host}: {error.strerror}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
        except OSError as error:
            raise UserError(f"cannot listen on {address.host}:{address.port}: {error.strerror}") from None
        yield listener


def told(listener: socket.socket) -> str:
    """Return the address of a listener as people open it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
