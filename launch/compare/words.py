"""Numbers as text, alike in Markdown and on the page."""

from __future__ import annotations

from launch.compare.bootstrap import LEVEL, RESAMPLES, Interval
from launch.compare.claim import Verdict
from launch.compare.comparison import Block, Comparison, Row
from launch.compare.results import title, why_missing
from launch.compare.summary import DIGITS, Summary
from launch.compare.sweep_file import Sweep
from launch.report.tables import UNKNOWN, shown
from launch.spoken import spoken

COST_TITLES = ("K", "steps", "wall time")
CLAIM = "Does it keep up without a search for K"
MINUS = "\N{MINUS SIGN}"


def caption(sweep: Sweep) -> str:
    """Return what the numbers of the score tables are."""
    seeds = ", ".join(map(str, sweep.seeds))
    spread = "Mean ± sample standard deviation over seeds" if len(sweep.seeds) > 1 else "Seed"
    return (
        f"{spread} {seeds}; bold: best, italic or underlined: second best, by the digits shown. K: subspaces at the end"
        " of training. Steps and wall time are those of training to the end, final scores included, pauses excluded."
    )


def difference_caption(sweep: Sweep) -> str:
    """Return what the numbers of the difference tables are."""
    levels = "seeds, and images within a seed" if len(sweep.seeds) > 1 else "images (one seed: its spread is not in it)"
    text = (
        f"Difference to {sweep.title(sweep.reference)} with its {LEVEL:.0%} interval: paired bootstrap over {levels},"
        f" {RESAMPLES:,} resamples."
    )
    if {"nmi", "ami"} & set(sweep.metrics):
        text += " NMI and AMI of a run's resamples are centred on its score, since duplicates in resamples look like"
        text += " agreement; AMI takes what is expected by chance from the whole split."
    return text.replace("%", "\N{NO-BREAK SPACE}%")


def heading(block: Block) -> str:
    return f"{block.title} ({block.split} split)"


def has_differences(block: Block) -> bool:
    return any(row.differences for row in block.rows)


def row_title(comparison: Comparison, row: Row) -> str:
    """Return a method's title, with the number of its runs where some are missing."""
    asked = len(comparison.sweep.seeds)
    return row.title if row.num_seeds in (0, asked) else f"{row.title} ({row.num_seeds} of {asked} seeds)"


def mean_std(found: Summary | None) -> str:
    if found is None:
        return UNKNOWN
    return f"{found.mean:.{DIGITS}f} ± {shown(found.std, DIGITS)}"


def signed(value: float) -> str:
    """Return +0.012 or −0.012; what rounds to nothing has no sign."""
    text = f"{abs(value):.{DIGITS}f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def difference(found: Interval | None) -> str:
    """Return "+0.012 [+0.003, +0.020]"."""
    return UNKNOWN if found is None else f"{signed(found.difference)} [{signed(found.low)}, {signed(found.high)}]"


def costs(row: Row) -> list[str]:
    """Return K, steps and wall time, each the mean over seeds."""
    if not row.costs:
        return [UNKNOWN] * len(COST_TITLES)
    subspaces, steps = row.costs["num_subspaces"].mean, row.costs["steps"].mean
    return [f"{subspaces:.1f}".removesuffix(".0"), f"{steps:,.0f}", spoken(row.costs["wall_s"].mean)]


def claim_rows(sweep: Sweep, block: Block) -> list[tuple[str, str, str]]:
    """Return the questions of the claim with their figures, each as (question, answer, kind of answer)."""
    return [row for found in block.verdicts for row in _questions(sweep, found)]


def _questions(sweep: Sweep, found: Verdict) -> list[tuple[str, str, str]]:
    name, reference = title(found.metric), sweep.title(sweep.reference)
    least = None if found.best.std is None else found.best.mean - found.best.std
    reach = f"{name}: does {reference} ({mean_std(found.reference)}) reach the best rival less one standard deviation"
    rival = f"{sweep.title(found.rival)}, {mean_std(found.best)}, so {shown(least, DIGITS)}"
    own, middle = (shown(value, DIGITS) for value in (found.reference.std, found.median_std))
    steady = f"{name}: is the standard deviation of {reference} ({own}) at most the median of all methods ({middle})?"
    return [(f"{reach} ({rival})?", *_answer(found.keeps_up)), (steady, *_answer(found.steady))]


def _answer(value: bool | None) -> tuple[str, str]:
    return ("not known: it takes two seeds", "unknown") if value is None else ("yes", "yes") if value else ("no", "no")


def missing(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (run, why) of the runs that the tables lack."""
    return [(cell.name, comparison.reasons.get(cell.name) or why_missing(cell)) for cell in comparison.missing]
