# ruff: noqa: RUF001
"""The tables as text: golden, and read back."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from launch.compare import tables
from launch.compare.bootstrap import Interval
from launch.compare.cells import cells
from launch.compare.claim import verdicts
from launch.compare.comparison import Block, Comparison, Row, compared
from launch.compare.summary import Summary, marks, summarised
from launch.compare.sweep_file import read_sweep
from tests.launch.compare.make_sweep import write_runs, write_sweep

GOLDEN = """\
# small

Mean ± sample standard deviation over seeds 0, 1; bold: best, italic or underlined: second best, by the digits shown.\
 K: subspaces at the end of training. Steps and wall time are those of training to the end, final scores included,\
 pauses excluded.

## digits (test split)

| method | NMI | recall@1 | K | steps | wall time |
| --- | ---: | ---: | ---: | ---: | ---: |
| ADSL | **0.610 ± 0.014** | _0.800 ± 0.028_ | 2.5 | 1,200 | 2 min |
| fixed \\| K = 2 | _0.500 ± 0.141_ | **0.900 ± 0.000** | 2 | 1,200 | 2 min |
| single (1 of 2 seeds) | 0.300 ± – | 0.700 ± – | 1 | 1,200 | 2 min |

Difference to ADSL with its 95\N{NO-BREAK SPACE}% interval: paired bootstrap over seeds, and images within a seed,\
 2,000 resamples. NMI and AMI of a run's resamples are centred on its score, since duplicates in resamples look like\
 agreement; AMI takes what is expected by chance from the whole split.

| method | NMI | recall@1 |
| --- | ---: | ---: |
| fixed \\| K = 2 | −0.110 [−0.200, 0.000] | +0.100 [+0.050, +0.150] |
| single | – | – |

Does it keep up without a search for K?

- NMI: does ADSL (0.610 ± 0.014) reach the best rival less one standard deviation\
 (fixed \\| K = 2, 0.500 ± 0.141, so 0.359)? **yes**
- NMI: is the standard deviation of ADSL (0.014) at most the median of all methods (0.078)? **yes**
- recall@1: does ADSL (0.800 ± 0.028) reach the best rival less one standard deviation\
 (fixed \\| K = 2, 0.900 ± 0.000, so 0.900)? **no**
- recall@1: is the standard deviation of ADSL (0.028) at most the median of all methods (0.014)? **no**

Missing runs:

- digits single seed 1: loss not finite at step 3
"""


def summary(*values: float) -> Summary:
    found = summarised(dict(enumerate(values)))
    assert found is not None
    return found


def written_by_hand(folder: Path) -> Comparison:
    path = write_sweep(folder, metrics=["nmi", "recall_at_1"])
    sweep = read_sweep(path)
    scores = {
        "adsl": {"nmi": summary(0.6, 0.62), "recall_at_1": summary(0.78, 0.82)},
        "mml-2": {"nmi": summary(0.4, 0.6), "recall_at_1": summary(0.9, 0.9)},
        "single": {"nmi": summary(0.3), "recall_at_1": summary(0.7)},
    }
    best = {m: marks({name: found[m].mean for name, found in scores.items()}) for m in sweep.metrics}
    subspaces = {"adsl": summary(2, 3), "mml-2": summary(2, 2), "single": summary(1)}
    differences = {"nmi": Interval(-0.11, -0.2, -0.0001, 2), "recall_at_1": Interval(0.1, 0.05, 0.15, 2)}
    rows = [
        Row(
            name,
            sweep.title(name),
            len(found["nmi"].values),
            found,
            {metric: best[metric][name] for metric in sweep.metrics},
            {"num_subspaces": subspaces[name], "steps": summary(1200.0), "wall_s": summary(120.0)},
            differences if name == "mml-2" else {},
        )
        for name, found in scores.items()
    ]
    block = Block("digits", "digits", "test", rows, verdicts(sweep, scores))
    all_cells = cells(sweep, path, folder / "out")
    results = {cell.name: None for cell in all_cells if cell.name != "digits single seed 1"}
    reasons = {"digits single seed 1": "loss not finite at step 3"}
    return Comparison(sweep, folder / "out", all_cells, results, reasons, [block])  # type: ignore[arg-type]


def test_golden_markdown(tmp_path: Path) -> None:
    assert tables.markdown(written_by_hand(tmp_path)) == GOLDEN


def test_csv_has_a_line_per_quantity(tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(written_by_hand(tmp_path)))))
    assert len(lines) == 3 * (2 + 3)
    found = {(line["method"], line["quantity"]): line for line in lines}
    line = found["mml-2", "nmi"]
    assert (line["mean"], line["mark"], line["low"], line["paired_seeds"]) == ("0.5", "second", "-0.2", "2")
    assert line["title"] == "fixed | K = 2"
    assert (found["single", "nmi"]["std"], found["single", "nmi"]["difference"]) == ("", "")
    assert found["adsl", "num_subspaces"]["mean"] == "2.5"


def test_json_has_all_figures_of_all_runs(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, titles={})
    out = tmp_path / "out"
    found = write_runs(path, out, skip=("digits mml-2 seed 1",))
    comparison = compared(read_sweep(path), out, found, {}, lambda text: None)
    tree = json.loads(tables.as_json(comparison))
    runs = {(run["method"], run["seed"]): run for run in tree["runs"]}
    assert runs["mml-2", 1]["state"] == "new"
    assert runs["mml-2", 1]["reason"] == "not run yet"
    adsl = runs["adsl", 0]
    assert (adsl["run"], adsl["steps"], adsl["wall_s"]) == ("runs/digits/adsl/seed-0", 300, 60.0)
    stored = json.loads((out / adsl["run"] / "evaluation/test.json").read_text())
    assert adsl["evaluations"]["test"] == stored
    assert str(tmp_path) not in json.dumps([run["run"] for run in tree["runs"]])
