"""What can go wrong between the processes of a run: each error carries the exit code of the command line."""

from __future__ import annotations

from data_shards.errors import UserError


class ClusterTimeout(UserError):
    """A stage of the clustering or a call to the controller missed its deadline; exit code 5."""

    exit_code = 5


class StaleMessage(UserError):
    """A message of a superseded attempt or version, refused instead of merged; exit code 6."""

    exit_code = 6


class RunTaken(UserError):
    """Another incarnation owns the run (its journal or its actors); exit code 6."""

    exit_code = 6


class StoreFull(UserError):
    """The embeddings do not fit into Ray's object store and the disk behind it; exit code 2."""
