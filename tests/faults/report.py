"""JSON lines of fault tests -> docs/faults.md. `python -m tests.faults.report LINES.jsonl docs/faults.md`"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.faults.conftest import FIELDS
from tests.faults.matrix import FAMILIES, MATRIX

HEAD = """# Faults

What was broken on purpose, and what came of it. Made by `python -m tests.faults.report` from the JSON lines that the
fault tests write (`docs/faults.jsonl`); `make faults` runs all of them. Do not edit. Seconds are those of two shared
CPU cores.

"""


def main(lines: Path, page: Path) -> int:
    """Write the page; return how many rows of the matrix nothing answers for."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for text in lines.read_text().splitlines():
        row = json.loads(text)
        rows[row["id"]].append(row)
    missing = [name for name in MATRIX if name not in rows]
    text = HEAD + f"{len(MATRIX) - len(missing)} of {len(MATRIX)} rows; "
    impossible = [name for name in rows if all("impossible" in row for row in rows[name])]
    text += f"cannot run here: {', '.join(impossible) or 'none'}; not run: {', '.join(missing) or 'none'}.\n"
    for letter, title in FAMILIES.items():
        text += f"\n## {letter}. {title}\n\n| id | fault | outcome |\n|---|---|---|\n"
        for name in MATRIX:
            if name.rstrip("0123456789") == letter:
                text += "".join(_line(row) for row in rows.get(name, [])) or f"| {name} | {MATRIX[name]} | not run |\n"
    page.write_text(text)
    return len(missing)


def _line(row: dict[str, Any]) -> str:
    if "impossible" in row:
        return f"| {row['id']} | {MATRIX[row['id']]} | cannot run here: {row['impossible']} |\n"
    known = {name: row[name] for name in FIELDS if row[name] is not None}
    own = {k: v for k, v in row.items() if v is not None and k not in (*FIELDS, "id", "fault", "env_fingerprint")}
    said = ", ".join(f"{name} {_shown(value)}" for name, value in {**known, **own}.items())
    return f"| {row['id']} | {row['fault']} | {said} |\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "/")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
