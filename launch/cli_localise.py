"""`subspace localise`: where in other images is what is marked in one?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from data_shards.errors import UserError


def localise(
    run: Positional[Path],
    support: Positional[str],
    queries: Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path,
    at: tuple[str, ...] = (),
    split: Literal["train", "validation", "test"] = "validation",
    mm_per_pixel: float | None = None,
) -> int:
    """Find landmarks that are marked in one image in others, by a network of local discrimination.

    Args:
        run: the run folder of a network with model.head dense.
        support: the marked image: a file, or the sample id of an image of the split.
        queries: images to search, files or sample ids; all others of the split when there are none.
        out: folder for landmarks.csv, landmarks.json and landmarks.png.
        at: x,y of each landmark in pixels of the support image, 0,0 being the centre of the first. Sample ids whose
            shards know landmarks need none.
        split: which split sample ids are of.
        mm_per_pixel: of the original images, for errors in millimetres.
    """
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.localise import localise as run_localise

    scores = run_localise(run, support, queries, [_point(text) for text in at], out, split, mm_per_pixel)
    print(f"{scores['num_queries']} images searched: {out / 'landmarks.csv'}, {out / 'landmarks.png'}")
    for k, found in enumerate(scores.get("landmarks", [])):
        mm = f", {found['median_mm']:.2f} mm" if "median_mm" in found else ""
        share = 100 * found["median_share_of_side"]
        print(f"landmark {k}: median error {found['median_px']:.1f} px{mm}, {share:.1f} % of the side")
    return 0


def _point(text: str) -> tuple[float, float]:
    """Return the numbers of "x,y"."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = math.nan
    if not math.isfinite(x + y):
        raise UserError(f"--at {text[:80]}: write x,y, as in --at 120,85")
    return x, y
