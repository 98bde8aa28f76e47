"""Numbers as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.report import figures, tables
from launch.report.collect import Evaluation, Run


def run_of(**parts: Any) -> Run:
    known: dict[str, Any] = {"config": {}, "env": {}, "steps": [], "epochs": [], "events": [], "evaluations": {}}
    return Run(path=Path("r"), status={"state": "completed"}, config_text="", **{**known, **parts})


def test_best_epoch_is_the_first_with_the_highest_monitored_score() -> None:
    values = [0.2, 0.5, 0.4, 0.5]
    epochs = [{"epoch": e, "validation": {"nmi": {"mean": v}, "recall": {"1": e / 10}}} for e, v in enumerate(values)]
    assert figures.best_epoch(run_of(epochs=epochs)) == figures.Best("nmi", 0.5, 2)
    by_recall = run_of(epochs=epochs, config={"growth": {"monitor": "recall_at_1"}})
    assert figures.best_epoch(by_recall) == figures.Best("recall@1", 0.3, 4)
    losses = [{"epoch": e, "validation": {"loss": v}} for e, v in enumerate([3.0, 2.0, 2.0, 2.5])]
    by_loss = run_of(epochs=losses, config={"growth": {"monitor": "loss"}})
    assert figures.best_epoch(by_loss) == figures.Best("loss", 2.0, 2)
    assert figures.best_epoch(run_of()) is None


def test_subspaces_are_those_of_the_kept_weights() -> None:
    """Training went on to three subspaces, but the best epoch had two."""
    sizes = {1: [60, 40], 3: [10, 90], 5: [3, 3, 4]}
    events = [{"event": "recluster", "epoch": e, "counts": c} for e, c in sizes.items()]
    epochs = [{"epoch": e, "validation": {"nmi": {"mean": 1.0 if e == 2 else 0.5}}} for e in range(6)]
    blocks = [{"subspace": 0, "width": 5, "recall_at_1": 0.0}, {"subspace": 1, "width": 3, "recall_at_1": 0.25}]
    scores = {"widths": [5, 3], "per_subspace": blocks, "recall": {"1": 0.75}}
    found = {"test": Evaluation("test", scores, None)}
    rows = tables.subspace_rows(run_of(events=events, epochs=epochs, evaluations=found))
    assert [(r["name"], r["width"], r["share"], r["recall"]) for r in rows] == [
        ("S1", 5, "60 %", "0.000"),
        ("S2", 3, "40 %", "0.250"),
        ("all", 8, "", "0.750"),
    ]
    assert {r["nmi"] for r in rows} == {tables.UNKNOWN}


def test_flattened_names_leaves() -> None:
    nested = {"versions": {"scikit-learn": "1.9"}, "threads": {"OMP_NUM_THREADS": None}, "num_cpus": 2, "gpus": []}
    assert list(tables.flattened(nested)) == [
        ("scikit-learn", "1.9"),
        ("OMP_NUM_THREADS", tables.UNKNOWN),
        ("num cpus", "2"),
        ("gpus", "none"),
    ]


def test_metric_rows_leave_out_what_nobody_measured() -> None:
    both = {
        "test": Evaluation("test", {"recall": {"1": 0.5}, "nmi": {"mean": 0.25, "std": 0.01}}, None),
        "validation": Evaluation("validation", {"recall": {"1": 0.625}}, None),
    }
    rows = tables.metric_rows(run_of(evaluations=both))
    assert [(r["name"], r["values"]) for r in rows] == [
        ("recall@1", ["0.500", "0.625"]),
        ("NMI", ["0.250 ± 0.010", tables.UNKNOWN]),
    ]


def scored(scores: dict[str, Any]) -> Run:
    return run_of(evaluations={"test": Evaluation("test", scores, None)})


def test_information_of_subspaces_is_a_matrix_with_the_whole_last() -> None:
    blocks = [{"width": 5, "information": {"size": 1.5, "colour": 0.0}}, {"width": 3, "information": {"size": -1}}]
    scores = {"widths": [5, 3], "per_subspace": blocks, "information": {"size": 3.5, "colour": 0.25}}
    factors, rows = tables.information_rows(scored(scores))
    assert factors == ["colour", "size"]
    assert [row["name"] for row in rows] == ["S1", "S2", "all"]
    assert [[cell["text"] for cell in row["cells"]] for row in rows] == [
        ["0.00", "1.50"],
        [tables.UNKNOWN, "-1.00"],
        ["0.25", "3.50"],
    ]
    assert [[cell["share"] for cell in row["cells"]] for row in rows] == [[0, 0.5], [0, 0], [0.083, 1]]


def test_one_subspace_and_no_factors() -> None:
    one = {"widths": [8], "per_subspace": [{"width": 8, "information": {"x": 1.0}}], "information": {"x": 1.0}}
    assert [row["name"] for row in tables.information_rows(scored(one))[1]] == ["all"]
    assert tables.information_rows(scored({"widths": [8], "information": {}})) == ([], [])
