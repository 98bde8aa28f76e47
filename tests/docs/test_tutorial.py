"""The tutorial, typed in from top to bottom in a folder of its own, then the Python of other pages, which goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.tutorial import PAGE, ROOT, Step, filled, prepared, run, skeleton, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
Typed = tuple[Path, dict[str, str], list[tuple[Step, str]]]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """Return the folder, its environment, and every step with what it printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = prepared(folder)
    return folder, environment, [(step, run(step, folder, environment)) for step in steps(PAGE.read_text())]


def test_every_command_runs_and_prints_what_the_page_shows(typed: Typed) -> None:
    for step, output in typed[2]:
        if step.shown is not None:
            assert skeleton(output) == skeleton(step.shown), step.code


def test_it_ends_with_a_picture_of_what_was_found(typed: Typed) -> None:
    folder = typed[0]
    assert (folder / "found.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "runs" / "digits" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", ["README.md", "docs/faq.md"])
def test_python_of_other_pages_runs_as_written(typed: Typed, page: str) -> None:
    folder, environment, _ = typed
    blocks = [step.code for step in steps((ROOT / page).read_text()) if step.kind == "python"]
    assert blocks
    run(Step("python", "\n".join(blocks), None), folder, environment)


def test_blocks_become_steps_and_outputs_go_back() -> None:
    text = "a\n```sh\none\n```\n\n```text\nold\n```\n\n```\nnot run\n```\n\n```python\ntwo\n```\n"
    assert steps(text) == [Step("sh", "one\n", "old\n"), Step("python", "two\n", None)]
    assert filled(text, iter(["new\n", "unseen\n"])) == text.replace("old", "new")


def test_a_skeleton_has_no_numbers_and_no_frames() -> None:
    assert skeleton("│ NMI  0.858±0.012 │\n20:57:28 epoch 4  step 10/17  loss 0.19\n12 s ago") == ["NMI", "ago"]


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    assert run(Step("python", "print(1)", None), tmp_path, environment) == "1\n"
    with pytest.raises(AssertionError, match="exit 3"):
        run(Step("sh", "exit 3", None), tmp_path, environment)
