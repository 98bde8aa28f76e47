"""A run folder with every file that this program reads back, and the readers of each: for damage and forgery."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.controller import ControllerCore
from cluster.journal import Journal, decode, encode
from data_shards.files import sha256_of
from data_shards.manifest import canonical_json
from launch import build, history, networks
from launch.config import checked, dump_config, stored_config
from launch.ledger import Ledger
from launch.ray_submit import packed, unpacked
from launch.report.collect import read_run
from launch.report.gallery import Gallery
from launch.report.page import render
from launch.status import known_status, write_status
from launch.status_view import view
from tests.launch.report.make_run import make_run
from trainer.checkpoint import CheckpointStore
from trainer.state import RunState

CONFIG = checked(
    {
        "data": {"shards": "x", "channels": 1, "mean": [0.5], "std": [0.5], "image_size": 16},
        "model": {
            "num_dims": 8,
            "num_subspaces": 2,
            "backbone": {"name": "small_resnet", "widths": [4], "blocks": [1]},
        },
    },
    "it",
)
Tree = Any
CHECKPOINT = "checkpoints/step-00000004"


def sound_run(run: Path) -> None:
    """Make the folder."""
    make_run(run, num_epochs=3, growth={1: [5, 3]})
    (run / "config.yaml").write_text(dump_config(CONFIG))
    (run / "job").write_text(packed(CONFIG))
    ledger = Ledger(run)
    ledger.take("launch")
    lease = ledger.begin("launch", 1, 3)
    journal = Journal(run / "journal.jsonl")
    controller = ControllerCore(build.controller_config(CONFIG), journal)
    controller.begin(1)
    for epoch in range(3):
        controller.plan(epoch, 1)
        controller.report(epoch, 1, {"score": 0.5}, [1.0, 0.5] * 4)
    state = build.fresh_state(CONFIG)
    state.epoch, state.step = 3, 4
    model = networks.model(CONFIG).state_dict()
    tensors = {f"model/{name}": value for name, value in model.items()}
    CheckpointStore(run / "checkpoints", fence=lease.committing).save(
        state.to_checkpoint(tensors, controller.snapshot(), lease.attempt), best=True
    )
    ledger.fault(lease.attempt, 0, 70, "a reason")
    ledger.end(lease.attempt, "preempted", 75, None, epoch=3, step=4)
    journal.close()
    lease.close()
    write_status(run, state="preempted", epoch=3, step=4, attempt=1, exit_code=75)


# ---- who reads what ------------------------------------------------------------------------------------------------


def read_checkpoint(run: Path) -> None:
    store = CheckpointStore(run / "checkpoints")
    for checkpoint in (store.newest(), store.best()):
        assert checkpoint is not None
        RunState.from_checkpoint(checkpoint, build.fresh_state(CONFIG).saliency)
        ControllerCore(build.controller_config(CONFIG)).restore(checkpoint.state["controller"])


def read_journal(run: Path) -> None:
    journal = Journal(run / "journal.jsonl")
    try:
        ControllerCore(build.controller_config(CONFIG), journal).snapshot()
    finally:
        journal.close()


def read_ledger(run: Path) -> None:
    ledger = Ledger(run)
    events = ledger.events()
    history.standing(events)
    history.last_commit(events)
    ledger.take("another")
    ledger.begin("another", 1, 3).close()


def read_status_file(run: Path) -> None:
    known_status(run)
    view(run)


def read_report(run: Path) -> None:
    record = read_run(run)
    tell = [record.name, record.seed, record.pictured, record.named("growth")]
    assert tell


def write_page(run: Path) -> None:
    render(read_run(run), Gallery())


READERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "checkpoint": (read_checkpoint, tuple(f"{CHECKPOINT}/{name}" for name in ("manifest.json", "state.json"))),
    "tensors": (read_checkpoint, (f"{CHECKPOINT}/tensors.safetensors", "checkpoints/latest", "checkpoints/best")),
    "journal": (read_journal, ("journal.jsonl",)),
    "ledger": (read_ledger, ("ledger.jsonl",)),
    "status": (read_status_file, ("status.json", "ledger.jsonl", "metrics.jsonl", "events.jsonl")),
    "config": (lambda run: dump_config(stored_config(run)) and None, ("config.yaml",)),
    "job": (lambda run: unpacked((run / "job").read_bytes().decode("latin-1")) and None, ("job",)),
    "report": (
        read_report,
        (
            *("env.json", "metrics.jsonl", "events.jsonl", "config.yaml"),
            "evaluation/test.json",
            "evaluation/test.safetensors",
        ),
    ),
}


# ---- what a forger writes ------------------------------------------------------------------------------------------


def parsed(path: Path) -> Tree:
    """Return a file as JSON: journals as the list of their events, JSON lines as the list of them."""
    if path.name in ("journal.jsonl", "ledger.jsonl"):
        return [decode(line, i) for i, line in enumerate(path.read_bytes().splitlines())]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.name == "job":
        return json.loads(json.dumps(CONFIG.model_dump(mode="json")))
    return json.loads(path.read_text()) if path.suffix == ".json" else None


def forged(path: Path, tree: Tree) -> None:
    """Write `tree` as such a file would be, with every checksum right."""
    if path.name in ("journal.jsonl", "ledger.jsonl"):
        path.write_bytes(b"".join(encode(i, event) for i, event in enumerate(tree)))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in tree))
    elif path.name == "job":
        path.write_bytes(base64.b64encode(json.dumps(tree).encode()))
    elif path.name == "manifest.json":
        _sign(path, tree)
    else:
        path.write_text(json.dumps(tree))
        manifest = path.with_name("manifest.json")
        if path.name == "state.json":
            content = json.loads(manifest.read_text())
            content["files"]["state.json"] = sha256_of(path)
            _sign(manifest, content)


def _sign(path: Path, manifest: Tree) -> None:
    if isinstance(manifest, dict):
        body = {name: value for name, value in manifest.items() if name != "sha256"}
        manifest = {**body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
    path.write_text(json.dumps(manifest))
