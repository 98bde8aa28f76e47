"""Tensor files: what safetensors writes is read as its library reads it; what cannot be is refused in a sentence."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from data_shards.errors import DataIntegrityError, UserError
from trainer.tensor_file import DTYPES, read_tensors, read_weights


def tensors() -> dict[str, torch.Tensor]:
    keyed = torch.Generator().manual_seed(0)
    found = {kind: torch.randint(0, 2, (3, 5), generator=keyed).to(dtype) for kind, dtype in DTYPES.items()}
    return {**found, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 7), "one": torch.ones(1, dtype=torch.uint8)}


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(tensors(), path, metadata={"format": "pt"})
    ours, theirs = read_tensors(path), load_file(path)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape
        assert torch.equal(ours[name], value)
    save_file({}, path)
    assert read_tensors(path) == {}


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "overlap": ({"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, bytes(6)),
    "gap": ({"a": entry([4], 0, 4), "b": entry([4], 5, 9)}, bytes(9)),
    "same bytes twice": ({"a": entry([4], 0, 4), "b": entry([4], 0, 4)}, bytes(4)),
    "past the end": ({"a": entry([4], 0, 4)}, bytes(3)),
    "bytes left over": ({"a": entry([4], 0, 4)}, bytes(5)),
    "shape overflow": ({"a": entry([1 << 32, 1 << 32], 0, 0)}, b""),
    "empty shape overflow": ({"a": entry([1 << 40, 1 << 40, 0], 0, 0)}, b""),
    "shape and bytes": ({"a": entry([5], 0, 4)}, bytes(4)),
    "negative": ({"a": entry([-4], 0, 4)}, bytes(4)),
    "reversed": ({"a": entry([4], 4, 0)}, bytes(4)),
    "truth as a number": ({"a": entry([True], 0, 1)}, bytes(1)),
    "fraction": ({"a": entry([4.0], 0, 4)}, bytes(4)),  # type: ignore[list-item]
    "dtype": ({"a": entry([4], 0, 4, "Q4")}, bytes(4)),
    "dtype is a list": ({"a": entry([4], 0, 4, ["U8"])}, bytes(4)),  # type: ignore[arg-type]
    "many dimensions": ({"a": entry([1] * 17, 0, 1)}, bytes(1)),
    "extra field": ({"a": {**entry([4], 0, 4), "x": 1}}, bytes(4)),
    "no field": ({"a": {}}, b""),
    "duplicate": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8"}}', bytes(1)),
    "list": ([], b""),
    "deep": (b"[" * 150_000, b""),
    "long number": (b'{"a":' + b"9" * 100_000 + b"}", b""),
    "not JSON": (b"{" * 20, b""),
    "not UTF-8": (b'{"\xff":1}', b""),
    "truth of 7": ({"a": entry([2], 0, 2, "BOOL")}, b"\x01\x07"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.safetensors", *HOSTILE[name])
    with pytest.raises(DataIntegrityError, match=r"t\.safetensors is no sound safetensors file: .+") as refusal:
        read_tensors(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_refused_or_reads_as_tensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(save(tensors()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_tensors(path)
    except DataIntegrityError:
        return
    assert sum(value.numel() * value.itemsize for value in found.values()) <= path.stat().st_size


def test_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    save_file(tensors(), tmp_path / "whole")
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    (tmp_path / "empty").touch()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for path in ("pipe", "link", "empty", "sparse", "absent", ".", "/dev/zero", "null\0"):
        with pytest.raises(DataIntegrityError):
            read_tensors(tmp_path / path)
    with pytest.raises(DataIntegrityError, match="the most"):
        read_tensors(tmp_path / "whole", max_bytes=100)


def test_weights_of_either_kind(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(4, 3), "a.steps": torch.tensor(3)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "w.safetensors")
    for name in ("w.safetensors", "w.pth", "old.pth", "link.safetensors"):
        found = read_weights(tmp_path / name)
        assert set(found) == set(state) and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "content",
    [[], {"model": {"a": torch.ones(1)}}, {1: torch.ones(1)}, {"a": torch.ones(1).expand(1 << 40)},
     {"a": torch.ones(2).to_sparse()}, {"a": torch.ones(2, dtype=torch.complex64)}, {"a": "text"}],
)  # fmt: skip
def test_what_is_no_flat_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no readable weights"):
        read_weights(tmp_path / "w.pth")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_weights_does_not_run(zipped: bool, suffix: str, tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds no readable weights"):
        read_weights(tmp_path / f"w{suffix}")
    assert not (tmp_path / "ran").exists()
    with (tmp_path / f"w{suffix}").open("rb") as file:
        torch.load(file, weights_only=False)  # what would have happened
    assert (tmp_path / "ran").exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    import zipfile

    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item), 8)
    assert (tmp_path / "b.pth").stat().st_size < 1 << 16
    with pytest.raises(UserError, match="holds no readable weights"):
        read_weights(tmp_path / "b.pth")
