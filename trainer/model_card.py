"""README.md of an exported network: what it is, how to use it, its scores, its data, its licence, its limits.

The front matter is what Hugging Face's hub reads: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_shards.errors import printable
from trainer.headline import headline

CARD = """---
library_name: subspace-trainer
pipeline_tag: image-feature-extraction
tags: [image-embeddings, metric-learning, medical-imaging]
license: other
license_name: not-chosen-yet
---

# {name}

Image embedding of {num_dims} dimensions in {num_subspaces} subspaces of widths {widths}, trained with Subspace.

| | |
|---|---|
| network | {backbone}, {num_parameters:,} parameters |
| start weights | {weights} |
| training data | {data} |
| input | {channels} x {size} x {size}, mean {mean}, std {std} |
| chosen by | validation {monitor} at epoch {epoch} |

## Use

```python
from launch.embedder import Embedder

embedder = Embedder.from_run("FOLDER_OF_THIS_FILE")
vectors = embedder.transform(["image.png"])   # (1, {num_dims}) float32, unit length
```

This needs `subspace-trainer`. config.json holds what it reads: the network, the cut into subspaces, and how an image
is prepared, under `preprocessing`:

{steps}

Every block of the vector is brought to unit length and the whole divided by the square root of their number, so
that the inner product of two vectors is the mean cosine of their blocks.

## Scores

Retrieval is leave-one-out: an image is searched among the others of its split, without those of what is excluded.

{scores}

## Data

{data_card}

## Licence

Not chosen yet. Whoever publishes this network names one here and in the first lines of this file; the terms of the
training images, and of the weights that training began with, may have a say in it.

## Limits

Research software, not a medical device. Neighbours and attention maps show what the network found similar in the data
it was trained on; they are no diagnosis. Check for shifts of scanner, site and population before relying on distances.
"""


def card(facts: Mapping[str, Any], num_parameters: int, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text; `facts` is what config.json holds."""
    steps = facts.get("preprocessing", {}).get("steps", [])
    return CARD.format(
        **{name: printable(value) if isinstance(value, str) else value for name, value in facts.items()},
        num_subspaces=len(facts["widths"]),
        num_parameters=num_parameters,
        steps="\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1)) or "Not known.",
        scores=scores_table(evaluations),
        data_card=data_table(facts.get("counts", {}), facts.get("notes", [])),
    )


def scores_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores of each split as a Markdown table."""
    first = next(iter(evaluations.values()), None)
    if first is None:
        return "None."
    names = ["split", "images", *headline(first)]
    rows = [
        [split, str(found["num_samples"]), *(f"{value:.4f}" for value in headline(found).values())]
        for split, found in evaluations.items()
    ]
    left_out = {found["exclude"] for found in evaluations.values() if found.get("exclude", "none") != "none"}
    lines = [f"\nWithout images of the query's own {each} in its gallery." for each in left_out]
    return "\n".join([_table(names, rows), *lines])


def data_table(counts: Mapping[str, Mapping[str, int]], notes: list[str]) -> str:
    """Return how many images of each class there are in each split, and what was noted when the shards were built."""
    if not counts:
        return "Not known."
    splits = list(counts)
    classes = list(dict.fromkeys(name for split in splits for name in counts[split]))
    rows = [[name, *(str(counts[split].get(name, 0)) for split in splits)] for name in classes]
    rows.append(["all", *(str(sum(counts[split].values())) for split in splits)])
    return "\n".join([_table(["class", *splits], rows), *(f"\n{printable(note)}" for note in notes)])


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return the name of a class, say, so that it stays in its cell."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
