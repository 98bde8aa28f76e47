"""Wrong clocks: said in a sentence, and no part of what a run decides."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agents import Machine, agent, free_port
from tests.faults.conftest import Recorder
from tests.faults.whole import CONFIG, LOCAL, local, reached, restarts, same
from tests.runs import disturbed, events, kill, status, steps, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
MEETING_S = 120.0


@dataclass(frozen=True)
class Clock:
    """A wall clock that can be set for the processes that are started with its variables."""

    library: Path
    file: Path

    def set(self, ahead_s: float) -> None:
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("d", ahead_s))

    def variables(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_SKEW": str(self.file)}

    def prefix(self) -> tuple[str, ...]:
        return ("env", *(f"{name}={value}" for name, value in self.variables().items()))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if shutil.which("gcc") is None:
        pytest.skip("the clock shim needs gcc")
    library = tmp_path / "clock.so"
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    made = Clock(library, tmp_path / "skew")
    made.set(0.0)
    return made


@pytest.mark.parametrize("ahead_s", [8.0, 3600.0, -3600.0])
def test_g6_machine_with_a_wrong_clock(
    ahead_s: float, clock: Clock, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    """torchrun may not get its agents together, or lose one: that is said, and what comes of it has the same bytes."""
    run, endpoint = tmp_path / "run", f"127.0.0.1:{free_port()}"
    words = (CONFIG, f"data.shards={digits}", "deterministic=true", *LOCAL, "--resume", "auto")
    clock.set(ahead_s)
    with ExitStack() as ends:
        agents = [agent(Machine((), "127.0.0.1"), endpoint, "2", run, *words)]
        agents.append(agent(Machine(clock.prefix(), "127.0.0.2"), endpoint, "2", run, *words))
        for process in agents:
            ends.callback(process.kill)
        met = meet(agents, run)
        said, codes = "", []
        for process in agents:
            if not met:
                process.terminate()
            out, _ = process.communicate(timeout=280)
            said += out
            codes.append(process.returncode)
    if ahead_s == 8.0:
        assert codes == [0, 0], said
        assert "clock of rank 1's machine is +8.0 s off" in said.replace("+7.9", "+8.0")
    if not met:
        assert not steps(run), "without both machines no step may be taken"
    if status_of(run) != "completed":
        again = subspace(*local(digits, run, "--resume", "auto"))
        assert again.returncode == 0, again.stderr
    record(
        "G6",
        f"clock of a machine {ahead_s:+.0f} s off",
        agents_met=met,
        warned="clock of rank 1's machine" in said,
        rc=max(codes),
        bitwise=same(run, undisturbed),
    )


def status_of(run: Path) -> str | None:
    return str(status(run)["state"]) if (run / "status.json").exists() else None


def meet(agents: list[subprocess.Popen[str]], run: Path) -> bool:
    """Return whether the agents start ranks that take a step, before one ends or patience does."""
    deadline = time.monotonic() + MEETING_S
    while time.monotonic() < deadline and not any(process.poll() for process in agents):
        if reached(run) > 0:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize("back_s", [-3600.0, 3600.0])
def test_g6_clock_that_jumps_in_mid_run(
    back_s: float, clock: Clock, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    """The clock of the whole machine is set by an hour, then a rank is killed: still one restart, the same bytes."""
    run = tmp_path / "run"

    def disturb(process: object) -> None:
        wait_until(lambda: reached(run) >= 6, "step 6")
        clock.set(back_s)
        wait_until(lambda: reached(run) >= 10, "step 10")
        kill(process, "launch", "rank", str(run))  # type: ignore[arg-type]

    assert disturbed(local(digits, run), disturb, variables=clock.variables()) == 0
    moments = [event["time"] for event in [*events(run, "started"), *events(run, "restart")]]
    assert abs(moments[1] - moments[0] - back_s) < 1800, "the clock did not jump"
    assert status(run)["attempt"] == 2
    record(
        "G6",
        f"clock set by {back_s:+.0f} s in mid-run, then a kill",
        restarts=restarts(run),
        bitwise=same(run, undisturbed),
    )
