"""A real Slurm of two nodes on this machine, for tests: own munge key, own ports, one short temporary folder.

Both nodes are slurmd processes on 127.0.0.1, so they share a host name. It needs Debian's slurm-wlm and munge, no root.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.runs import environment, wait_until

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# Requeued jobs wait until their credentials expire (2 minutes by default), and a scheduling round comes every minute;
# KillWait is the time to save after a plain `scontrol requeue`, and a test may hold a
# job beyond its limit. config_overrides: the nodes have the CPUs that are written here, whatever the machine has.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SchedulerParameters=sched_interval=1
KillWait=120
OverTimeLimit=5
MinJobAge=3600
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that a site needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@dataclass
class Site:
    """A running Slurm."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def call(self, *words: str | Path, timeout_s: float = 120) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**environment(), **self.variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def states(self, job: str) -> list[str]:
        """Return the states of a job, or of an array's tasks."""
        listed = self.call("squeue", "--noheader", "--states=all", "--array", f"--jobs={job}", "--format=%T")
        return listed.split()

    def wait_for_end(self, job: str, timeout_s: float = 240) -> list[str]:
        """Wait until nothing of a job is left in the queue; return the final states."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait_until(lambda: set(self.states(job)) <= ended, f"the end of job {job}", timeout_s)
        return self.states(job)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for a condition; show what the daemons say when it does not come about."""
        try:
            wait_until(condition, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def start(self, *words: str | Path) -> None:
        """Start a daemon in the foreground of a session of its own."""
        with (self.folder / f"{Path(words[0]).name}{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    [shutil.which(str(words[0]), path=PATH) or "", *map(str, words[1:])],
                    env={**environment(), **self.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )


@contextlib.contextmanager
def running() -> Iterator[Site]:
    """Start a site; on leaving cancel its jobs, stop its daemons and see that nothing of it runs any more."""
    site = Site(Path(tempfile.mkdtemp(prefix="sl", dir="/tmp")))
    try:
        _start(site)
        yield site
    finally:
        _stop(site)
        shutil.rmtree(site.folder)


def _start(site: Site) -> None:
    folder = site.folder
    for name in ("munge", "state"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    (folder / "munge").chmod(0o755)  # munged insists that everybody may reach its socket
    (folder / "slurm.conf").write_text(
        CONF.format(host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=folder, ports=_ports(3))
    )
    site.call("mungekey", "--create", f"--keyfile={folder / 'munge' / 'key'}")
    places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    site.start(
        "munged",
        "--foreground",
        "--force",
        "--num-threads=4",
        *(f"--{name}={folder / 'munge' / file}" for name, file in places.items()),
    )
    site.wait_until((folder / "munge" / "socket").exists, "munged", 60)
    site.start("slurmctld", "-D")
    for node in ("n1", "n2"):
        site.start("slurmd", "-D", "-N", node)
    site.wait_until(lambda: _idle(site) == 2, "two idle nodes", 60)


def _idle(site: Site) -> int:
    with contextlib.suppress(AssertionError):  # the controller may not listen yet
        return site.call("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").count("n")
    return 0


def _ports(number: int) -> Sequence[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _stop(site: Site) -> None:
    """End the controller first, so that it starts no job any more; then what jobs are left, the nodes, and munged."""
    ids = {daemon.pid for daemon in site.daemons}
    helpers = [child for daemon in site.daemons for child in _children(daemon.pid)]
    for daemon in (*site.daemons[1:], *site.daemons[:1]):
        for process in of_site(site):
            if process.pid not in ids:
                _kill(process)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    wait_until(lambda: not of_site(site) and not any(map(_runs, helpers)), "the end of all that the site started", 30)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()
        process.wait(10)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def of_site(site: Site) -> list[psutil.Process]:
    """Return the live processes of this site: its daemons, and what runs in its jobs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == site.variables["SLURM_CONF"] and _runs(process):
                found.append(process)
    return found + step_daemons(site)


def step_daemons(site: Site) -> list[psutil.Process]:
    """Return the live slurmstepd of this site, known by their sockets: they overwrite their environment by a title."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "slurmstepd" and _runs(process):
                sockets = [str(connection.laddr) for connection in process.net_connections("unix")]
                if any(path.startswith(f"{site.folder}/") for path in sockets):
                    found.append(process)
    return found
