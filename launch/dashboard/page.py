"""The page of the dashboard: a table of runs, and the curves of those that are ticked."""

from __future__ import annotations

from launch import pages, palette


def render(root: str, wants_token: bool, nonce: str) -> str:
    """Return the page; `nonce` marks its own script and style."""
    facts = {
        "wants_token": wants_token,
        "colours": list(palette.RUNS),
        "subspaces": list(palette.SUBSPACES),
    }
    styles = ("report/report.css", "dashboard/page.css")
    return pages.render("dashboard/page.html.j2", styles, root=root, facts=facts, nonce=nonce)
