"""The network between machines: gone for a while or for good, slow, and with a stranger on it."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.agents import Machine, agent, free_port
from tests.faults.conftest import Recorder
from tests.faults.test_f_agent import lose_power
from tests.faults.whole import CONFIG, LOCAL, local, ranks, reached, same
from tests.runs import ROOT, assert_nothing_left, disturbed, environment, events, status, subspace, wait_until
from tests.whole.test_nodes import ip, namespaces

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
TIMEOUT_S = 10.0
WORDS = (f"launch.timeout_s={TIMEOUT_S}", "deterministic=true", "train.steps_per_epoch=40")
LATENCY_S = 0.2
assert namespaces  # a fixture


@pytest.fixture(scope="module")
def long_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("long") / "run"
    done = subspace(*local(digits, run, *WORDS))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("outage_s", [3.0, 20.0, None])
def test_h2_partition(
    outage_s: float | None, namespaces: list[Machine], digits: Path, long_run: Path, tmp_path: Path, record: Recorder
) -> None:
    """Cut the cable between two machines: ridden through, a restart, or the end with exit code 5 and a way on."""
    run, name = tmp_path / "run", f"sub{os.getpid()}b"
    words = (CONFIG, f"data.shards={digits}", *LOCAL, *WORDS, "--resume", "auto")
    endpoint = f"{namespaces[0].address}:{free_port()}"
    with ExitStack() as ends:
        agents = [agent(machine, endpoint, "2", run, *words) for machine in namespaces]
        for process in agents:
            ends.callback(process.kill)
        wait_until(lambda: reached(run) >= 12, "step 12")
        ip("-n", name, "link", "set", name, "down")
        cut, step = time.time(), reached(run)
        if outage_s is None:
            wait_until(lambda: bool(list((run / "logs").glob("stacks-rank-00000-*"))), "the stacks", timeout_s=60)
            wait_until(lambda: "lost its peers" in stacks(run), "the deadline", timeout_s=60)
            detected_s = time.time() - cut
            for process in agents:  # as a batch system does: each waits for the other one's machine
                lose_power(process)
                process.communicate(timeout=60)
        else:
            time.sleep(outage_s)
            ip("-n", name, "link", "set", name, "up")
            for process in agents:
                out, _ = process.communicate(timeout=280)
                assert process.returncode == 0, out
    if outage_s is None:
        done = subspace(*local(digits, run, *WORDS), "--resume", "auto")
        assert done.returncode == 0, done.stderr
        outcome = {"detected_s": detected_s, "then": "gone on with on one machine"}
    else:
        outcome = {"outage_s": outage_s, "restarts": len(events(run, "restart"))}
        if outage_s < TIMEOUT_S:
            assert outcome["restarts"] == 0
    assert_nothing_left()
    record("H2", f"cable cut for {outage_s or 'ever'} s", injected_at_step=step, bitwise=same(run, long_run), **outcome)


def stacks(run: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in (run / "logs").glob("stacks-*"))


@contextmanager
def slow_proxy(port: int, latency_s: float) -> Iterator[int]:
    """Yield a port whose connections lead to `port` of this machine, every piece of data late by `latency_s`."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(latency_s)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                try:
                    upstream = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    client.close()
                    continue
                for pair in ((client, upstream), (upstream, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.close()


def test_h3_latency_in_front_of_the_store(digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    """The second agent reaches the rendezvous 200 ms late each way: nobody is taken for dead."""
    run, port = tmp_path / "run", free_port()
    words = (CONFIG, f"data.shards={digits}", *LOCAL, *WORDS, "--resume", "auto")
    with ExitStack() as ends:
        late = ends.enter_context(slow_proxy(port, LATENCY_S))
        first = agent(Machine((), "127.0.0.1"), f"127.0.0.1:{port}", "2", run, *words)
        ends.callback(first.kill)
        second = agent(Machine((), "127.0.0.2"), f"127.0.0.1:{late}", "2", run, *words)
        ends.callback(second.kill)
        for process in (first, second):
            out, _ = process.communicate(timeout=280)
            assert process.returncode == 0, out
    assert events(run, "restart") == []
    assert status(run)["world_size"] == 2
    record("H3", "200 ms each way between an agent and the store", restarts=0, bitwise=same(run, long_run))


def test_s6_stranger_at_the_store(digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    """A stranger reads, overwrites and deletes keys, and writes noise: no wrong step, nothing executed."""
    run = tmp_path / "run"
    done: dict[str, int] = {}

    def disturb(process: object) -> None:
        wait_until(lambda: reached(run) >= 12, "step 12")
        [rank, _] = ranks(process, run)  # type: ignore[arg-type]
        port = rank.environ()["MASTER_PORT"]
        done.update(vandalise(int(port), tmp_path / "executed"))

    code = disturbed(local(digits, run, *WORDS), disturb)
    assert done["keys"] > 0
    assert done["overwritten"] > 0
    assert not (tmp_path / "executed").exists()
    assert code in (0, 5), status(run)
    if code:
        again = subspace(*local(digits, run, *WORDS), "--resume", "auto")
        assert again.returncode == 0, again.stderr
    record(
        "S6",
        "stranger at the store",
        rc=code,
        restarts=len(events(run, "restart")),
        bitwise=same(run, long_run),
        **done,
    )


def vandalise(port: int, marker: Path) -> dict[str, int]:
    """Overwrite and delete all keys of a store with pickles and noise, and send noise to its port."""
    code = [
        sys.executable,
        "-c",
        "import sys; from tests.faults.test_h_network import stranger; stranger(sys.argv[1:])",
    ]
    told = subprocess.run(
        [*code, str(port), str(marker)], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=60
    )
    assert told.returncode == 0, told.stderr
    keys, overwritten = map(int, told.stdout.split())
    draw = random.Random(0)
    for _ in range(20):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(draw.randbytes(draw.randrange(1, 4096)))
    return {"keys": keys, "overwritten": overwritten, "noisy_connections": 20}


def stranger(arguments: list[str]) -> None:
    """Print how many keys the store holds and how many could be overwritten; runs in a process of its own."""
    import pickle
    from datetime import timedelta

    from torch.distributed import TCPStore

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {arguments[1]}",)

    store = TCPStore("127.0.0.1", int(arguments[0]), is_master=False, timeout=timedelta(seconds=10))
    keys, overwritten = store.list_keys(), 0
    for number, key in enumerate(keys):
        with suppress(RuntimeError):
            if number % 2:
                store.delete_key(key)
            else:
                store.set(key, pickle.dumps(Evil()))
            overwritten += 1
    print(len(keys), overwritten)
