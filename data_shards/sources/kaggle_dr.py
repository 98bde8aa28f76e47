"""kaggle_dr:PATH - eyes of the Kaggle challenge on diabetic retinopathy (2015), for training without labels.

https://www.kaggle.com/c/diabetic-retinopathy-detection. PATH/.../123_left.jpeg and 123_right.jpeg, in any folders; 123
is the patient, the group. trainLabels.csv, when it is there, is not read: there is one class, fundus. Images are cut to
their field of view, and refused when it is not even a quarter of them, as in the published preprocessing of Local
Discrimination (Chen et al. 2021, https://arxiv.org/abs/2108.09440). Its list of 11,360 images of good quality belongs
to code without a licence, so all images are taken here. Validation is drawn by patient; there is no test split.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from data_shards.errors import UserError
from data_shards.field_of_view import fundus_region
from data_shards.sources.folder import walk_files
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import left_out
from data_shards.sources.retina import CLASS, PUBLISHED_PX
from data_shards.sources.splits import carve

MIN_SHARE = 0.25
_NAME = re.compile(r"(\d+)_(left|right)")


def read(path: Path, *, validation: float = 0.1, seed: int = 0) -> Listing:
    """List the eyes below PATH; raises UserError when there is none."""
    records, strangers = [], []
    for file in walk_files(path, {".jpeg", ".jpg", ".png"}):
        name = file.relative_to(path).as_posix()
        if match := _NAME.fullmatch(file.stem):
            region = partial(fundus_region, min_share=MIN_SHARE)
            records.append(Record(name, CLASS, "train", match[1], file=file, region=region))
        else:
            strangers.append(name)
    if not records:
        raise UserError(f"No images under {path}; expected 10_left.jpeg, 10_right.jpeg and so on.")
    notes = left_out("image", strangers, "not called like eyes")
    return Listing(
        "kaggle_dr",
        (CLASS,),
        tuple(carve(records, validation, seed)),
        path,
        warnings=tuple(notes),
        default_size=PUBLISHED_PX,
        default_fit="stretch",
    )
