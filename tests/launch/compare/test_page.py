"""The page: whole, with everything that the tables have, and safe against what names hold."""

from __future__ import annotations

from pathlib import Path

from launch.compare import page
from launch.compare.comparison import compared
from launch.compare.sweep_file import read_sweep
from tests.launch.compare.make_sweep import write_runs, write_sweep
from tests.launch.report.test_page import Page


def page_of(folder: Path, skip: tuple[str, ...] = (), **changes: object) -> Page:
    path, out = write_sweep(folder, **changes), folder / "out"
    out.mkdir()
    comparison = compared(read_sweep(path), out, write_runs(path, out, skip=skip), {}, lambda text: None)
    return Page(page.write(comparison, path).read_text(encoding="utf-8"))


def test_everything_is_on_the_page_and_nothing_is_loaded(tmp_path: Path) -> None:
    found = page_of(tmp_path, skip=("digits single seed 1",))
    for text in ("3 methods, 2 seeds and 1 dataset", "1 run of 6 missing", "digits single seed 1 not run yet"):
        assert text in found.text
    assert "fixed | K = 2" in found.text
    assert "Does it keep up without a search for K?" in found.text
    assert "subspace train" in found.text
    for tag, name in (("img", "src"), ("source", "srcset"), ("link", "href")):
        assert all(str(attrs[name]).startswith("data:") for attrs in found.all(tag)), tag
    (picture,) = found.all("img")
    assert "fixed | K = 2: NMI " in str(picture["alt"])
    assert (tmp_path / "out/plots/differences-digits.png").exists()
    classes = [attrs.get("class") for attrs in found.all("span")]
    assert classes.count("best") == classes.count("second") == 3


def test_titles_are_text(tmp_path: Path) -> None:
    found = page_of(tmp_path, titles={"adsl": "<script>x</script>", "digits": "a & b"})
    assert found.all("script") == []
    assert "<script>x</script>" in found.text
    assert "a & b" in found.text


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    names = tuple(f"digits {m} seed {s}" for m in ("adsl", "mml-2", "single") for s in (0, 1))
    found = page_of(tmp_path, skip=names)
    assert "6 runs of 6 missing" in found.text
    assert found.all("img") == []
