"""The classes that are found worst, and what they are taken for."""

from __future__ import annotations

from launch.report.collect import Evaluation, Record
from launch.report.maps import Confusion

NUM_CLASSES = 8


def hardest_rows(evaluation: Evaluation, confusion: Confusion) -> list[Record]:
    """Return the classes with the lowest recall@1, worst first; none of them is found always."""
    sizes, rates = confusion.counts.sum(axis=1), confusion.rates
    asked = [c for c in range(len(sizes)) if sizes[c] and rates[c, c] < 1]
    rows = []
    for c in sorted(asked, key=lambda c: (rates[c, c], -sizes[c]))[:NUM_CLASSES]:
        wrong = confusion.counts[c].copy()
        wrong[c] = 0
        taken = int(wrong.argmax())
        rows.append(
            {
                "name": evaluation.class_name(int(confusion.classes[c])),
                "queries": f"{int(sizes[c]):,}",
                "recall": f"{rates[c, c]:.3f}",
                "taken": evaluation.class_name(int(confusion.classes[taken])),
                "times": f"{int(wrong[taken]):,}",
            }
        )
    return rows
