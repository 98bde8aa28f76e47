"""`subspace status`: what a run is doing, in a panel on a terminal, once or followed until the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.telemetry import gpu_readings
from data_shards.errors import intact, printable
from launch.glance import Glance, glance
from launch.ledger import this_machine
from launch.palette import subspace_colour
from launch.spoken import ago, spoken
from launch.status import timestamp

BAR = 40  # characters of the whole embedding
_STATES = {"running": "cyan", "completed": "green", "preempted": "yellow", "failed": "red"}
_TICKS = "▁▂▃▄▅▆▇█"


def watch(run: Path | str, every_s: float, console: Console | None = None) -> None:
    """Show a run anew every `every_s` seconds, until it is no longer running or somebody presses Ctrl-C.

    Raises:
        UserError: not a run folder, or one that is damaged.
    """
    seen, shown = view(run)
    with Live(shown, console=console, auto_refresh=False) as live:
        live.refresh()
        while seen.state == "running":
            time.sleep(every_s)
            seen, shown = view(run)
            live.update(shown, refresh=True)


def view(run: Path | str) -> tuple[Glance, RenderableType]:
    """Return what is known of a run, and its panel; raises as `glance`."""
    seen = glance(run)
    with intact(f"a file of the run in {run}"):
        return seen, panel(seen)


def panel(seen: Glance, now: float | None = None) -> RenderableType:
    """Return a panel with what is known of a run; one that has just begun knows little."""
    moment = time.time() if now is None else now
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    for rows in _ROWS:
        for name, text in rows(seen, moment):
            table.add_row(name, text if isinstance(text, Text) else Text(printable(text)))
    colour = _STATES[seen.state]
    title = Text.assemble(printable(seen.name), "  ", (seen.state, colour))
    return Panel(table, title=title, title_align="left", border_style=colour, expand=False)


Row = tuple[str, "str | Text"]


def _progress(seen: Glance, now: float) -> Iterator[Row]:
    if seen.state == "running":
        yield "phase", seen.phase or "starting"
    total = f" of {seen.epochs}" if seen.epochs else ""
    yield "epochs", f"{_shown(seen.epoch)}{total} completed, step {_shown(seen.step)}"
    if seen.left_s is not None:
        yield "time left", f"about {spoken(seen.left_s)}, then the final scores"


def _subspaces(seen: Glance, now: float) -> Iterator[Row]:
    yield "subspaces", f"{_shown(seen.num_subspaces)}" + (f", widths {_joined(seen.widths)}" if seen.widths else "")
    if seen.widths:
        yield "", width_bar(seen.widths)
    if seen.recluster is not None:
        yield "last recluster", _told_recluster(seen.recluster, now)
    for event in seen.changes:
        yield str(event["event"]), f"{_told_change(event)}{_when(event, now)}"


def _learning(seen: Glance, now: float) -> Iterator[Row]:
    if seen.loss is not None:
        yield "loss", f"{seen.loss:.4f}"
    if len(seen.epoch_losses) > 1:
        first, last = seen.epoch_losses[0], seen.epoch_losses[-1]
        yield "loss of epochs", f"{sparkline(seen.epoch_losses)}  {first:.4f} to {last:.4f}"
    if seen.scores:
        told = ", ".join(f"{name} {value:.3f}" for name, value in seen.scores.items())
        yield "validation", f"{told} (epoch {seen.scored_epoch})"


def _machine(seen: Glance, now: float) -> Iterator[Row]:
    speed = f", {seen.images_per_s:,.0f} images/s" if seen.images_per_s else ""
    yield "ranks", f"{_shown(seen.world_size)}, attempt {_shown(seen.attempt)}{speed}"
    if seen.restarts:
        yield "restarts", str(seen.restarts)
    for gpu in _gpus(seen):
        yield f"GPU {_shown(gpu.get('index'))}", told_gpu(gpu)


def _history(seen: Glance, now: float) -> Iterator[Row]:
    for event in seen.events:
        where = f" in epoch {event['epoch']}" if event.get("epoch") is not None else ""
        yield "event", f"{event.get('event')}{where}{_when(event, now)}"
    if seen.written is not None:
        yield "last written", ago(now - seen.written)
    if seen.reason:
        yield "reason", f"{seen.reason} (exit code {_shown(seen.exit_code)})"


_ROWS: tuple[Callable[[Glance, float], Iterator[Row]], ...] = (_progress, _subspaces, _learning, _machine, _history)


def width_bar(widths: Sequence[int], length: int = BAR) -> Text:
    """Return a bar of `length` characters, cut like the embedding; every subspace has at least one of them."""
    bar, total, drawn = Text(), sum(widths), 0
    for k, reached in enumerate(accumulate(widths)):
        end = max(round(length * reached / max(total, 1)), drawn + 1)
        label = f"S{k + 1}" if end - drawn > 3 else ""
        bar.append(label.center(end - drawn), style=f"bold white on {subspace_colour(k)}")
        drawn = end
    return bar


def sparkline(values: Sequence[float]) -> str:
    """Return values as blocks between their least and their most; what is not finite is a blank."""
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(_TICKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_TICKS[round((v - low) * scale)] if abs(v) < float("inf") else " " for v in values)


def _gpus(seen: Glance) -> Sequence[dict[str, Any]]:
    """Return what the GPUs say now where the run is at work on this machine, else what they said at its last epoch."""
    here = seen.state == "running" and seen.machine == this_machine()
    return (gpu_readings() if here else []) or seen.gpus


def told_gpu(gpu: dict[str, Any]) -> str:
    """Return a reading of cluster/telemetry.py in words."""
    parts = []
    if gpu.get("utilization_percent") is not None:
        parts.append(f"{gpu['utilization_percent']} %")
    if gpu.get("memory_used_bytes") is not None and gpu.get("memory_total_bytes") is not None:
        parts.append(f"{gpu['memory_used_bytes'] / 2**30:.1f} of {gpu['memory_total_bytes'] / 2**30:.0f} GiB")
    if gpu.get("power_w") is not None:
        parts.append(f"{gpu['power_w']:.0f} W")
    return ", ".join([*parts, str(gpu.get("name") or "GPU")])


def _told_recluster(event: dict[str, Any], now: float) -> str:
    counts = event.get("counts")
    parts = [f"epoch {_shown(event.get('epoch'))}"]
    if counts:
        parts.append(f"{' / '.join(f'{count:,}' for count in counts)} images")
    if event.get("nmi_to_previous") is not None:
        parts.append(f"NMI to the one before {event['nmi_to_previous']:.3f}")
    return ", ".join(parts) + _when(event, now)


def _told_change(event: dict[str, Any]) -> str:
    widths = f" of widths {_joined(event['widths'])}" if event.get("widths") else ""
    return f"epoch {_shown(event.get('epoch'))}: {_shown(event.get('num_subspaces'))} subspaces{widths}"


def _when(event: dict[str, Any], now: float) -> str:
    moment = timestamp(event.get("time"))
    return "" if moment is None else f", {ago(now - moment)}"


def _joined(widths: Sequence[int]) -> str:
    return " ".join(map(str, widths))


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
