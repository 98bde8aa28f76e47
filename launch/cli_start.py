"""`subspace init` and `subspace doctor`: what helps somebody to begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def init(
    images: Positional[Path],
    /,
    *,
    out: Annotated[Path, arg(aliases=["-o"])] = Path("config.yaml"),
) -> int:
    """Look at your images and write a commented configuration to begin with.

    Args:
        images: a folder of class folders (IMAGES/CLASS/a.png, or IMAGES/train/CLASS/a.png), or a CSV file with the
            columns path and label, or a folder with one.
        out: the configuration; must not exist.
    """
    from launch.starter import init as run_init

    start = run_init(images, out)
    for finding in start.findings:
        print(finding)
    for choice in start.choices:
        if choice.why:
            name = f"{choice.section}.{choice.key}"
            print(f"  {name} = {json.dumps(choice.value)}: {choice.why}")
    print(f"wrote {out}; next:\n  {start.shards_command}")
    print(f"  subspace train {out} --dry-run\n  subspace train {out}")
    return 0


def doctor(*, folder: Path = Path("."), as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Check this machine: versions, GPUs, ports, clocks, shared memory, disk, Ray's token.

    Args:
        folder: where runs and shards will lie.
        as_json: print the findings as JSON.
    """
    from launch.doctor import examine

    findings = examine(folder)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:7}  {finding.what}: {finding.found}")
            if finding.remedy:
                print(f"{'':7}  -> {finding.remedy}")
    return int(any(finding.verdict == "wrong" for finding in findings))
