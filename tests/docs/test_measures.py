"""The measures of docs/architecture.md on files written by hand, and the page's words about the code's cycles."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks import measures, source
from benchmarks.measures import Length
from tests.docs.pages import ROOT

CODE = '''"""Doc."""

import torch.distributed as dist


class Box:
    @property
    def open(self) -> int:
        """One."""

        def inner(x): return x

        return 1

    def shut(self, *, at: int, **rest: int) -> None: ...


async def told(x: int): ...
'''


def test_functions_are_measured_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    path = tmp_path / "launch" / "box.py"
    path.write_text(CODE)
    assert list(measures.functions(path, tmp_path)) == [
        (Length(6, "launch/box.py Box.open()"), True),
        (Length(1, "launch/box.py Box.open.inner()"), False),
        (Length(1, "launch/box.py Box.shut()"), True),
        (Length(1, "launch/box.py told()"), False),
    ]
    assert measures.file_lengths([path], tmp_path) == [Length(18, "launch/box.py")]
    assert measures.imports_distributed(path)
    assert not measures.mirrored(path, tmp_path)
    (tmp_path / "tests" / "launch").mkdir(parents=True)
    (tmp_path / "tests" / "launch" / "test_box.py").touch()
    assert measures.mirrored(path, tmp_path)


def test_a_parameter_without_annotation_counts() -> None:
    texts = {"def f(a: int, *b: int) -> int: ...": True, "def f(a: int, *b) -> int: ...": False}
    for text, typed in texts.items():
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        assert measures.is_typed(function) == typed


def test_empty_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "__init__.py").touch()
    (tmp_path / "cluster" / "a.py").write_text("x = 1\n")
    assert source.files(tmp_path) == [tmp_path / "cluster" / "a.py"]


def test_cycles_are_sets_that_reach_each_other() -> None:
    found = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "f": {"g"}, "g": {"f"}}
    assert source.cycles(found) == [["a", "b", "c"], ["f", "g"]]
    assert source.cycles({"a": {"b"}}) == []


def test_no_storey_is_in_a_cycle_and_the_page_says_so() -> None:
    storeys: dict[str, set[str]] = {}
    for module, others in source.imports().items():
        storeys.setdefault(module.partition(".")[0], set()).update(each.partition(".")[0] for each in others)
    assert source.cycles(storeys) == []
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "None of them is between storeys" in " ".join(page.split())
