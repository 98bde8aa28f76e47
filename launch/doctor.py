"""`subspace doctor`: what of this machine would keep a run from working, before a run finds out.

Every check looks and returns findings; nothing is changed, no other machine is asked. "wrong" is what would stop a run,
"warning" what would slow it down, or stop some runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from cluster.telemetry import num_visible_gpus
from data_shards.errors import printable
from data_shards.files import write_text
from launch.fingerprint import FAISS

Verdict = Literal["ok", "warning", "wrong"]
DISTRIBUTION = "subspace-trainer"
GIB = 1 << 30
_TIME_ERROR = 5  # what adjtimex(2) answers when nothing disciplines the clock


class Finding(NamedTuple):
    """One line: what was looked at, how it is, what was found, what to do ("" for nothing)."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(folder: Path) -> list[Finding]:
    """Return all findings; `folder` is where runs will lie. A check that breaks is a finding, too."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("Python", python),
        ("packages", lambda: packages(requirements())),
        ("PyTorch", torch),
        ("faiss", faiss),
        ("Ray's token", lambda: ray_token(os.environ)),
        ("network", network),
        ("clock", clock),
        ("shared memory", lambda: shared_memory(_size("/dev/shm"))),  # noqa: S108 - it is what loaders and Ray use
        ("disk", lambda: [*disk("disk", folder), *disk("temporary files", Path(tempfile.gettempdir()))]),
        ("write access", lambda: writing(folder)),
        ("open files", lambda: open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
    ]
    found = []
    for what, check in checks:
        try:
            found += check()
        except Exception as error:
            said = printable(f"{type(error).__name__}: {error}")[:300]
            found.append(Finding(what, "wrong", said, "this could not be looked at; the message says why"))
    return found


def python() -> list[Finding]:
    """Check the interpreter."""
    fine = sys.version_info >= (3, 10)
    remedy = "" if fine else "use Python 3.10 or newer"
    return [Finding("Python", "ok" if fine else "wrong", f"{platform.python_version()} at {sys.executable}", remedy)]


def requirements(distribution: str = DISTRIBUTION) -> list[str]:
    """Return what setup.cfg asks for, as the installed package says it; [] where it is used without being installed."""
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def packages(texts: list[str]) -> list[Finding]:
    """Check that what requirements name is there, in those versions; extras are compared only if they are there."""
    from packaging.requirements import Requirement

    if not texts:
        remedy = f"pip install -c constraints.txt -e . in the folder of {DISTRIBUTION}"
        return [Finding("packages", "warning", "not known what is needed: it runs without being installed", remedy)]
    findings, num_fine = [], 0
    for text in texts:
        wanted = Requirement(text)
        optional = wanted.marker is not None and "extra" in str(wanted.marker)
        if wanted.marker is not None and not optional and not wanted.marker.evaluate():
            continue
        try:
            there = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            if not optional:
                findings.append(Finding(wanted.name, "wrong", "not installed", _install(wanted.name)))
            continue
        if wanted.specifier.contains(there, prereleases=True):
            num_fine += 1
        else:
            said = f"{there}, and {wanted.specifier} is needed"
            findings.append(Finding(wanted.name, "wrong", said, _install(f"{wanted.name}{wanted.specifier}")))
    return [Finding("packages", "ok", f"{num_fine} as setup.cfg asks for"), *findings]


def _install(what: str) -> str:
    return f"pip install -c constraints.txt '{what}'"


def torch() -> list[Finding]:
    """Check torch, CUDA and NCCL against the GPUs that the driver knows."""
    torch = importlib.import_module("torch")
    num_gpus, built = num_visible_gpus(), torch.version.cuda
    found = [Finding("PyTorch", "ok", f"{torch.__version__}, {f'for CUDA {built}' if built else 'for CPUs'}")]
    if not num_gpus:
        return [*found, Finding("GPUs", "ok", "none; runs use the CPU")]
    if built is None:
        remedy = "install torch for CUDA, see https://pytorch.org/get-started/locally"
        return [*found, Finding("GPUs", "wrong", f"{num_gpus}, but this PyTorch knows CPUs only", remedy)]
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not usable:
        remedy = "look at CUDA_VISIBLE_DEVICES, and whether the driver is new enough for that CUDA (nvidia-smi says)"
        return [*found, Finding("GPUs", "wrong", f"{num_gpus}, but PyTorch can use none", remedy)]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else ""
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(usable)}))
    found.append(Finding("GPUs", "ok", f"{usable} of {num_gpus}: {names}"))
    if not nccl:
        return [
            *found,
            Finding("NCCL", "wrong", "not in this PyTorch", "install torch from PyPI: several GPUs need it"),
        ]
    return [*found, Finding("NCCL", "ok", nccl)]


def faiss() -> list[Finding]:
    """Check that faiss is there once, and can use the GPU if there is one."""
    there = {}
    for name in FAISS:
        try:
            there[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    said = ", ".join(f"{name} {version}" for name, version in there.items())
    if not there:
        return [
            Finding("faiss", "warning", "not installed", f"pip install '{DISTRIBUTION}[cpu]', or [gpu]: it is faster")
        ]
    if len(there) > 1:
        return [Finding("faiss", "wrong", said, "both have the same import name: pip uninstall one of them")]
    if num_visible_gpus() and "faiss-gpu" not in there:
        remedy = "k-means runs on the GPU by torch; cluster.index faiss-gpu needs '.[gpu]' in place of '.[cpu]'"
        return [Finding("faiss", "ok", said, remedy)]
    return [Finding("faiss", "ok", said)]


def ray_token(environment: os._Environ[str] | dict[str, str]) -> list[Finding]:
    """Check that whoever reaches Ray needs a token, which nobody else can read."""
    mode = environment.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        remedy = "unset it: a Ray that other machines reach is refused without a token"
        return [Finding("Ray's token", "warning", f"RAY_AUTH_MODE={mode}", remedy)]
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_TOKEN" in environment:
        return [Finding("Ray's token", "ok", "in RAY_AUTH_TOKEN")]
    if path is None:
        return [Finding("Ray's token", "ok", "none set: a run makes one of its own for the Ray that it starts")]
    try:
        mode_bits = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        return [Finding("Ray's token", "wrong", f"{path}: {error.strerror}", "mend or unset RAY_AUTH_TOKEN_PATH")]
    if mode_bits & 0o077:
        return [Finding("Ray's token", "wrong", f"{path} has mode {mode_bits:o}", f"chmod 600 {path}")]
    return [Finding("Ray's token", "ok", f"in {path}")]


def network() -> list[Finding]:
    """Check that processes of this machine can talk, and under what address others would look for it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=10):
            found = [Finding("ports", "ok", "processes reach each other on 127.0.0.1")]
    found += _meeting_port(os.environ)
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return [*found, Finding("host name", "warning", f"{name} leads nowhere", _NAME_REMEDY)]
    if address.startswith("127."):
        return [*found, Finding("host name", "warning", f"{name} is {address} here", _NAME_REMEDY)]
    return [*found, Finding("host name", "ok", f"{name} is {address}")]


_NAME_REMEDY = "harmless on one machine; for several, name the first by an address that the others reach"


def _meeting_port(environment: os._Environ[str] | dict[str, str]) -> list[Finding]:
    """Check MASTER_PORT, if it is set, which rank 0 would listen on."""
    text = environment.get("MASTER_PORT")
    if text is None:
        return []
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        return [Finding("MASTER_PORT", "wrong", printable(text), "use a number from 1 to 65535")]
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", int(text)))
        except OSError as error:
            return [Finding("MASTER_PORT", "warning", f"{text}: {error.strerror}", "choose another port, or unset it")]
    return [Finding("MASTER_PORT", "ok", text)]


def clock() -> list[Finding]:
    """Check that something keeps this machine's clock right, as the kernel sees it."""
    ask = getattr(ctypes.CDLL(None), "adjtimex", None)
    if ask is None:
        return [Finding("clock", "ok", "the kernel cannot be asked")]
    answer = ask(ctypes.create_string_buffer(512))  # struct timex, all zero: nothing is set
    if answer == _TIME_ERROR:
        remedy = "harmless on one machine; for several, run NTP: torchrun takes one that is 15 s late for dead"
        return [Finding("clock", "warning", "the kernel knows of nothing that sets it", remedy)]
    return [Finding("clock", "ok", "set by NTP" if answer >= 0 else "the kernel does not say")]


def _size(path: str) -> int | None:
    return shutil.disk_usage(path).total if os.path.isdir(path) else None


def shared_memory(num_bytes: int | None) -> list[Finding]:
    """Check the room for what loader workers and Ray's object store share."""
    remedy = "in a container: docker run --shm-size 8g, or --ipc host; a pod: an emptyDir of medium Memory there"
    if num_bytes is None:
        return [
            Finding("shared memory", "warning", "there is no /dev/shm", "data.num_workers 0 and cluster.backend local")
        ]
    verdict: Verdict = "wrong" if num_bytes < GIB // 4 else "warning" if num_bytes < 2 * GIB else "ok"
    return [
        Finding("shared memory", verdict, f"{num_bytes / GIB:.1f} GiB in /dev/shm", remedy if verdict != "ok" else "")
    ]


def disk(what: str, folder: Path) -> list[Finding]:
    """Check the room for checkpoints and shards, or for temporary files."""
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    verdict: Verdict = "wrong" if free < GIB // 2 else "warning" if free < 10 * GIB else "ok"
    remedy = "checkpoints of a ResNet-50 take 0.5 GB each; free some, or name another place" if verdict != "ok" else ""
    return [Finding(what, verdict, f"{free / GIB:.1f} GiB free for {there.absolute()}", remedy)]


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def writing(folder: Path) -> list[Finding]:
    """Check that files can be written, locked, made durable and renamed where runs will lie."""
    there = _existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".doctor-") as own:
            path = Path(own, "lock")
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                write_text(path, "x")
    except OSError as error:
        remedy = "choose another --folder, or mend its owner and mode; runs need files that can be locked and renamed"
        return [Finding("write access", "wrong", f"{there}: {error.strerror}", remedy)]
    return [Finding("write access", "ok", f"{there}")]


def open_files(limit: int) -> list[Finding]:
    """Check how many files a process may have open: Ray takes thousands."""
    if limit == resource.RLIM_INFINITY or limit >= 4096:
        return [Finding("open files", "ok", f"{'any number' if limit < 0 else limit} per process")]
    return [Finding("open files", "warning", f"{limit} per process", "ulimit -n 65536, before Ray is started")]
