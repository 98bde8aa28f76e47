"""Wrong clocks: said in a sentence, and no part of what a run decides."""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agents import Machine, agent, free_port
from tests.faults.conftest import Recorder
from tests.faults.whole import CONFIG, LOCAL, local, reached, restarts, same
from tests.runs import disturbed, events, kill, status, steps, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix]


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
    """torchrun itself may not get its agents together; if it does, the run warns and ends with the same bytes."""
    run, endpoint = tmp_path / "run", f"127.0.0.1:{free_port()}"
    words = (CONFIG, f"data.shards={digits}", "deterministic=true", *LOCAL, "--resume", "auto")
    clock.set(ahead_s)
    with ExitStack() as ends:
        agents = [agent(Machine((), "127.0.0.1"), endpoint, "2", run, *words)]
        agents.append(agent(Machine(clock.prefix(), "127.0.0.2"), endpoint, "2", run, *words))
        for process in agents:
            ends.callback(process.kill)
        said, codes = "", []
        for process in agents:
            try:
                out, _ = process.communicate(timeout=100)
            except subprocess.TimeoutExpired:
                process.terminate()
                out, _ = process.communicate(timeout=60)
            said += out
            codes.append(process.returncode)
    if codes == [0, 0]:
        assert f"clock of rank 1's machine is {ahead_s:+.1f} s off"[:38] in said
        record("G6", f"machine {ahead_s:+.0f} s off, met", warned=True, rc=0, bitwise=same(run, undisturbed))
    else:
        assert not steps(run), "without both machines no step may be taken"
        record("G6", f"machine {ahead_s:+.0f} s off: torchrun's agents never met", rc=max(codes), warned=False)
        assert abs(ahead_s) > 15, said


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
