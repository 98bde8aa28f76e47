"""The reference of Python: names of the code, under headings; mkdocstrings renders their docstrings."""

from __future__ import annotations

# heading, what it is for, dotted names
NAMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("For notebooks", "A finished run as a function of images.", ("launch.embedder.Embedder",)),
    (
        "Losses",
        "Functions `(vectors (N, d), labels (N,), tuples)` to a scalar, by a line in `LOSSES` of launch/objective.py.",
        (
            "trainer.losses.margin.margin_loss",
            "trainer.losses.contrastive.contrastive",
            "trainer.losses.divergence.divergence",
            "trainer.losses.classification.Classification",
        ),
    ),
    (
        "Miners",
        "`(vectors, labels, generator)` to three index tensors, by a line in `MINERS` of launch/objective.py.",
        (
            "trainer.miners.nearest_beyond_cutoff",
            "trainer.miners.distance_weighted",
            "trainer.miners.all_triplets",
            "trainer.miners.semi_hard",
        ),
    ),
    (
        "Backbones, gates and heads",
        "Modules from images to levels, by a line in `BACKBONES`, `GATES` or `HEADS` of launch/networks.py.",
        (
            "trainer.backbones.backbone.Backbone",
            "trainer.heads.gate.Gate",
            "trainer.heads.embedded.EmbeddingHead",
            "trainer.subspaces.partition.SubspacePartition",
        ),
    ),
    (
        "Objectives",
        "What a step optimises.",
        ("trainer.objectives.objective.Objective",),
    ),
    (
        "Sources of images",
        "Modules with `read(path, **options) -> Listing`, by a line in `SOURCES` of data_shards/sources.",
        (
            "data_shards.sources.listing.Record",
            "data_shards.sources.listing.Listing",
            "data_shards.sources.read_source",
            "data_shards.reader.open_shards",
        ),
    ),
    (
        "Growth rules",
        "Pure policies over what epochs reported; only the controller acts.",
        (
            "cluster.growth.GrowthPolicy",
            "cluster.growth.EpochReport",
            "cluster.growth.Growth",
            "cluster.growth.PlateauGrowth",
        ),
    ),
)

# `counts[split][class]` in the docstring of `counts` reads like a link of Markdown.
OPTIONS = {"data_shards.sources.listing.Listing": ("    options:", '      filters: ["!^_", "!^counts$"]')}


def page() -> str:
    """Return the Markdown, with an instruction to mkdocstrings for every name."""
    lines: list[str] = []
    for heading, about, names in NAMES:
        lines += [f"## {heading}", "", about, ""]
        for name in names:
            lines += [f"::: {name}", *OPTIONS.get(name, ()), ""]
    return "\n".join(lines)
