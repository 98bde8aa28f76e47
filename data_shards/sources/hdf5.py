"""Datasets of a foreign HDF5 file: found by name, and refused unless reading them is plain and bounded.

HDF5 lets a file name other files (external and soft links, external storage, virtual datasets) and filters (libraries
that are loaded to decode a chunk). None of that is followed here: data lies in the file itself, in plain chunks.

Call these in a sandbox: the library is large, and what is damaged may crash it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.decode import Unreadable
from data_shards.files import open_plain

if TYPE_CHECKING:
    import h5py

MAX_FILE_BYTES = 1 << 44
MAX_CHUNK_BYTES = 64 << 20
# deflate, shuffle, fletcher32, lzf: what h5py has built in
_FILTERS = {1, 2, 3, 32000}


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; raises Unreadable when it is none."""
    import h5py

    try:
        open_plain(path, MAX_FILE_BYTES, follow=True).close()  # a pipe would be waited for
        return h5py.File(path, "r", locking=False)  # shared filesystems often know no locks
    except OSError as error:
        raise Unreadable(f"it is not a readable HDF5 file ({' '.join(str(error).split())[:120]})") from None


def plain_dataset(file: h5py.File, name: str, kind: str) -> h5py.Dataset:
    """Return the dataset called "a/b" of an open file; `kind` are the letters of numpy that its type may have.

    Raises Unreadable when it is missing, of another kind, or anything but bytes of this file.
    """
    import h5py

    found = _followed(file, name)
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in kind:
        raise Unreadable(f"/{name} is not an array of numbers of the expected type")
    if found.is_virtual or found.external:
        raise Unreadable(f"/{name} takes its data from other files, which is not followed")
    creation = found.id.get_create_plist()
    filters = {creation.get_filter(number)[0] for number in range(creation.get_nfilters())}
    if filters - _FILTERS:
        raise Unreadable(f"/{name} is packed by a filter that is not accepted; store it with gzip or lzf")
    if found.chunks is not None and _num_bytes(found.chunks, found.dtype) > MAX_CHUNK_BYTES:
        raise Unreadable(f"/{name} is stored in chunks above {MAX_CHUNK_BYTES >> 20} MiB")
    return found


def _followed(file: h5py.File, name: str) -> Any:
    import h5py

    place: Any = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise Unreadable(f"it has no /{name}")
        if not isinstance(link, h5py.HardLink):
            raise Unreadable(f"/{name} is a link, which is not followed")
        place = place[part]
    return place


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    num = int(dtype.itemsize)
    for side in shape:
        num *= int(side)
    return num
