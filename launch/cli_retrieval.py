"""`subspace index`, `subspace search` and `subspace serve`: images that are like a given one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from data_shards.errors import UserError

MOST_NEIGHBOURS = 1000


def index(
    run: Positional[Path],
    shards: Positional[Path | None] = None,
    /,
    *,
    split: tuple[Literal["train", "validation", "test"], ...] = ("train",),
    kind: Literal["auto", "exact", "ivf", "hnsw"] = "auto",
    out: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Embed images with a run's best weights, to be searched in.

    Args:
        run: the run folder.
        shards: the images; the run's own when not given.
        split: which splits of them.
        kind: exact scans everything; ivf and hnsw are approximate; auto is exact up to 100,000 images, then ivf.
        out: the index folder; RUN/index when not given.
        as_json: print the manifest as JSON.
    """
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.retrieval.indexing import make_index

    folder = out or run / "index"
    manifest = make_index(run, shards, split, kind, folder, tell=lambda line: print(line, file=sys.stderr))
    print(manifest.model_dump_json() if as_json else folder)
    return 0


def search(
    run: Positional[Path],
    images: Positional[tuple[str, ...]],
    /,
    *,
    k: Annotated[int, arg(aliases=["-k"])] = 10,
    subspaces: tuple[int, ...] = (),
    exclude: Literal["none", "group"] = "none",
    group: str = "",
    index: Path | None = None,
    overlay: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Find the indexed images that are nearest to others.

    Args:
        run: the run folder.
        images: image files, DICOM included, or sample ids of indexed images.
        k: how many neighbours.
        subspaces: rank by these subspaces only, counted from 0.
        exclude: group leaves out the images of the query's own group (patient, lesion).
        group: which group that is, for a file that is not itself indexed.
        index: the index folder; RUN/index when not given.
        overlay: draw query, attention and neighbours to this PNG.
        as_json: print the answers as JSON.
    """
    if not images:
        raise UserError("name at least one image: an image file, or the sample id of an indexed image")
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise UserError(f"-k must be 1 to {MOST_NEIGHBOURS}, got {k}")
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.retrieval.answer import Query
    from launch.retrieval.searching import search as run_search

    how = Query(k=k, subspaces=subspaces, exclude=exclude, group=group)
    found = run_search(run, index, images, how, overlay)
    if as_json:
        left_out = {"picture", "attention"}
        print(json.dumps([{"query": word, **answer.model_dump(exclude=left_out)} for word, answer in found]))
    else:
        _print_answers(found)
    return 0


def serve(
    run: Positional[Path],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    queued: int = 64,
    token_env: str | None = None,
    max_upload_mib: int = 32,
    index: Path | None = None,
) -> int:
    """Serve searches over HTTP, with a page on it, until stopped.

    Args:
        run: the run folder.
        host: where to listen; other than loopback needs a token.
        port: 0 takes a free one; the first line of the output says which.
        replicas: processes that search, each with the network and the index.
        queued: requests that may wait for them; more are answered with 503.
        token_env: the environment variable that holds the token which requests must bring.
        max_upload_mib: larger images are refused.
        index: the index folder; RUN/index when not given.
    """
    for name, value, most in (
        ("replicas", replicas, 256),
        ("queued", queued, 10_000),
        ("max-upload-mib", max_upload_mib, 512),
    ):
        if not 1 <= value <= most:
            raise UserError(f"--{name} must be 1 to {most}, got {value}")
    from launch import listening

    listening.check_port(port)
    from launch.retrieval import serving
    from launch.trained import config_of

    address = listening.Address(host, port, listening.token_of(token_env))
    config = config_of(run)  # pins what torch reads when it is imported
    listening.check_address(address, "search")
    serving.check_installed()
    serving.serve(run, config, index or run / "index", address, serving.Pool(replicas, queued), max_upload_mib << 20)
    return 0


def _print_answers(found: list[tuple[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for word, answer in found:
        novel = answer.out_of_distribution
        votes = ", ".join(f"{vote.label} {vote.share:.0%}" for vote in answer.vote[:3])
        unlike = "; UNLIKE what is indexed" if novel and novel.flag else ""
        without = f"; without {answer.excluded_group}" if answer.excluded_group else ""
        table = Table(title=escape(f"{word}: {votes}{unlike}{without}"), title_justify="left")
        for name in ("", "distance", "label", "group", "sample", "path"):
            table.add_column(name, justify="right" if name in ("", "distance", "sample") else "left")
        for rank, one in enumerate(answer.neighbours, start=1):
            cells = (one.label, one.group, str(one.sample_id), f"{one.split}: {one.path}")
            table.add_row(str(rank), f"{one.distance:.4f}", *map(escape, cells))
        console.print(table)
