"""Configurations made to break a reader, functions of (seed, number): by the schema, damaged, bombs, odd files."""

from __future__ import annotations

import copy
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.config import checked

ROOT = Path(__file__).parent.parent.parent
TEXTS = (
    *("", " ", ".", "..", "../../etc/passwd", "/dev/zero", "a/b", "-x", "~", "$HOME", "`id`", "%s%n", "null", "no"),
    *("1e400", "-.inf", ".nan", "nan", "1_000", "1:30:00", "2001-01-01", "=", "<<", "!x", "&a", "*a", "éé", "[", "{"),
    *("%", "@", "#", "'", "|", ">", '"', "😀", "\u202e", "\ufeff", "\x85", "\u2028", "\x1b[31m", "a\nb", "\x00", "\t"),
    *("\ud800", "0x" + "f" * 40, "9" * 5000, "x" * 5000, "!!python/object/apply:os.system [id]", "- a", "? a", "a: b"),
)
NUMBERS = (0, 1, -1, 2, 3, 64, 10**6, 2**31, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308)
VALUES = (
    *(*TEXTS, *NUMBERS, float("inf"), float("nan"), None, True, False, [], {}, [1], [1, 2], [[[]]], [None]),
    *({"a": 1}, {"name": "x"}, {1: 2}, {None: 1}),
)
LAUGHS = "".join(f"{y}: &{y} [{','.join(['*' + x] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True))
BOMBS = (
    *("a: &a [x,x,x]\n" + LAUGHS, "&a {data: *a}", "x: &a [*a]", "<<: {data: {shards: x}}"),
    *("[" * 100_000, "{a: " * 100_000, "- " * 50_000, "? " * 50_000, "a: " * 50_000, "!!set {" + "a, " * 40_000 + "}"),
    *("x: " + number for number in ("9" * 200_000, "1:" * 80_000 + "1", "0b" + "1" * 200_000, "1." + "0" * 200_000)),
    *("x: !!binary " + "A" * 200_000, "x: !!python/object/apply:os.system [touch ran]", "x: !!python/name:os.system"),
    *("x: !!python/object/new:os.system [touch ran]", "!!python/module:os"),
    *("x: !<tag:yaml.org,2002:python/name:os.system>", "%TAG ! tag:yaml.org,2002:python/\n---\nx: !name:os.system"),
    *("---\n" * 50_000, "k: 1\n" * 9_000, "".join(f"k{i}: 1\n" for i in range(25_000)), "%YAML 9.9\n---\na: 1"),
    *(" " * 250_000, "\n" * 250_000, "#" * 250_000, "a" * 300_000, "'" + "''" * 120_000 + "'", '"' + "\\x41" * 50_000),
    *("a: |\n" + " x\n" * 80_000, "x: >\n" + "\n" * 200_000),
)
MARKS = b"\x00\xff\xfe:[]{}-?!&*|>'\"%@`#,\n\t \x1b\x85"
PARTS = (
    *({"name": "small_resnet", "widths": [8, 16], "blocks": [1, 1]}, {"name": "margin", "beta": 1.0}, {"name": "ddp"}),
    *({"name": "distance_weighted", "cutoff": 0.4}, {"name": "attention", "hidden": [8, 4]}),
)
WORDS = ("local", "ray", "auto", "torch", "adam", "sgd", "cosine", "fp32", "bf16", "nmi", "embedding", "skip", "zeros")
ODD = ("folder", "pipe", "socket", "absent", "loop", "empty", "folder/x/y", "c.yaml/x", "sparse", "link")


class Case(NamedTuple):
    """What one try gives the reader: a file (written with `content` first), words, environment variables."""

    path: str
    content: bytes | None = None
    words: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield (*place, name)
        yield from leaves(value, (*place, name))


DEFAULTS = checked({"data": {"shards": "x"}}, "").model_dump(mode="json")
SCHEMA = list(leaves(DEFAULTS))
FILES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").rglob("*.yaml"))]
SHIPPED = [tree for tree in FILES if "methods" not in tree]  # the others are sweeps


def put(tree: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for name in place[:-1]:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            inner = tree[name] = {}
        tree = inner
    tree[place[-1]] = copy.deepcopy(value)  # what is put may be changed later


def likely(rng: random.Random) -> Any:
    """Return a value that some setting takes."""
    numbers = (rng.randint(1, 300), 2 ** rng.randrange(7), round(rng.uniform(0, 1), 3), 10 ** rng.uniform(-6, 1))
    others = (rng.random() < 0.5, rng.choice(WORDS), rng.choice(PARTS), [0.5, 1.0], [0.1], None, "a/ö b")
    return rng.choice((*numbers, *others))


def likely_for(place: tuple[str, ...], rng: random.Random) -> Any:
    """Return a value like the default at a place of the schema, mostly."""
    default: Any = DEFAULTS
    for name in place:
        default = default[name]
    if isinstance(default, bool):
        return rng.random() < 0.5
    if isinstance(default, int):
        return default * rng.choice((1, 2, 4)) + rng.choice((0, 0, 1))
    if isinstance(default, float):
        return default * rng.uniform(0.1, 3)
    return rng.choice((default, likely(rng)))


def tree_of(rng: random.Random) -> dict[str, Any]:
    """Return a shipped configuration with a few things changed, most of them plausibly."""
    tree: dict[str, Any] = copy.deepcopy(rng.choice(SHIPPED))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        place = rng.choice(SCHEMA)
        kind = rng.random()
        if kind < 0.75:
            put(tree, place, likely_for(place, rng))
        elif kind < 0.9:
            put(tree, place, rng.choice(VALUES))
        elif kind < 0.95:
            put(tree, (*place[:-1], rng.choice((*TEXTS, place[-1] + "x", place[-1][1:]))), rng.choice(VALUES))
        else:
            tree.pop(place[0], None)
    return tree


def dumped(tree: Any, rng: random.Random) -> bytes:
    text = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, default_flow_style=rng.choice((None, True, False)))
    return text.encode("utf-8", "surrogatepass")


def damaged(content: bytes, rng: random.Random) -> bytes:
    text = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        way = rng.randrange(6)
        if way == 0 and text:
            text[at % len(text)] ^= 1 << rng.randrange(8)
        elif way == 1:
            text[at:at] = bytes(rng.choice(MARKS) for _ in range(rng.randint(1, 9)))
        elif way == 2:
            del text[at : at + rng.randint(1, 40)]
        elif way == 3:
            text[at:at] = text[at // 2 : at // 2 + rng.randint(1, 200)]
        elif way == 4:
            text[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:300]
        else:
            encoding = rng.choice(("utf-16", "utf-8-sig", "latin-1"))
            text[:] = bytes(text).decode("utf-8", "replace").encode(encoding, "replace")
    return bytes(text)


def word(rng: random.Random) -> str:
    """Return a word of the command line that is, or looks like, a setting."""
    name = ".".join(rng.choice(SCHEMA))
    wrong = (name + ".x", name[:-1], rng.choice(TEXTS), "a." * 500 + "a", "")
    name = rng.choice((name, name, name, name.replace("_", "-"), *wrong))
    value = rng.choice((str(likely(rng)), str(likely(rng)), rng.choice(TEXTS), rng.choice(BOMBS)[:5000]))
    plain = f"{name}={value}"
    return rng.choice((plain, plain, f"--{plain}", name, f"={value}", f"{name}=={value}"))


def variables(rng: random.Random) -> tuple[tuple[str, str], ...]:
    good = [(f"SUBSPACE__{'__'.join(rng.choice(SCHEMA)).upper()}", str(likely(rng))) for _ in range(2)]
    odd = ("SUBSPACE__" + rng.choice(("", "__", "X", "DATA__", "é")), rng.choice(TEXTS))
    if rng.random() < 0.5:  # of what a system lets through
        good.append((odd[0], odd[1].replace("\0", "").replace("\ud800", "\udc80")))
    return tuple(good)


def case(seed: int, number: int, folder: Path) -> Case:
    """Return what try `number` gives; the same for the same seed."""
    rng = random.Random(f"{seed}:{number}")
    file, kind = str(folder / "c.yaml"), rng.random()
    content = dumped(tree_of(rng), rng)
    if kind < 0.4:
        return Case(file, content)
    if kind < 0.65:
        return Case(file, damaged(content, rng))
    if kind < 0.72:
        bomb = rng.choice(BOMBS).encode()
        return Case(file, rng.choice((bomb, content + b"\n" + bomb, bomb[: rng.randrange(len(bomb))])))
    if kind < 0.76:
        return Case(rng.choice([str(folder / name) for name in ODD] + ["", "\0", "/dev/full", "/dev/zero", "x" * 5000]))
    if kind < 0.8:
        return Case(file, content, variables=variables(rng))
    return Case(file, dumped(rng.choice(SHIPPED), rng), tuple(word(rng) for _ in range(rng.randint(1, 3))))


def lay_out(folder: Path) -> None:
    """Make what is no file to read, and go there: the path of a socket must be short."""
    os.chdir(folder)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (folder / "loop").symlink_to("loop")
    (folder / "link").symlink_to("c.yaml")
    (folder / "empty").touch()
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "c.yaml").touch()
