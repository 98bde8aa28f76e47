"""Give configurations of fuzz_cases.py to the reader, in this process: `python -m tests.faults.fuzz_config`.

Runs in an interpreter of its own, which must have imported nothing heavy and created nothing when it is done; an audit
hook sees every file, process and socket. Prints figures as JSON; accepted configurations go to a file, one per line.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from launch.config import RunConfig, checked, dump_config, load_config
from launch.yaml_file import parse
from tests.faults.fuzz_cases import Case, case, lay_out

HEAVY = {"torch", "ray", "faiss", "pyarrow", "deepspeed", "numpy"}
CREATES = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.", "socket."),
    *("subprocess.", "os.system", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "pickle."),
)


class Watch:
    """Counts what is created while armed, by any means that Python reports."""

    def __init__(self) -> None:
        self.armed, self.seen = False, []  # type: bool, list[str]
        sys.addaudithook(self)

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event.startswith(CREATES):
            self.seen.append(f"{event} {details!r:.200}")


@contextmanager
def environment(variables: tuple[tuple[str, str], ...]) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in dict(variables):
            del os.environ[name]


def attempt(tried: Case, by_command: bool) -> RunConfig | str:
    """Return what came of it: a configuration, or the sentence of a refusal; anything else is raised."""
    if by_command:
        return commanded(tried)
    try:
        config = load_config(Path(tried.path), list(tried.words))
    except UserError as error:
        assert error.exit_code == 2
        sentence = str(error)
        assert sentence.isprintable() and 0 < len(sentence) < 5500 + len(tried.path), sentence[:1000]
        return sentence
    assert checked(parse(dump_config(config), "dump"), "again") == config
    return config


def commanded(tried: Case) -> RunConfig | str:
    from launch.cli import main

    said, complained = StringIO(), StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        try:
            main(["train", tried.path, *tried.words, "--print-config"])
        except SystemExit as end:
            code = end.code
    assert code in (0, 2), (code, complained.getvalue())
    assert "Traceback" not in complained.getvalue()
    if code == 0 and said.getvalue().startswith("name:"):
        return checked(parse(said.getvalue(), "printed"), "again")
    return "refused"


def main(seed: int, count: int, folder: Path, accepted_file: Path) -> dict[str, Any]:
    from launch import cli  # noqa: F401

    lay_out(folder)
    watch, worst, accepted, failures = Watch(), 0.0, [], []  # type: Watch, float, list[str], list[str]
    refused, reasons = 0, set()  # type: int, set[str]
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("it hangs")))
    watch.armed = True
    (folder / "seen").touch()
    watch.armed = False
    assert watch.seen.pop(0).startswith("open") and not watch.seen
    listed = sorted(folder.iterdir())
    for number in range(count):
        tried = case(seed, number, folder)
        if tried.content is not None:
            (folder / "c.yaml").write_bytes(tried.content)
        signal.alarm(60)
        start = time.process_time()
        try:
            with environment(tried.variables):
                watch.armed = True
                found = attempt(tried, by_command=number % 20 == 0)
        except BaseException as error:  # every kind of failure is one
            failures.append(f"{number}: {type(error).__name__}: {error!r:.300}")
            continue
        finally:
            watch.armed = False
            worst = max(worst, time.process_time() - start)
            signal.alarm(0)
        if isinstance(found, RunConfig):
            accepted.append(json.dumps(found.model_dump(mode="json")))
        else:
            refused += 1
            reasons.add(re.sub(r"'.*?'|\d+", "", found.partition(": ")[2])[:40])
    assert sorted(folder.iterdir()) == listed
    accepted_file.write_text("\n".join(dict.fromkeys(accepted)))
    return {
        "tries": count,
        "accepted": len(accepted),
        "reasons": len(reasons),
        "refused": refused,
        "uncaught": failures,
        "created": watch.seen,
        "imported": sorted(HEAVY & set(sys.modules)),
        "worst_ms": round(1000 * worst),
        "worst_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))))
