"""The page of the service: drop an image, see its attention and neighbours, choose subspaces, leave out a patient."""

from __future__ import annotations

from launch import pages, palette
from launch.retrieval.index_folder import Manifest


def render(name: str, manifest: Manifest, wants_token: bool, nonce: str) -> str:
    """Return the page; `nonce` marks its own script and style."""
    num_subspaces = len(manifest.widths)
    facts = {
        "wants_token": wants_token,
        "subspaces": [
            {"name": f"S{k + 1}", "colour": palette.subspace_colour(k), "width": width}
            for k, width in enumerate(manifest.widths)
        ],
    }
    splits = " and ".join(manifest.splits)
    lead = f"{manifest.num_images:,} images of the {splits} split, embedded in {num_subspaces} subspaces."
    return pages.render(
        "retrieval/page.html.j2",
        ("report/report.css", "retrieval/page.css"),
        name=name,
        lead=lead if num_subspaces > 1 else lead.replace(" in 1 subspaces", ""),
        facts=facts,
        nonce=nonce,
        tiny=manifest.image_size is not None and manifest.image_size <= 32,
    )
