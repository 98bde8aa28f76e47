"""What attention is worth as masks, over seeds: runs of configs/compare/segmentation.yaml through `subspace segment`.

    python benchmarks/segmentation.py runs/segmentation [docs/results/segmentation.json]

Per data set: mean and standard deviation over seeds of the mean Dice and IoU of the held-out images, for the attention
of ADSL and of one learner, Grad-CAM of the classification network on the same images, U-Nets trained on the masks of
attention and of Grad-CAM, one trained on true masks, and grey levels. Scores that are there are not made again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def scored(run: Path, *options: str) -> dict[str, Any]:
    """Return the scores of a run's segmentation."""
    path = run / "segmentation" / "scores.json"
    if not path.exists():
        print(" ".join(["subspace segment", str(run), *options]), file=sys.stderr)
        command = [sys.executable, "-m", "launch", "segment", str(run), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and deviation over seeds of what every method reached."""
    table: dict[str, Any] = {}
    for method in found[0]["methods"]:
        table[method] = {}
        for name in ("dice", "iou"):
            values = [scores["methods"][method][name]["mean"] for scores in found]
            table[method][name] = {"mean": statistics.mean(values), "std": statistics.pstdev(values), "seeds": values}
    return table


def main() -> None:
    root = Path(sys.argv[1])
    tables: dict[str, Any] = {}
    for dataset in sorted(path for path in (root / "runs").iterdir() if path.is_dir()):
        seeds = sorted(path.name for path in (dataset / "attention").iterdir())
        extra = ("--unet", "--unet-baseline", "--ceiling", "--unet-epochs", "10", "--baseline")
        full = [scored(dataset / "attention" / seed, *extra, str(dataset / "classes" / seed)) for seed in seeds]
        table = over_seeds(full)
        single = over_seeds([scored(dataset / "one-learner" / seed) for seed in seeds])
        table["attention_one_learner"] = single["attention"]
        tables[dataset.name] = {"images": full[0]["scored_on"], "methods": table}
    for name, found in tables.items():
        print(f"\n{name}, {found['images']['num_images']} {found['images']['images']} images\n")
        print("| method | Dice | IoU |\n|---|---|---|")
        for method, row in sorted(found["methods"].items(), key=lambda item: -item[1]["dice"]["mean"]):
            print(f"| {method} | " + " | ".join(f"{row[m]['mean']:.3f} ± {row[m]['std']:.3f}" for m in row) + " |")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
