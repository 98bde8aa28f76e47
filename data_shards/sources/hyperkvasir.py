"""hyperkvasir:PATH - the labelled images of HyperKvasir, 23 classes.

Borgli et al. 2020, https://doi.org/10.1038/s41597-020-00622-y.

PATH/labeled-images/<tract>/<category>/<class>/*.jpg, where PATH may be labeled-images itself; labels are taken from the
folders (the image-labels.csv beside them says the same). The published ADSL split is about 80/20, random per class; its
list of files is not public, so a keyed draw with the published number of test images of every class stands in for it:
counts agree, members do not. Patients are not published, so there are no groups. Classes with few images (hemorrhoids
3/3, ileum 7/2) make scores of those classes meaningless.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_shards.errors import UserError
from data_shards.sources.folder import child_folders, walk_files
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences
from data_shards.sources.splits import assign_counts, carve

# class (the publisher's folder name) -> images in (train, test)
COUNTS = {
    "z-line": (738, 194),
    "retroflex-stomach": (615, 149),
    "pylorus": (806, 193),
    "esophagitis-b-d": (203, 57),
    "esophagitis-a": (308, 95),
    "barretts-short-segment": (36, 17),
    "barretts": (32, 9),
    "dyed-resection-margins": (801, 188),
    "dyed-lifted-polyps": (791, 211),
    "cecum": (833, 176),
    "retroflex-rectum": (311, 80),
    "ileum": (7, 2),
    "bbps-2-3": (912, 236),
    "impacted-stool": (111, 20),
    "bbps-0-1": (540, 106),
    "ulcerative-colitis-grade-1": (166, 35),
    "polyps": (853, 175),
    "hemorrhoids": (3, 3),
    "ulcerative-colitis-grade-0-1": (27, 8),
    "ulcerative-colitis-grade-2": (338, 105),
    "ulcerative-colitis-grade-1-2": (9, 2),
    "ulcerative-colitis-grade-2-3": (22, 6),
    "ulcerative-colitis-grade-3": (105, 28),
}
CLASSES = tuple(COUNTS)


def read(path: Path, *, validation: float = 0.1, seed: int = 0) -> Listing:
    """List HyperKvasir; raises UserError when no class folder is found."""
    root = path / "labeled-images" if (path / "labeled-images").is_dir() else path
    records, strangers = [], []
    for tract in child_folders(root):
        for category in child_folders(tract):
            for folder in child_folders(category):
                if folder.name not in COUNTS:
                    strangers.append(folder.relative_to(root).as_posix())
                    continue
                for file in walk_files(folder, {".jpg", ".jpeg"}):
                    records.append(Record(file.relative_to(root).as_posix(), folder.name, "", file=file))
    if not records:
        raise UserError(f"No labelled images under {root}; expected labeled-images/<tract>/<category>/<class>/*.jpg.")
    records = split(records, seed)
    warnings = differences(records, COUNTS, "the published list")
    if strangers:
        warnings.append(f"{len(strangers)} folders are not one of the 23 classes and were left out: {strangers[0]}.")
    return Listing("hyperkvasir", CLASSES, tuple(carve(records, validation, seed)), root=root, warnings=tuple(warnings))


def split(records: list[Record], seed: int) -> list[Record]:
    """Give test as many images of every class as published (in proportion, when a class has another size here)."""
    found = Counter(record.label for record in records)
    quotas = {name: {"test": round(found[name] * test / (train + test))} for name, (train, test) in COUNTS.items()}
    return assign_counts(records, quotas, seed)
