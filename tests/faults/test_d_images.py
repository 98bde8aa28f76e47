"""Images that are corrupt, odd, or bombs: one line in rejected.csv each, and the build goes on."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards import rendering
from data_shards.build import REJECTED_NAME, build
from data_shards.decode import Unreadable, load_image, load_mask
from data_shards.errors import DataIntegrityError
from data_shards.reader import open_shards
from data_shards.sandbox import Limits, Reply, Sandbox
from data_shards.verify import verify
from tests.faults.memory import grown_mb
from tests.faults.odd_images import encoded, mutated, odd_files, picture, png_bomb, seeds
from tests.runs import ROOT, environment

FLIPS = 400
OPTIONS = {"validation": 0, "test": 0}


def rejected(dest: Path) -> dict[str, str]:
    if not (dest / REJECTED_NAME).exists():
        return {}
    with open(dest / REJECTED_NAME, newline="") as stream:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(stream)}


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_d3_flipped_jpegs_in_shards(record: Any, tmp_path: Path) -> None:
    """The decoder takes most of them for good images; the crc takes none."""
    folder_of(tmp_path / "set", {"good.jpg": seeds()["rgb.jpg"], "other.jpg": seeds()["gray.jpg"]})
    build(f"folder:{tmp_path / 'set'}", tmp_path / "shards", options=OPTIONS)
    reader = open_shards(tmp_path / "shards").split("train")
    shard, local = reader._locate(0)
    data = shard.image_bytes(local).tobytes()
    rng = np.random.default_rng(3)
    silent_decodes = silent = 0
    for _ in range(FLIPS):
        spoilt = bytearray(data)
        spoilt[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        silent += zlib.crc32(spoilt) == int(shard.crcs[local])
        try:
            load_image(bytes(spoilt), 3)
            silent_decodes += 1
        except Unreadable:
            continue
    assert silent == 0
    assert silent_decodes > FLIPS // 2
    record("D3", "one flipped bit in a JPEG", trials=FLIPS, silent=silent, silent_without_crc=silent_decodes, seed=3)


def test_d3_corrupt_and_odd_files_in_a_build(record: Any, tmp_path: Path) -> None:
    files = {name: data for name, (data, _) in odd_files().items()}
    cut = {f"cut{share}.{kind}": data[: len(data) * share // 100] for share in (10, 50, 90)
           for kind, data in (("jpg", seeds()["rgb.jpg"]), ("png", seeds()["rgb.png"]))}  # fmt: skip
    folder_of(tmp_path / "set", {**files, **cut, "good.png": encoded(picture(), "PNG")})
    began = time.monotonic()
    manifest = build(f"folder:{tmp_path / 'set'}", tmp_path / "dest", size=32, options=OPTIONS, num_workers=2)
    reasons = rejected(tmp_path / "dest")
    expected = {name for name, (_, taken) in odd_files().items() if not taken} | set(cut)
    assert set(reasons) == expected, {name: reasons.get(name, "taken") for name in set(reasons) ^ expected}
    assert all(text.isprintable() for text in reasons.values())
    assert manifest.num_rows("train") == len(files) + len(cut) + 1 - len(expected)
    assert verify(tmp_path / "dest") == []
    record("D3", "odd and truncated files in a build", cases=len(files) + len(cut), rejected=len(reasons),
           seconds=time.monotonic() - began)  # fmt: skip


DIES = {
    "dies.jpg": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hangs.jpg": lambda: time.sleep(600),
    "spins.jpg": lambda: [0 for _ in iter(int, 1)],
    "eats.jpg": lambda: np.ones(1 << 31),
}


def test_d3_decoders_that_die_hang_and_eat(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {f"{number}.jpg": seeds()["rgb.jpg"] for number in range(20)}
    folder_of(tmp_path / "set", {**good, **dict.fromkeys(DIES, seeds()["gray.jpg"])})
    build(f"folder:{tmp_path / 'set'}", tmp_path / "undisturbed", size=16, options=OPTIONS)

    render = rendering.render

    def harmful(record: Any, *rest: Any) -> Reply:
        DIES.get(record.file.name, lambda: None)()
        return render(record, *rest)

    monkeypatch.setattr("data_shards.build.render", harmful)
    monkeypatch.setattr("data_shards.sandbox.Limits", lambda: Limits(memory_bytes=1 << 30, seconds=2))
    began = time.monotonic()
    build(f"folder:{tmp_path / 'set'}", tmp_path / "dest", size=16, options={**OPTIONS, "channels": 3}, num_workers=2)
    reasons = rejected(tmp_path / "dest")
    assert set(reasons) == set(DIES)
    assert "SIGSEGV" in reasons["dies.jpg"] and "more than 2 s" in reasons["hangs.jpg"]
    ours, theirs = (open_shards(tmp_path / name).split("train") for name in ("dest", "undisturbed"))
    by_path = {theirs.path(row): theirs.image(row) for row in range(len(theirs))}
    assert all(np.array_equal(ours.image(row), by_path[ours.path(row)]) for row in range(len(ours)))
    record("D3", "decoders that crash, hang, spin, take 16 GB", rejected=len(reasons), lost=0,
           seconds=time.monotonic() - began)  # fmt: skip


BUILD = """
import resource, sys
from pathlib import Path
from data_shards.build import build
build(f"folder:{sys.argv[1]}", Path(sys.argv[2]), size=32, options={"validation": 0, "test": 0})
from tests.faults.memory import peak_mb
print(round(peak_mb()), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def test_d4_decompression_bombs(record: Any, tmp_path: Path) -> None:
    small = {f"{number}.png": encoded(picture(), "PNG") for number in range(4)}
    folder_of(tmp_path / "good", small)
    folder_of(tmp_path / "bad", {**small, "bomb.png": png_bomb(13_000), "half.png": png_bomb(9_500)})
    memory = {}
    for name in ("good", "bad"):
        words = [sys.executable, "-c", BUILD, str(tmp_path / name), str(tmp_path / f"{name}.shards")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment(), cwd=ROOT)
        assert done.returncode == 0, done.stderr
        memory[name] = [int(word) for word in done.stdout.split()]
    reasons = rejected(tmp_path / "bad.shards")
    assert set(reasons) == {"bomb.png", "half.png"} and all("pixels" in text for text in reasons.values())
    more = max(bad - good for good, bad in zip(memory["good"], memory["bad"], strict=True))
    assert more < 60  # decoded, it would be 169
    size = len(png_bomb(13_000)) // 1000
    record("D4", f"PNG of 13,000 x 13,000 pixels in {size} KB", max_rss_mb=max(memory["bad"]), more_mb=more, rc=0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_d4_a_bomb_in_a_shard(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged shard whose row says 40 x 40 and whose bytes are 169 megapixels: told by its header."""
    folder_of(tmp_path / "set", {"a.png": encoded(picture(), "PNG"), "b.png": encoded(picture(), "PNG")})
    bomb, render = png_bomb(13_000), rendering.render

    def forged(record: Any, *rest: Any) -> Reply:
        facts, _ = render(record, *rest)
        return {**facts, "image": len(bomb)}, bomb

    monkeypatch.setattr("data_shards.build.render", forged)
    build(f"folder:{tmp_path / 'set'}", tmp_path / "dest", options=OPTIONS)
    reader = open_shards(tmp_path / "dest").split("train")

    def refused() -> None:
        with pytest.raises(DataIntegrityError, match="13000 x 13000 instead of 40 x 40"):
            reader.image(0)

    more = grown_mb(refused)
    assert more < 60 < 100 < grown_mb(lambda: Image.open(io.BytesIO(bomb)).load())  # 169 less what the heap has
    record("D4", "the same as a row of a shard", more_mb=more, rc=3)


@pytest.mark.parametrize("tries", [400, pytest.param(10_000, marks=pytest.mark.matrix)])
def test_d3_fuzzed_images(tries: int, record: Any) -> None:
    kinds = sorted(seeds().items())

    def step(number: int) -> Reply:
        _, data = kinds[number % len(kinds)]
        spoilt = mutated(data, "image", number)
        if number % 5 == 0:
            return {"shape": load_mask(spoilt).size}, b""
        array = load_image(spoilt, 1 + 2 * (number % 2), 16 if number % 3 else None)
        return {"shape": array.shape}, b""

    with Sandbox(step, 2) as sandbox:
        found = list(sandbox.run(range(tries)))
    reasons = [str(one) for one in found if isinstance(one, Unreadable)]
    died = [text for text in reasons if "decoder died" in text or "more than" in text]
    assert tries // 20 < len(reasons) < tries
    assert all(text.isprintable() for text in reasons)
    record(
        "D3", "fuzzed JPEG, PNG and BMP files", trials=tries, refused=len(reasons), decoders_died=len(died), crashes=0
    )
