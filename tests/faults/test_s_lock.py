"""S12: what the container installs is named by hash; a file that is another one is refused before it is unpacked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.faults.conftest import Recorder

METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(folder: Path) -> Path:
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    return path


def install(folder: Path, lock: str) -> subprocess.CompletedProcess[str]:
    (folder / "lock").write_text(lock)
    words = [
        "install",
        "--isolated",
        "--no-index",
        "--find-links",
        folder,
        "--target",
        folder / "site",
        "--no-cache-dir",
    ]
    words += ["--no-cache-dir", "--require-hashes", "--only-binary", ":all:", "-r", folder / "lock"]
    return subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)


def test_s12_another_file_is_refused(tmp_path: Path, record: Recorder) -> None:
    path = wheel(tmp_path)
    line = f"tiny==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refusal = install(tmp_path, line)
    assert refusal.returncode != 0 and "DO NOT MATCH THE HASHES" in refusal.stderr
    assert not (tmp_path / "site").exists()
    assert install(tmp_path, "tiny==1.0\n").returncode != 0  # nor one that is not named by its hash
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert install(tmp_path, line).returncode == 0
    record("S12", "one bit of a locked file is another; a file without a hash", refused=2, installed=0)


def test_s12_audit(record: Recorder) -> None:
    record.impossible("S12", "pip-audit asks a vulnerability service, which is not reached from here")
