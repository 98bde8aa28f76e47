"""The bootstrap against slow loops over rows that are really drawn, against scikit-learn, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from launch.compare import bootstrap
from launch.compare.bootstrap import interval, paired, resampled_scores, scores
from launch.compare.queries import VALUES, Queries, expected_information

METRICS = ("nmi", "ami", "recall_at_1", "recall_at_4", "macro_recall_at_1", "map_at_r")


def run_of(seed: int, size: int = 90, num_classes: int = 5, noise: float = 0.3, shift: float = 0.0) -> Queries:
    """Random values, clusters that mostly agree with the classes, and a few lone queries."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % num_classes
    asked = np.arange(size) % 17 != 3
    values = {name: np.clip(rng.random(size).round(2) + shift, 0, 1) * asked for name in VALUES}
    moved = rng.random((2, size)) < noise
    clusters = np.where(moved, rng.integers(0, num_classes, (2, size)), (labels + 1) % num_classes)
    expected = np.array([expected_information(labels, each) for each in clusters])
    return Queries(np.arange(size), labels, asked, values, clusters, expected)


def drawn_rows(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def slow(run: Queries, rows: np.ndarray) -> dict[str, float]:
    """Return the scores of the rows that were drawn, one by one."""
    queries = [i for i in rows if run.asked[i]]
    per_class: dict[int, list[float]] = {}
    for i in queries:
        per_class.setdefault(int(run.labels[i]), []).append(float(run.values["nearest"][i]))
    nmi = [normalized_mutual_info_score(run.labels[rows], each[rows]) for each in run.clusters]
    return {
        "nmi": float(np.mean(nmi)),
        "recall_at_1": float(np.mean([run.values["recall_1"][i] for i in queries])),
        "recall_at_4": float(np.mean([run.values["recall_4"][i] for i in queries])),
        "map_at_r": float(np.mean([run.values["map_at_r"][i] for i in queries])),
        "macro_recall_at_1": float(np.mean([np.mean(values) for values in per_class.values()])),
    }


def test_scores_of_resamples_are_those_of_a_slow_loop_over_the_rows() -> None:
    run = run_of(1)
    counts = np.random.default_rng(0).multinomial(90, np.full(90, 1 / 90), size=7)
    found = scores(run, counts, METRICS)
    for i, row in enumerate(counts):
        for metric, value in slow(run, drawn_rows(row)).items():
            assert found[metric][i] == pytest.approx(value), metric


def test_every_row_once_gives_the_scores_of_the_run() -> None:
    run = run_of(2)
    found = scores(run, np.ones((1, 90), dtype=np.int64), METRICS)
    assert found["nmi"][0] == pytest.approx(
        np.mean([normalized_mutual_info_score(run.labels, c) for c in run.clusters])
    )
    assert found["ami"][0] == pytest.approx(np.mean([adjusted_mutual_info_score(run.labels, c) for c in run.clusters]))


def test_resampled_scores_are_a_slow_loop_over_seeds_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws themselves are taken from the code; what is made of them is written out."""
    counts: list[np.ndarray] = []
    draw = bootstrap._counts
    monkeypatch.setattr(bootstrap, "_counts", lambda *given: counts.append(draw(*given)) or counts[-1])
    runs = {0: run_of(1), 7: run_of(2), 9: run_of(3)}
    found = resampled_scores(runs, METRICS, "digits", num_resamples=5)
    chosen = bootstrap.generator("compare seeds", "digits", 0, 7, 9).integers(3, size=(5, 3))
    assert len(counts) == 3  # a draw of images for every place that a seed is drawn for
    every = {}
    for b, slot in np.ndindex(5, 3):
        every[b, slot] = slow(runs[[0, 7, 9][chosen[b, slot]]], drawn_rows(counts[slot][b]))
    for number, run in enumerate(runs.values()):  # NMI of a run's resamples has the run's NMI as its mean
        own = [scores_ for place, scores_ in every.items() if chosen[place] == number]
        excess = np.mean([scores_["nmi"] for scores_ in own]) - slow(run, np.arange(90))["nmi"]
        for scores_ in own:
            scores_["nmi"] -= excess
    for b in range(5):
        for metric in set(METRICS) - {"ami"}:
            mean = np.mean([every[b, slot][metric] for slot in range(3)])
            assert found[metric][b] == pytest.approx(mean), metric


def test_all_methods_are_scored_on_the_same_draws() -> None:
    better = {seed: run_of(seed, shift=0.0) for seed in (0, 1)}
    worse = {
        seed: Queries(
            r.sample_ids, r.labels, r.asked, {n: v - 0.25 for n, v in r.values.items()}, r.clusters, r.expected
        )
        for seed, r in better.items()
    }
    first = resampled_scores(better, ("recall_at_1", "nmi"), "d", 50)
    second = resampled_scores(worse, ("recall_at_1", "nmi"), "d", 50)
    np.testing.assert_allclose(first["recall_at_1"] - second["recall_at_1"], 0.25)
    np.testing.assert_array_equal(first["nmi"], second["nmi"])
    assert not np.array_equal(first["nmi"], resampled_scores(better, ("nmi",), "other", 50)["nmi"])


def test_chunks_do_not_change_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", 300)
    run = run_of(0)
    ones = Queries(
        run.sample_ids, run.labels, run.asked, dict.fromkeys(VALUES, np.ones(90)), run.clusters, run.expected
    )
    found = resampled_scores({0: ones}, ("recall_at_1", "macro_recall_at_1"), "d", 11)
    np.testing.assert_allclose(found["recall_at_1"], 1)
    np.testing.assert_allclose(found["macro_recall_at_1"], 1)


def test_interval_of_one_seed_is_as_wide_as_the_standard_error_says() -> None:
    size = 4000
    rng = np.random.default_rng(0)
    first, second = (rng.random(size) < p for p in (0.8, 0.7))
    runs = []
    for values in (first, second):
        run = run_of(0, size)
        each = dict.fromkeys(VALUES, values.astype(float))
        runs.append({0: Queries(run.sample_ids, run.labels, np.ones(size, bool), each, run.clusters, run.expected)})
    ours, theirs = (resampled_scores(one, ("recall_at_1",), "d")["recall_at_1"] for one in runs)
    difference = first.mean() - second.mean()
    found = interval(ours, theirs, difference, 1)
    error = np.std(first.astype(float) - second.astype(float)) / np.sqrt(size)
    assert found.low == pytest.approx(difference - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(difference + 1.96 * error, abs=0.1 * error)


def test_duplicates_make_clusters_look_better_and_the_interval_does_not_believe_them() -> None:
    """NMI of loose clusters lies far higher in resamples, that of tight ones less: a plain interval lies beside."""
    loose, tight = run_of(0, 300, 40, noise=0.9), run_of(1, 300, 40, noise=0.1)
    whole = [scores(run, np.ones((1, 300), dtype=np.int64), ("nmi",))["nmi"][0] for run in (loose, tight)]
    counts = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), size=400)
    plain = [scores(run, counts, ("nmi",))["nmi"] for run in (loose, tight)]
    assert plain[0].mean() > whole[0] + 0.02
    difference = whole[0] - whole[1]
    assert np.quantile(plain[0] - plain[1], 0.025) > difference
    got = interval(*(resampled_scores({0: run}, ("nmi",), "d")["nmi"] for run in (loose, tight)), difference, 1)
    assert got.low < difference < got.high


def test_seeds_that_gave_both_methods_the_same_network_hold_the_interval_at_zero() -> None:
    """A third of all resamples of three seeds miss the one that differs."""
    first = {seed: run_of(seed) for seed in range(3)}
    second = {**first, 2: run_of(2, noise=0.1)}
    found = {m: [resampled_scores(runs, (m,), "d")[m] for runs in (second, first)] for m in ("nmi", "ami")}
    for ours, theirs in found.values():
        assert np.mean(ours == theirs) == pytest.approx((2 / 3) ** 3, abs=0.03)
        assert interval(ours, theirs, float(np.mean(ours - theirs)), 3).low == 0
        assert interval(ours, theirs, float(np.mean(ours - theirs)), 3).high > 0.1


def test_ami_with_the_expectation_of_the_whole_split_has_the_interval_of_the_exact_one() -> None:
    first, second = run_of(0, 400, 10, noise=0.3), run_of(1, 400, 10, noise=0.5)
    exact = []
    generator = np.random.default_rng(3)
    for _ in range(300):
        rows = generator.integers(400, size=400)
        each = [
            np.mean([adjusted_mutual_info_score(r.labels[rows], c[rows]) for c in r.clusters]) for r in (first, second)
        ]
        exact.append(each[0] - each[1])
    whole = [scores(run, np.ones((1, 400), dtype=np.int64), ("ami",))["ami"][0] for run in (first, second)]
    difference = float(whole[0] - whole[1])
    ours, theirs = (resampled_scores({0: run}, ("ami",), "d")["ami"] for run in (first, second))
    got = interval(ours, theirs, difference, 1)
    low, high = np.quantile(exact, [0.025, 0.975]) - (np.mean(exact) - difference)
    assert got.low == pytest.approx(low, abs=0.01)
    assert got.high == pytest.approx(high, abs=0.01)


def test_runs_on_other_images_are_not_paired() -> None:
    run = run_of(0)
    other = Queries(run.sample_ids + 1, run.labels, run.asked, run.values, run.clusters, run.expected)
    assert paired([run, run_of(1)])
    assert not paired([run, other])
    assert not paired([run, run_of(0, 80)])
