"""`subspace bench NAME`: the benchmarks of a checkout by name."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def bench(name: Positional[str] = "", /, *, out: Path | None = None) -> int:
    """Measure something on this machine, beside the alternatives; without NAME list what there is.

    Args:
        name: a benchmark.
        out: where its figures are written as JSON, besides being printed.
    """
    from launch.bench import listed, run_benchmark

    if name:
        return run_benchmark(name, out)
    for each, about in listed():
        print(f"{each:20} {about}")
    return 0
