"""A trained embedding for use elsewhere: safetensors with torchvision key names where they exist, and a model card.

exported/{model.safetensors, config.json, README.md}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainer.headline import headline
from trainer.model import EmbeddingModel, count_parameters
from trainer.subspaces.partition import SubspacePartition

CARD = """---
library_name: subspace-trainer
tags: [image-embeddings, metric-learning, medical-imaging]
---

# {name}

Image embedding of {num_dims} dimensions in {num_subspaces} subspaces of widths {widths}, trained with Subspace.

| | |
|---|---|
| network | {backbone}, {num_parameters:,} trainable parameters |
| start weights | {weights} |
| training data | {data} |
| input | {channels} x {size} x {size}, mean {mean}, std {std} |
| chosen by | validation {monitor} at epoch {epoch} |

## Use

```python
from safetensors.torch import load_file
state = load_file("model.safetensors")   # backbone.* and head.*; cut and normalise as config.json says
```

Every block of the vector is brought to unit length and the whole divided by the square root of their number, so
that the inner product of two vectors is the mean cosine of their blocks.

## Scores

Retrieval is leave-one-out: an image is searched among the others of its split, without those of what is excluded.

{scores}

## Limits

Research software, not a medical device. Neighbours and attention maps show what the network found similar in the data
it was trained on; they are no diagnosis. Check for shifts of scanner, site and population before relying on distances.
"""


def scores_table(evaluations: dict[str, dict[str, Any]]) -> str:
    """Return the scores of each split as a Markdown table."""
    first = next(iter(evaluations.values()), None)
    if first is None:
        return "None."
    names = ["split", "images", *headline(first)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for split, found in evaluations.items():
        cells = [split, str(found["num_samples"]), *(f"{value:.4f}" for value in headline(found).values())]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = {found["exclude"] for found in evaluations.values() if found.get("exclude", "none") != "none"}
    lines += [f"\nWithout images of the query's own {each} in its gallery." for each in left_out]
    return "\n".join(lines)


def export(
    folder: Path,
    model: EmbeddingModel,
    partition: SubspacePartition,
    facts: dict[str, Any],
    evaluations: dict[str, dict[str, Any]],
) -> None:
    """Write the export folder; `facts` are the fields of the card and of config.json that the run knows."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "widths": json.dumps(partition.widths)})
    content = {**facts, "num_dims": partition.num_dims, "widths": list(partition.widths)}
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n")
    card = CARD.format(
        **content,
        num_subspaces=partition.num_subspaces,
        num_parameters=count_parameters(model),
        scores=scores_table(evaluations),
    )
    (folder / "README.md").write_text(card)
