"""Build a shard folder: list a source, check every header, cut into shards, decode and write, rename to DEST.

An image that cannot be used is written to rejected.csv with its reason (or ends the build with `strict`); a group that
lies in more than one split ends the build. An interrupted build goes on where it was when the same command runs again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.decode import MAX_PIXELS, Header, Unreadable
from data_shards.errors import UserError, nearest_of
from data_shards.files import write_text
from data_shards.info import info, render_info
from data_shards.manifest import MANIFEST_NAME, Manifest, canonical_json, to_json
from data_shards.progress import Advance, meter
from data_shards.rendering import Form, expected_bytes, probe, render, row_of
from data_shards.sandbox import Reply, Sandbox
from data_shards.schema import FITS, SPLITS, STORED
from data_shards.sources import Listing, Record, read_source
from data_shards.staging import Done, Staging, check_disk
from data_shards.writer import Row, write_shard

__all__ = ["REJECTED_NAME", "build", "info", "render_info"]

REJECTED_NAME = "rejected.csv"
_NAMED = 5


@dataclass(frozen=True)
class Job:
    """One shard to be: the listing positions (= sample ids) of its images."""

    file: str
    split: str
    ids: tuple[int, ...]
    expected_bytes: int


def build(
    source: str,
    dest: Path,
    size: int | None = None,
    stored: str | None = None,
    fit: str | None = None,
    shard_mb: int = 64,
    strict: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    num_workers: int = 1,
) -> Manifest:
    """Build the shard folder `dest` from `source` ("folder:PATH", "digits", ...) and return its manifest.

    `stored` None means raw when a size is known and as-is otherwise, `fit` None what the source names. `options` are
    those of the source, plus `channels` = auto (1 when every image is gray) | 1 | 3. Raises UserError for everything
    the user can put right.
    """
    given = dict(options or {})
    channels = str(given.pop("channels", None) or "auto")
    dest = Path(os.path.abspath(dest))
    if os.path.lexists(dest):
        raise UserError(f"{dest} exists already; choose another place or remove it first.")
    _check_arguments(size, stored, fit, shard_mb, channels)
    listing = read_source(source, given, size)
    size = size or (None if stored == "as-is" else listing.default_size)
    stored = stored or ("as-is" if size is None else "raw")
    if listing.fixed_size and size not in (None, listing.default_size):
        raise UserError(f"{listing.name} has lengths in pixels, of {listing.default_size} a side; leave out --size.")
    notes = [*listing.warnings, *_group_overlap(listing)]
    headers, rejected = _headers(listing, progress, num_workers)
    _stop_if_strict(listing, rejected, strict)
    form = Form(size, stored, fit or listing.default_fit, _channels(headers, channels))
    jobs = _plan(listing, headers, form, shard_mb << 20)
    staging = Staging(dest, _fingerprint(source, given, listing, headers, form, jobs))
    done = _write(listing, headers, form, jobs, staging, strict, progress, num_workers)
    for result in done:
        rejected.update(result.rejected)
    manifest = _manifest(source, given, listing, form, done, rejected, notes)
    with staging.open():
        if rejected:
            write_text(staging.shards / REJECTED_NAME, _rejected_csv(listing, rejected))
        write_text(staging.shards / MANIFEST_NAME, to_json(manifest))
        staging.commit()
    return manifest


def _check_arguments(size: int | None, stored: str | None, fit: str | None, shard_mb: int, channels: str) -> None:
    for what, value, choices in (
        ("--stored", stored, STORED),
        ("--fit", fit, FITS),
        ("channels", channels, ("auto", "1", "3")),
    ):
        if value is not None and value not in choices:
            raise UserError(f"{what} {value} is unknown{nearest_of(value, list(choices))}; use {', '.join(choices)}.")
    if size is not None and not 1 <= size * size <= MAX_PIXELS:
        raise UserError(f"--size {size} is out of range; use 1 to {int(MAX_PIXELS**0.5)} pixels.")
    if size is not None and stored == "as-is":
        raise UserError("--stored as-is keeps the bytes of the files; leave out --size, or store raw, png or jpeg.")
    if not 1 <= shard_mb <= 1024:
        raise UserError(f"--shard-mb {shard_mb} is out of range; use 1 to 1024.")


def _group_overlap(listing: Listing) -> list[str]:
    """Refuse (or, for a publisher's own split, note) groups that lie in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in listing.records:
        if record.group:
            splits[record.group].add(record.split)
    torn = {group: where for group, where in splits.items() if len(where) > 1}
    if not torn:
        return []
    named = [f"'{group}' ({', '.join(s for s in SPLITS if s in torn[group])})" for group in sorted(torn)]
    more = ["..."] if len(torn) > _NAMED else []
    text = f"{len(torn)} of {len(splits)} groups lie in more than one split: {', '.join(named[:_NAMED] + more)}"
    if listing.allow_group_overlap:
        return [f"{text}; kept, because this is the published split."]
    raise UserError(
        f"{text}. Images of one group would be in training and in the test; mend the split, or use group=none."
    )


def _headers(listing: Listing, progress: bool, num_workers: int) -> tuple[dict[int, Header], dict[int, str]]:
    headers: dict[int, Header] = {}
    rejected: dict[int, str] = {}
    root = None if listing.root is None else os.path.realpath(listing.root)

    def step(sample: int) -> Reply:
        return asdict(probe(listing.records[sample], root)), b""

    samples = range(len(listing.records))
    with Sandbox(step, num_workers) as sandbox, meter("Checking headers", len(samples), progress) as advance:
        for sample, found in zip(samples, sandbox.run(samples), strict=True):
            if isinstance(found, Unreadable):
                rejected[sample] = str(found)
            else:
                headers[sample] = Header(**found[0])
            advance()
    if not headers:
        first = f"; the first: {listing.records[0].path}: {rejected[0]}" if rejected else ""
        raise UserError(f"No image of '{listing.name}' can be used{first}.")
    return headers, rejected


def _stop_if_strict(listing: Listing, rejected: Mapping[int, str], strict: bool) -> None:
    if strict and rejected:
        named = "; ".join(f"{listing.records[i].path}: {rejected[i]}" for i in sorted(rejected)[:_NAMED])
        raise UserError(f"{len(rejected)} image(s) cannot be used ({named}); mend them or build without --strict.")


def _channels(headers: Mapping[int, Header], wanted: str) -> int:
    if wanted != "auto":
        return int(wanted)
    return max(header.channels for header in headers.values())


def _plan(listing: Listing, headers: Mapping[int, Header], form: Form, shard_bytes: int) -> list[Job]:
    jobs = []
    for split in SPLITS:
        ids = [sample for sample in headers if listing.records[sample].split == split]
        for number, (part, num_bytes) in enumerate(_cut(ids, listing.records, headers, form, shard_bytes)):
            jobs.append(Job(f"{split}-{number:05d}.arrow", split, tuple(part), num_bytes))
    return jobs


def _cut(
    ids: Sequence[int], records: Sequence[Record], headers: Mapping[int, Header], form: Form, shard_bytes: int
) -> list[tuple[list[int], int]]:
    parts: list[tuple[list[int], int]] = []
    for sample in ids:
        record = records[sample]
        num_bytes = expected_bytes(headers[sample], form, bool(record.mask_file or record.mask))
        if parts and parts[-1][1] + num_bytes <= shard_bytes:
            part, total = parts.pop()
            part.append(sample)
            parts.append((part, total + num_bytes))
        else:
            parts.append(([sample], num_bytes))
    return parts


def _fingerprint(
    source: str,
    options: Mapping[str, Any],
    listing: Listing,
    headers: Mapping[int, Header],
    form: Form,
    jobs: Sequence[Job],
) -> str:
    """Return a hash of all that decides the bytes of the result."""
    content = {
        "source": source,
        "options": {name: str(value) for name, value in options.items()},
        "form": [form.size, form.stored, form.fit, form.channels],
        "classes": listing.classes,
        "records": [_identity(listing.records[sample], header) for sample, header in headers.items()],
        "jobs": [[job.file, job.ids] for job in jobs],
        "versions": _versions(),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _identity(record: Record, header: Header) -> list[Any]:
    files = (record.file, record.mask_file, *record.beside)
    stamps = [file.stat().st_mtime_ns for file in files if file is not None and file.exists()]
    return [record.path, record.label, record.split, record.group, header.num_bytes, *stamps]


def _write(
    listing: Listing,
    headers: Mapping[int, Header],
    form: Form,
    jobs: Sequence[Job],
    staging: Staging,
    strict: bool,
    progress: bool,
    num_workers: int,
) -> list[Done]:
    labels = {name: index for index, name in enumerate(listing.classes)}
    results: dict[str, Done] = {}
    for job in jobs:
        if (ready := staging.done(job.file)) is not None:
            results[job.file] = ready
    check_disk(staging.dest, sum(job.expected_bytes for job in jobs if job.file not in results))

    def step(sample: int) -> Reply:
        return render(listing.records[sample], headers[sample], form)

    sandbox = Sandbox(step, num_workers)
    with staging.open(), sandbox, meter("Writing shards", len(headers), progress) as advance:
        for job in jobs:
            if job.file in results:
                advance(len(job.ids))
                continue
            rows, rejected = _rows(listing.records, labels, form, job, sandbox, advance)
            _stop_if_strict(listing, rejected, strict)
            entry = write_shard(staging.shards / job.file, job.split, rows, listing.factors) if rows else None
            results[job.file] = Done(entry, tuple(rejected.items()))
            staging.record(job.file, results[job.file])
    return [results[job.file] for job in jobs]


def _rows(
    records: Sequence[Record], labels: Mapping[str, int], form: Form, job: Job, sandbox: Sandbox, advance: Advance
) -> tuple[list[Row], dict[int, str]]:
    rows: list[Row] = []
    rejected: dict[int, str] = {}
    for sample, found in zip(job.ids, sandbox.run(job.ids), strict=True):
        if isinstance(found, Unreadable):
            rejected[sample] = str(found)
        else:
            rows.append(row_of(sample, records[sample], labels[records[sample].label], form, found))
        advance()
    return rows, rejected


def _manifest(
    source: str,
    options: Mapping[str, Any],
    listing: Listing,
    form: Form,
    done: Sequence[Done],
    rejected: Mapping[int, str],
    notes: Sequence[str],
) -> Manifest:
    kept = [record for sample, record in enumerate(listing.records) if sample not in rejected]
    if not kept:
        raise UserError(
            f"No image of '{listing.name}' can be used; the first: {listing.records[0].path}: {rejected[0]}."
        )
    if rejected:
        notes = [*notes, f"{len(rejected)} of {len(listing.records)} images were left out; see {REJECTED_NAME}."]
    return Manifest(
        name=listing.name,
        source=source,
        stored=form.stored,
        image_size=form.size,
        channels=form.channels,
        classes=listing.classes,
        shards=tuple(result.entry for result in done if result.entry is not None),
        counts=replace(listing, records=tuple(kept)).counts(),
        factors=listing.factors,
        has_masks=any(record.mask or record.mask_file for record in kept),
        rejected=len(rejected),
        created_with=_versions(),
        fit=form.fit,
        options={name: value for name, value in options.items() if isinstance(value, int | float | str | bool)},
        warnings=tuple(notes),
    )


def _versions() -> dict[str, str]:
    names = ("subspace-trainer", "numpy", "pillow", "pyarrow", "simplejpeg")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rejected_csv(listing: Listing, rejected: Mapping[int, str]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["sample_id", "path", "label", "split", "reason"])
    for sample in sorted(rejected):
        record = listing.records[sample]
        table.writerow([sample, record.path, record.label, record.split, rejected[sample]])
    return stream.getvalue()
