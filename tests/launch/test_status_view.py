"""The panel of a run on a terminal, and a real run followed through one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from launch import status_view
from launch.glance import glance
from launch.status import write_status
from tests.launch.test_glance import lines, make
from tests.runs import ROOT, command, environment

Cli = Callable[..., tuple[int, str, str]]


def text_of(shown: RenderableType) -> str:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(shown)
    return console.export_text()


def rendered(run: Path, now: float) -> str:
    return text_of(status_view.panel(glance(run, now), now))


def test_the_panel_shows_what_is_known(tmp_path: Path) -> None:
    text = rendered(make(tmp_path, phase="clustering", world_size=2, attempt=1), 1330.0)
    for part in (
        "eyes  running",
        "clustering",
        "3 of 20 completed, step 33",
        "about 28 min, then the final scores",
        "3, widths 20 7 5",
        "epoch 1, 7 / 5 images, 3 min ago",
        "epoch 0: 2 subspaces of widths 20 12",
        "0.2500",
        "1.0000 to 0.8000",
        "recall@1 0.912",
        "(epoch 3)",
        "2, attempt 1, 91 images/s",
        "93 %, H200",
        "started in epoch 0",
    ):
        assert part in text
    assert "recluster" in text
    assert "reason" not in text


def test_how_it_ended_and_foreign_words(tmp_path: Path) -> None:
    make(tmp_path, state="failed", exit_code=4, reason="loss [nan] \x1b[31m")
    text = rendered(tmp_path, 1500.0)
    assert "failed" in text
    assert "loss [nan] \\x1b[31m (exit code 4)" in text
    assert "time left" not in text
    assert "phase" not in text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_status(tmp_path, state="running")
    assert "starting" in rendered(tmp_path, 0.0)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_the_bar_gives_every_subspace_its_part(widths: list[int]) -> None:
    bar = status_view.width_bar(widths, 400)
    parts = [span.end - span.start for span in bar.spans]
    assert len(parts) == len(widths)
    assert sum(parts) == len(bar) <= 400 + len(widths)
    if min(widths) * 400 > sum(widths):
        assert len(bar) == 400
        assert all(abs(part - 400 * w / sum(widths)) <= 1 for part, w in zip(parts, widths, strict=True))


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([1.0, 1.0], "▁▁"), ([0.0, 7.0, 3.0], "▁█▄"), ([0.0, float("nan"), 7.0, float("inf")], "▁ █ ")],
)
def test_sparklines(values: list[float], text: str) -> None:
    assert status_view.sparkline(values) == text


def test_readings_of_gpus_in_words() -> None:
    full = {"name": "H200", "utilization_percent": 97, "power_w": 412.4, "temperature_c": 51}
    full |= {"memory_used_bytes": 30 << 30, "memory_total_bytes": 139 << 30}
    assert status_view.told_gpu(full) == "97 %, 30.0 of 139 GiB, 412 W, H200"
    assert status_view.told_gpu(dict.fromkeys(full)) == "GPU"


def test_values_of_another_kind_are_a_sentence(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path)
    lines(tmp_path / "events.jsonl", [{"event": "recluster", "counts": ["many"]}])
    code, _, err = cli("status", tmp_path)
    assert code == 3
    assert "damaged" in err


def test_the_command_refuses_an_odd_pace(tmp_path: Path, cli: Cli) -> None:
    assert cli("status", tmp_path, "--watch", "--every", "0")[0] == 2


@pytest.mark.slow
def test_a_real_run_is_followed_to_its_end(tmp_path: Path, digits: Path) -> None:
    """Watched through a pseudo-terminal of its own; phases come and go, then the view ends with the run."""
    run = tmp_path / "run"
    settings = [f"data.shards={digits}", "train.epochs=3", "train.steps_per_epoch=6", "train.batch_size=32"]
    settings += ["launch.nproc=1", "launch.trackers=[]", "cluster.backend=local", "growth.patience=1"]
    config = ROOT / "configs/demo.yaml"
    with (tmp_path / "log").open("w") as log:
        train = subprocess.Popen(
            command("train", config, *settings, "--run-dir", run), env=environment(), stdout=log, stderr=log
        )
    try:
        while not (run / "status.json").exists() and train.poll() is None:
            time.sleep(0.05)
        assert train.poll() is None, (tmp_path / "log").read_text()
        shown = followed(run)
        assert train.wait(120) == 0
    finally:
        train.kill()
        train.wait()
    panels = shown.split("╭")[1:]
    assert "demo  running" in panels[0]
    assert "demo  completed" in panels[-1]
    assert "3 of 3 completed, step 18" in panels[-1]
    assert "recall@1" in panels[-1]
    assert {"training", "final scores"} & set(re.findall(r"phase  ([a-z]+(?: [a-z]+)?)", shown))


def followed(run: Path) -> str:
    """Run `subspace status RUN --watch` on a pseudo-terminal; return all that it wrote there, without its colours."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("status", run, "--watch", "--every", "0.2"),
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            written += block
        os.close(ours)
        assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode("utf-8", "replace"))
