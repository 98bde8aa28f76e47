"""The dashboard over HTTP, with Python's own server: it reads, and answers GET only.

    GET /               the page, which holds no data
    GET /api/runs       {"root", "runs": rows of launch/dashboard/runs.py}
    GET /api/curves     ?run=NAME&run=NAME  {"curves": {name: curves of launch/dashboard/curves.py}}

Names are looked up among the runs that were found, never joined to a path.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from data_shards.errors import UserError
from launch.dashboard import page
from launch.dashboard.runs import Shelf
from launch.listening import Address, bound, brings, check_address, is_for_loopback, page_rules, told

MAX_CURVES = 12  # of a request
MAX_CONNECTIONS = 64
TIMEOUT_S = 30.0


def serve(root: Path, address: Address) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: no such folder, an address that others reach without a token, or one that is taken.
    """
    check_address(address, "look")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the runs")
    with bound(address) as listener, Server(listener, Shelf(root), address.token) as server:
        print(f"dashboard at {told(listener)}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class Server(ThreadingHTTPServer):
    """Answers on a bound socket; a connection more than `MAX_CONNECTIONS` is closed at once."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, shelf: Shelf, token: str) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.shelf, self.token = shelf, token
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there is room."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone away."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answer."""
        if {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers}:
            self.close_connection = True  # a body is not read: it must not be taken for another request
        path, _, query = self.path.partition("?")
        refusal = self._refusal(path)
        if refusal is not None:
            self._send_json({"detail": refusal[1]}, refusal[0])
        elif path == "/":
            self._send_page()
        elif path == "/api/runs":
            self._send_json({"root": self.server.shelf.root.resolve().name, "runs": self.server.shelf.rows()})
        else:
            self._send_curves([name for key, name in _words(query) if key == "run"])

    def _refusal(self, path: str) -> tuple[int, str] | None:
        """Return the status and the sentence of what is not answered."""
        token = self.server.token
        if not token and not is_for_loopback(self.headers.get("host", "")):
            return 403, "this dashboard answers requests for a loopback host only; it has no token"
        if path not in ("/", "/api/runs", "/api/curves"):
            return 404, "there is only /, /api/runs and /api/curves"
        if path != "/" and not brings(token, self.headers.get("authorization", "")):
            return 401, "send the token of this dashboard: Authorization: Bearer TOKEN"
        return None

    def _send_curves(self, names: list[str]) -> None:
        if len(names) > MAX_CURVES:
            self._send_json({"detail": f"at most {MAX_CURVES} runs are compared"}, 400)
            return
        found = {name: self.server.shelf.curves(name) for name in names}
        self._send_json({"curves": {name: curves for name, curves in found.items() if curves is not None}})

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        content = page.render(self.server.shelf.root.resolve().name, bool(self.server.token), nonce)
        self._send(content.encode(), "text/html; charset=utf-8", 200, {"Content-Security-Policy": page_rules(nonce)})

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value, allow_nan=False).encode(), "application/json", status, {})

    def _send(self, content: bytes, kind: str, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        own = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        length = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in {**length, **own, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what Python's server refuses: other methods, what is no HTTP."""
        self.close_connection = True
        code, sentence = (405, "only GET is answered") if code == 501 else (code, "this is no request of HTTP")
        self._send_json({"detail": sentence}, code)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a page that looks every two seconds would fill a terminal."""


def _words(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, max_num_fields=100)
    except ValueError:  # more of them
        return []
