"""The static gate: nothing that is shipped can turn data into code, whatever file it is given.

Names are followed through `import ... as` and `from ... import`, so that an alias does not help; SAMPLES shows that
each forbidden form is found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.runs import ROOT

PACKAGES = ("data_shards", "cluster", "trainer", "launch")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle", "pandas"}
MODULES |= {"tarfile", "zipfile", "runpy", "code", "codeop", "imp", "torch.package", "torch.hub", "ray.cloudpickle"}
NAMES = {"eval", "exec", "compile", "__import__", "builtins"}
CALLS = {
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "torch.save",
    "torch.jit.load",
    "torch.distributed.checkpoint.load",
}
OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "send_object_list"}
METHODS = {*OBJECTS, "recv_object_list", "unpack_archive", "extractall", "unsafe_load", "full_load", "read_pickle"}
YAML_DOOR = "launch/yaml_file.py"

SAMPLES = """
import pickle
import cPickle
import dill as d
from cloudpickle import loads
import shelve
import marshal
import joblib
from joblib import load
import tarfile
from zipfile import ZipFile
import ray.cloudpickle
from ray import cloudpickle
import torch.hub
from torch import hub
import pandas
eval('1')
exec('1')
compile('1', '', 'exec')
run = eval
__import__('os')
import builtins; builtins.eval('1')
import yaml; yaml.load(x, Loader=yaml.Loader)
import yaml; yaml.unsafe_load(x)
import yaml as y; y.safe_load(x)
from yaml import load
import numpy as np; np.load(x)
import numpy as np; np.load(x, allow_pickle=True)
read(x, allow_pickle=flag)
import torch; torch.load(x)
import torch as t; t.load(x, weights_only=False)
import torch; torch.load(x, weights_only=flag)
from torch import load; load(x)
import torch; torch.save(x, y)
dist.all_gather_object(a, b)
dist.broadcast_object_list(a)
dist.gather_object(a)
import shutil; shutil.unpack_archive(x)
archive.extractall()
import os; os.system('id')
from os import system; system('id')
import tempfile; tempfile.mktemp()
from tempfile import mktemp as m; m()
import subprocess as s; s.run('id', shell=True)
run('id', shell=flag)
model.from_pretrained(x, trust_remote_code=True)
""".strip().splitlines()

INNOCENT = """
model.eval()
import re; re.compile('x')
import torch; torch.load(x, weights_only=True)
run(['id'], shell=False)
import yaml; yaml.safe_dump(x)
import numpy as np; np.load(x, allow_pickle=False)
pickled = 1
class Section: compile: bool = False
""".strip().splitlines()


def forbidden(source: str, file: str = "") -> list[tuple[int, str]]:
    """Return (line, what) of everything in `source` that may not be there."""
    tree, found = ast.parse(source), []
    names = {name: whole for _, name, whole in _imports(tree)}
    for line, _, whole in _imports(tree):
        if {whole, *_parents(whole)} & (MODULES | NAMES) or _is_door(whole, file):
            found.append((line, whole))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            whole = _dotted(node, names)
            if whole in NAMES | CALLS or whole.rpartition(".")[2] in METHODS or _is_door(whole, file):
                found.append((node.lineno, whole))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _arguments(_dotted(node.func, names), node)]
    return sorted(set(found))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name in this file, what it stands for)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, f"{node.module}.{alias.name}"


def _parents(whole: str) -> list[str]:
    parts = whole.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _is_door(whole: str, file: str) -> bool:
    return whole.startswith("yaml.") and whole != "yaml.safe_dump" and file != YAML_DOOR


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _arguments(called: str, call: ast.Call) -> Iterator[str]:
    given = {word.arg: word.value for word in call.keywords}
    for name in ("allow_pickle", "shell", "trust_remote_code"):
        if name in given and not _is(given[name], False):
            yield f"{name}=True"
    if called == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if called == "numpy.load" and not _is(given.get("allow_pickle"), False):
        yield "numpy.load without allow_pickle=False"


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("source", SAMPLES)
def test_every_forbidden_form_is_found(source: str) -> None:
    assert forbidden(source)


@pytest.mark.parametrize("source", INNOCENT)
def test_what_only_looks_like_it_is_not(source: str) -> None:
    assert forbidden(source) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_is_shipped_turns_data_into_code(package: str) -> None:
    files = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / package).rglob("*.py")}
    assert files
    assert [f"{file}:{line}: {what}" for file in files for line, what in forbidden(files[file], file)] == []
