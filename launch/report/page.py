"""Put the report together: figures, tables and pictures into one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_shards.errors import intact
from data_shards.files import write_text
from launch import pages
from launch.report import (
    calibration,
    data_card,
    figures,
    galleries,
    hardest,
    hover,
    lineage,
    maps,
    panels,
    protocols,
    settings,
    tables,
    theme,
    thumbnails,
)
from launch.report.collect import SPLITS, Evaluation, Record, Run, read_run, score
from launch.report.gallery import Gallery, Picture
from launch.report.thumbnails import Thumbnails

MAX_CONFIG_CHARS = 200_000  # a config.yaml is a few kB; whatever else lies there must not make the page unopenable


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html and RUN/plots/*.png from the files of a run; return the path of the page.

    Raises:
        UserError: not a run folder.
        DataIntegrityError: a file of the run is damaged.
    """
    record = read_run(run)
    gallery = Gallery()
    with intact(f"the run in {record.path}"):
        page = render(record, gallery)
    gallery.save(record.path / "plots")
    write_text(record.path / "report.html", page)
    return record.path / "report.html"


def render(run: Run, gallery: Gallery) -> str:
    """Return the page as HTML; its figures are left in `gallery`."""
    factors, information = tables.information_rows(run)
    opened, note = thumbnails.open_thumbnails(run, run.pictured.split) if run.pictured else (None, "")
    return pages.render(
        "report/report.html.j2",
        ("report/report.css",),
        short=maps.short,
        name=run.name,
        folder=run.path.resolve().name,
        command=tables.command(run),
        status=run.status,
        lead=lead(run),
        splits=[s for s in SPLITS if s in run.evaluations],
        metrics=tables.metric_rows(run),
        counted=counted(run),
        retrieval=run.pictured is not None and score(run.pictured.scores, "recall@1") is not None,
        excluded=protocols.excluded(run.pictured.scores) if run.pictured else "",
        protocols=protocols.protocol_table(run),
        subspaces=(subspaces := tables.subspace_rows(run)),
        with_nmi=any(row["nmi"] != tables.UNKNOWN for row in subspaces[:-1]),
        factors=factors,
        information=information,
        curves=list(curve_pictures(run, gallery)),
        growth=growth_picture(run, gallery),
        growths=tables.growth_rows(run),
        clusters=list(cluster_pictures(run, gallery)),
        embedding=embedding_section(run, gallery, opened),
        pictures=picture_section(run, opened, note),
        data=data_card.data_card(run),
        facts=tables.fact_rows(run),
        settings=settings.settings_diff(run),
        config=run.config_text[:MAX_CONFIG_CHARS],
    )


def lead(run: Run) -> str:
    """Return what the run found in a few sentences."""
    sentences = []
    final = run.pictured
    widths = (final.scores.get("widths") if final else None) or []
    number = len(widths) or run.status.get("num_subspaces")
    if number and (final is None or score(final.scores, "recall@1") is not None):
        size = f"of {sum(widths)} dimensions " if widths else ""
        parts = lineage.partitions(run.events, widths)
        added = number - len(parts[0][1]) if parts else 0
        grown = f", grown in {_plural(added, 'split')}" if added > 0 else ""
        sentences.append(f"An embedding {size}in {_plural(number, 'subspace')}{grown}.")
    reached, best = run.status.get("num_subspaces") or 0, figures.best_epoch(run)
    if widths and best and reached > len(widths):
        sentences.append(f"Training went on to {reached} subspaces, but validation was best after epoch {best.epoch}.")
    recall = score(final.scores, "recall@1") if final else None
    if final and recall is not None:
        images = f"{final.scores.get('num_samples', 0):,} {final.split} images"
        classes = _plural(final.scores.get("num_classes", 0), "class", "classes")
        sentences.append(f"Of {images} in {classes}, {100 * recall:.1f} % have a nearest neighbour of their own class.")
    for key, what in (("loss", "loss, without labels,"), ("dice", "mean Dice of the predicted masks")):
        value = score(final.scores, key) if final else None
        if final and value is not None:
            sentences.append(
                f"On {final.scores.get('num_samples', 0):,} {final.split} images the {what} is {value:.3f}."
            )
    if run.status["state"] != "completed":
        sentences.append(f"The run has not been completed: its state is {run.status['state']}.")
    return " ".join(sentences) or "Nothing has been measured yet."


def _plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def counted(run: Run) -> str:
    """Return how many images and classes the scores are over, per split, and what was left out."""
    parts = []
    for evaluation in (run.evaluations[s] for s in SPLITS if s in run.evaluations):
        scores = evaluation.scores
        lone = scores.get("num_lone_queries") or 0
        left = f" ({_plural(lone, 'query', 'queries')} without another image of the class left out)" if lone else ""
        images = _plural(scores.get("num_samples", 0), "image")
        classes = f", {_plural(scores['num_classes'], 'class', 'classes')}" if scores.get("num_classes") else ""
        parts.append(f"{evaluation.split}: {images}{classes}{left}")
    return "; ".join(parts)


def curve_pictures(run: Run, gallery: Gallery) -> Iterator[Picture]:
    """Yield loss and validation scores over time."""
    growth = " Dotted lines: growths." if lineage.splits(run.events) else ""
    loss = gallery.add(
        "loss",
        lambda width: figures.loss_figure(run, width),
        "Training loss over epochs.",
        f"Loss of the training steps: mean of neighbouring steps and the band of their middle 80 %.{growth}",
    )
    best = figures.best_epoch(run)
    retrieval = any(score(r["validation"], "recall@1") is not None for r in run.epochs)
    decides = "on the epoch that is kept."
    if retrieval:
        decides = "on growth and on the epoch that is kept; macro is recall@1 averaged over classes."
    told = f" Line: best {tables.metric_name(best.name)}, {best.value:.3f}, after epoch {best.epoch}." if best else ""
    curves = gallery.add(
        "scores",
        lambda width: figures.score_figure(run, width),
        f"Validation scores over epochs.{told}",
        f"On the validation split, which alone decides {decides}{told}{growth}",
    )
    yield from (p for p in (loss, curves) if p)


def growth_picture(run: Run, gallery: Gallery) -> Picture | None:
    """Return the lineage of the subspaces."""
    told = "; ".join(
        f"after epoch {r['epoch']} {r['parent']} of {r['before']} dimensions became {r['kept']} and {r['given']}"
        for r in tables.growth_rows(run)
    )
    return gallery.add(
        "growth",
        lambda width: figures.growth_figure(run, width),
        f"Layout of the embedding over epochs. {told}" if told else "Layout of the embedding: its subspaces.",
        "The embedding from its first dimension (bottom) to its last, over time. A growth splits one subspace: the "
        "dimensions that matter most stay, the rest starts anew as the next subspace. Line: the epoch that is kept.",
        wide=True,
    )


def cluster_pictures(run: Run, gallery: Gallery) -> Iterator[Picture]:
    """Yield sizes and stability of the clusters."""
    events = [e for e in run.named("recluster") if e.get("counts")]
    last = ", ".join(f"S{k + 1}\u00a0{count:,}" for k, count in enumerate(events[-1]["counts"])) if events else ""
    sizes = gallery.add(
        "clusters",
        lambda width: figures.cluster_figure(run, width),
        f"Share of training images per subspace over epochs; at the end: {last}.",
        f"Each clustering gives every training image to one subspace. Last: {last}.",
    )
    stability = gallery.add(
        "stability",
        lambda width: figures.stability_figure(run, width),
        "Agreement of each clustering with the one before it, over epochs.",
        "1 means that no image changed its subspace; a growth adds one, so the agreement drops there.",
    )
    yield from (p for p in (sizes, stability) if p)


def embedding_section(run: Run, gallery: Gallery, opened: Thumbnails | None) -> Record | None:
    """Return confusion, votes and maps of the pictured split, None without vectors."""
    evaluation = run.pictured
    if evaluation is None or evaluation.arrays is None or len(evaluation.arrays.labels) < 4:
        return None
    confusion = maps.nearest_confusion(evaluation.arrays)
    worst = confusion.mistakes(8)
    name = evaluation.class_name
    told = "; ".join(f"{name(a)} taken for {name(b)} {count} times" for a, b, count, _ in worst[:3])
    matrix = gallery.add(
        "confusion",
        lambda width: maps.confusion_figure(evaluation, confusion),
        f"Confusion matrix of the nearest neighbour. {told or 'No mistakes'}.",
        "Per cent of the queries of a class (row) whose nearest neighbour is of the class of the column.",
    )
    if matrix is None:
        matrix = gallery.add(
            "confusion",
            lambda width: maps.class_recall_figure(confusion),
            f"Histogram of the recall@1 of the classes. {told or 'No mistakes'}.",
            f"How many of the {len(confusion.classes):,} classes have which recall@1.",
        )
    drawn, spots = _map_pictures(run, evaluation, gallery, opened)
    return {
        "split": evaluation.split,
        "matrix": matrix,
        "hardest": hardest.hardest_rows(evaluation, confusion),
        "votes": votes_picture(evaluation, gallery),
        "mistakes": [(name(a), name(b), count, f"{100 * rate:.0f} %") for a, b, count, rate in worst],
        "collapsed": not maps.has_shape(evaluation.arrays.vectors),
        "legend": legend(evaluation),
        "maps": drawn,
        "spots": spots,
    }


def votes_picture(evaluation: Evaluation, gallery: Gallery) -> Picture | None:
    """Return how often votes of the neighbours are right, by how many agree."""
    assert evaluation.arrays is not None
    votes = calibration.neighbour_votes(evaluation.arrays)
    number = evaluation.arrays.neighbours.shape[1]
    told = f"expected calibration error {votes.error():.3f}"
    return gallery.add(
        "calibration",
        lambda width: calibration.calibration_figure(votes, width),
        f"Rate of right votes by the share of neighbours that agree; {told}.",
        f"The class of most of the {number} nearest neighbours against how many of them agree; small: queries. On the "
        f"dotted line a share is the chance of being right ({told}).",
    )


def legend(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (colour, class name) of the maps' classes."""
    colours = maps.class_colours(evaluation)
    named = [(colour, evaluation.class_name(label)) for label, colour in colours.items()]
    assert evaluation.arrays is not None
    others = len(np.unique(evaluation.arrays.labels)) - len(named)
    return [*named, (theme.REST, _plural(others, "other class", "other classes"))] if others else named


def _map_pictures(
    run: Run, evaluation: Evaluation, gallery: Gallery, opened: Thumbnails | None
) -> tuple[list[Picture], list[hover.Spot]]:
    """Return PCA and t-SNE, and the places of the latter that show their image."""
    assert evaluation.arrays is not None
    rows = maps.sample_rows(len(evaluation.arrays.labels), maps.MAX_TSNE_POINTS, run.seed)
    vectors, labels = evaluation.arrays.vectors[rows], evaluation.arrays.labels[rows]
    if not maps.has_shape(vectors):
        return [], []
    which = f"{len(rows):,} {evaluation.split} images by class"
    flat, share = maps.pca_map(vectors)
    neighbourly = maps.tsne_map(vectors, run.seed)
    pca = gallery.add(
        "pca",
        lambda width: maps.map_figure(evaluation, flat, labels, "PCA"),
        f"Scatter plot of {which}, first two principal components.",
        f"{which}: the plane of largest variance, {100 * share.sum():.0f} % of the whole.",
    )
    found: list[hover.Spot] = []

    def draw(width: float) -> Figure:
        figure = maps.map_figure(evaluation, neighbourly, labels, "t-SNE")
        if opened is not None:
            found[:] = hover.spots(figure, neighbourly, rows, evaluation, opened, run.seed)
        return figure

    tsne = gallery.add(
        "tsne",
        draw,
        f"t-SNE map of {which}.",
        f"{which}: images that are neighbours in the embedding are drawn near each other. Distances between groups "
        "mean little.",
    )
    return [p for p in (pca, tsne) if p], found


def picture_section(run: Run, opened: Thumbnails | None, note: str) -> Record:
    """Return retrieval panels, galleries of subspaces and attention overlays, or the reason why there are none."""
    evaluation = run.pictured
    empty: Record = {"right": [], "wrong": [], "overlays": [], "galleries": []}
    empty |= {"note": "", "tiny": False, "share": "", "split": ""}
    if evaluation is None or evaluation.arrays is None:
        return empty
    if opened is None:
        return empty | {"note": note}
    right, wrong = panels.retrieval_panels(evaluation, opened, run.seed)
    correct, counts = panels.first_right(evaluation.arrays)
    return {
        "right": right,
        "wrong": wrong,
        "overlays": panels.attention_overlays(evaluation, opened, run.seed),
        "galleries": galleries.subspace_galleries(evaluation, opened, run.seed),
        "tiny": opened.tiny,
        "note": "" if right or wrong else "Pictures are left out: the shards do not hold the images of this run.",
        "share": f"{int((correct & counts).sum()):,} of {int(counts.sum()):,}",
        "split": evaluation.split,
    }
