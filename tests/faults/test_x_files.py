"""X2: files of a run, damaged and forged. A reader gives a value or an error with an exit code; never a traceback.

Half of the tries change bytes; the others put a foreign value somewhere into the JSON and make the checksums right
again, as a forger would.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from launch.sweep import points
from tests.faults.conftest import Recorder
from tests.faults.fuzz_cases import TEXTS, VALUES, damaged
from tests.faults.sound_run import READERS, forged, parsed, sound_run

SEED = 6


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a JSON tree."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*place, name)
        yield from places(value, (*place, name))


def changed(tree: Any, rng: random.Random) -> Any:
    """Return the tree with a value replaced, removed, or doubled somewhere."""
    tree = copy.deepcopy(tree)
    *parents, last = rng.choice(list(places(tree)))
    inner = tree
    for name in parents:
        inner = inner[name]
    way = rng.random()
    if way < 0.7:
        inner[last] = copy.deepcopy(rng.choice(VALUES))
    elif way < 0.85:
        del inner[last]
    elif isinstance(inner, list):
        inner.insert(rng.randrange(len(inner) + 1), copy.deepcopy(inner[last]))
    else:
        inner[rng.choice(TEXTS)] = inner[last]
    return tree


def spoil(path: Path, rng: random.Random) -> bool:
    """Change the file; return whether it was forged."""
    tree = parsed(path)
    if tree is not None and rng.random() < 0.5:
        try:
            forged(path, changed(tree, rng))
            return True
        except (ValueError, TypeError):  # what JSON cannot say: infinities with a checksum, keys of other kinds
            pass
    path.write_bytes(damaged(path.read_bytes(), rng))
    return False


@pytest.mark.parametrize("tries", [60, pytest.param(1_250, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("name", READERS)
def test_x2_readers_of_a_run(name: str, tries: int, tmp_path: Path, sound: Path, record: Recorder) -> None:
    reader, files = READERS[name]
    read, refused, forgeries, uncaught = 0, 0, 0, []
    run = tmp_path / "run"
    for number in range(tries):
        rng = random.Random(f"{SEED}:{name}:{number}")
        shutil.copytree(sound, run)
        forgeries += spoil(run / rng.choice(files), rng)
        try:
            reader(run)
            read += 1
        except UserError as error:
            assert error.exit_code in (2, 3, 4, 5, 6, 7) and str(error).isprintable()
            refused += 1
        except Exception as error:
            uncaught.append(f"{number}: {type(error).__name__}: {error!s:.200}")
        shutil.rmtree(run)
    assert uncaught == []
    assert refused > 0
    record("X2", f"{name} of a run, damaged or forged", seed=SEED, tries=tries, forged=forgeries, read=read,
           refused=refused, uncaught=0)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sound") / "run"
    sound_run(run)
    for reader, _ in READERS.values():  # all of it is read while nothing is changed
        copied = run.with_name("copy")
        shutil.copytree(run, copied)
        reader(copied)
        shutil.rmtree(copied)
    return run


def test_x2_axes_of_a_sweep(record: Recorder) -> None:
    tries, refused = 2_000, 0
    for number in range(tries):
        rng = random.Random(f"{SEED}:sweep:{number}")
        axes = [
            f"{rng.choice((*TEXTS, 'seed', 'a.b'))}={','.join(rng.choices(TEXTS, k=2))}"
            for _ in range(rng.randint(1, 3))
        ]
        try:
            found = points(axes)
        except UserError:
            refused += 1
            continue
        assert all("/" not in point.name and point.name not in ("", ".", "..") for point in found)
        assert all(point.name.isprintable() and len(point.name) < 200 for point in found)
    assert 0 < refused < tries
    record("X2", "axes of a sweep", seed=SEED, tries=tries, refused=refused, uncaught=0)
