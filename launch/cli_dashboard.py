"""`subspace dashboard`: a page about the runs of a folder."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def dashboard(
    root: Positional[Path] = Path("runs"),
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8100,
    token_env: str | None = None,
) -> int:
    """Serve a page that lists the runs of a folder and compares their curves, until Ctrl-C.

    Args:
        root: the folder that holds run folders, at any depth.
        host: where to listen; other than loopback needs a token.
        port: 0 takes a free one; the first line of the output says which.
        token_env: the environment variable that holds the token which requests must bring.
    """
    from launch import listening
    from launch.dashboard.server import serve

    listening.check_port(port)
    serve(root, listening.Address(host, port, listening.token_of(token_env)))
    return 0
