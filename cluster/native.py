"""The compiled pass over a block of rows (lloyd.cpp): screen, exact decision, bounds and sums while a row is at hand.

It needs AVX-512. Processors with bfloat16 tiles (Intel AMX) screen a centred bfloat16 copy of the rows, half the bytes;
others screen the rows themselves in float32. See `cluster.screen.Weights` for the rounding bound.

Legend: n rows of a block, F feature width, S that of the copy, K centroids, P = K rounded up to 16.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.backend import Block, Loaded
from cluster.screen import UNIT, Features, Labels, Weights
from cluster.sums import CHUNK, Partial
from data_shards.errors import UserError

_TILE = 16  # rows, and centroids, of a tile; it is twice as many bfloat16 deep
_SPLIT = 16  # up to so many centroids two products, with what bfloat16 keeps of a weight and with the rest, pay off
_THREADED = 1 << 14  # rows per thread below which starting one costs more than it saves


class _Fields(ctypes.Structure):
    """A structure of lloyd.cpp; arrays that are passed are kept until it is gone."""

    def __init__(self, **values: Any) -> None:
        self._kept = values
        super().__init__(**{n: _address(v) if isinstance(v, np.ndarray) or v is None else v for n, v in values.items()})


class _Rows(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("exact", "copy", "norms")),
        *((name, ctypes.c_int64) for name in ("width", "stride")),
    )


class _Centroids(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("exact", "weights", "offsets")),
        *((name, ctypes.c_int64) for name in ("num", "padded", "rest")),
        *((name, ctypes.c_double) for name in ("square", "linear", "last", "constant")),
    )


class _State(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("labels", "room", "slope_above", "shift_above")),
        *((name, ctypes.c_void_p) for name in ("slope_below", "shift_below", "sums", "counts")),
        ("factor", ctypes.c_double),
        ("known", ctypes.c_int64),
    )


@cache
def library() -> Any:
    """Return the compiled library, None where it was not built or the processor lacks AVX-512."""
    spec = importlib.util.find_spec("cluster._lloyd")
    if spec is None or spec.origin is None:
        return None
    found = ctypes.CDLL(spec.origin)  # lets go of the GIL while it works
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    for name in ("lloyd_is_supported", "lloyd_has_tiles", "lloyd_assign"):
        getattr(found, name).restype = whole
    found.lloyd_load.argtypes = (pointer, whole, whole, pointer, whole, pointer, pointer, pointer)
    found.lloyd_load.restype = found.lloyd_measure.restype = None
    found.lloyd_measure.argtypes = (pointer, whole, whole, pointer, pointer, pointer)
    found.lloyd_assign.argtypes = (pointer, pointer, pointer, whole, whole)
    return found if found.lloyd_is_supported() else None


@cache
def has_tiles() -> bool:
    """Say whether this processor has bfloat16 tiles that this process may use."""
    return bool(library().lloyd_has_tiles())


class NativeBackend:
    """Labels, bounds, sums and exact distances by lloyd.cpp, in `num_threads` threads.

    `tiles`: screen in bfloat16 where the processor has tiles for it. Raises UserError where the library was not built.
    """

    def __init__(self, num_threads: int = 1, tiles: bool = True) -> None:
        if library() is None:
            raise UserError(
                "k-means backend 'native' needs a processor with AVX-512, and g++ when Subspace is installed; choose "
                "'auto' or 'numpy'."
            )
        self._library, self._num_threads = library(), num_threads
        self._tiles = has_tiles() and tiles

    def load(self, block: Features) -> Loaded:
        """Measure (n, F) rows, and copy them where the screen is in bfloat16."""
        num, width = block.shape
        stride, copy, reference = width, None, np.zeros(width, dtype=np.float32)
        if self._tiles:
            stride = -(-width // (2 * _TILE)) * 2 * _TILE
            copy = _aligned((num, stride), np.uint16)
            with np.errstate(all="ignore"):  # of rows that are refused later
                reference = np.add.reduce(block[:CHUNK]) / np.float32(max(min(num, CHUNK), 1))
        norms, found = np.empty(num, dtype=np.float32), np.empty(3)
        self._library.lloyd_load(
            *(_address(block), num, width, _address(reference), stride),
            *(_address(copy), _address(norms), _address(found)),
        )
        lost = min(float(found[2]), 1.0) + 2.0 * UNIT if self._tiles else 0.0  # subtracting the reference rounds too
        rows = _Rows(exact=block, copy=copy, norms=norms, width=width, stride=stride)
        return Loaded(rows, norms, reference.astype(np.float64), float(found[0]), float(found[1]), lost)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Lay the scores' weights for (K, F) centroids out as the screen reads them."""
        self._made: tuple[Loaded, _Centroids] | None = None  # the block that offsets and terms were last made for
        self._centroids, self._weights = centroids, Weights(centroids, max_norm)
        num, width = centroids.shape
        columns, depth = -(-num // _TILE) * _TILE, -(-width // (2 * _TILE)) * 2 * _TILE
        if not self._tiles:
            self._rest, self._padded = 0, columns
            self._laid_out = np.zeros((width, columns), dtype=np.float32)
            self._laid_out[:, :num] = self._weights.exact.T
            self._weights.keep(self._laid_out[:, :num].T)
            return
        kept = [_bfloat16(self._weights.exact)]
        if num <= _SPLIT:
            kept.append(_bfloat16(self._weights.exact - kept[0]))
        self._rest, self._padded = columns * (len(kept) - 1), columns * len(kept)
        self._weights.keep(np.add.reduce([part.astype(np.float64) for part in kept]))
        whole = np.zeros((len(kept), columns, depth), dtype=np.uint16)
        for part, values in zip(whole, kept, strict=True):
            part[:num, :width] = values.view(np.uint32) >> 16
        # Tiles of 16 centroids, steps of 32 features; in a tile pairs of features, one line for all its centroids.
        pairs = whole.reshape(-1, _TILE, depth // (2 * _TILE), _TILE, 2).transpose(0, 2, 3, 1, 4)
        self._laid_out = _aligned(pairs.shape, np.uint16)
        self._laid_out[:] = pairs

    def relabel(self, block: Block, partial: Partial | None, shift: int) -> None:
        """See `cluster.backend.Backend`."""
        known, num = block.labels is not None, len(block.features)
        if block.labels is None:
            block.labels = np.empty(num, dtype=np.int32)
        tables: dict[str, Any] = dict.fromkeys(
            ("room", "slope_above", "shift_above", "slope_below", "shift_below", "sums", "counts")
        )
        if block.bounds is not None:
            tables["room"] = block.bounds.room
            tables["slope_above"], tables["shift_above"] = block.bounds.spent_above()
            tables["slope_below"], tables["shift_below"] = block.bounds.spent_below()
        state = {**tables, "labels": block.labels, "factor": 2.0**shift, "known": known}
        centroids = self._centroids_for(block.loaded)
        num_parts = max(1, min(self._num_threads, num // _THREADED))
        bounds = np.linspace(0, num, num_parts + 1, dtype=np.int64).tolist()
        parts = [partial] + [None if partial is None else partial.empty() for _ in bounds[2:]]
        if num_parts == 1:
            self._pass(block.loaded.content, centroids, state, partial, 0, num)
            return
        with ThreadPoolExecutor(num_parts) as pool:
            jobs = [
                pool.submit(self._pass, block.loaded.content, centroids, state, part, first, last)
                for part, first, last in zip(parts, bounds, bounds[1:], strict=False)
            ]
            for job in jobs:
                job.result()
        for part in parts[1:]:
            if partial is not None and part is not None:
                partial.add(part)

    def _pass(
        self, rows: _Rows, centroids: _Centroids, state: dict[str, Any], partial: Partial | None, first: int, last: int
    ) -> None:
        if partial is not None:
            state = {**state, "sums": partial.sums, "counts": partial.counts}
        made = _State(**state)
        if self._library.lloyd_assign(ctypes.byref(rows), ctypes.byref(centroids), ctypes.byref(made), first, last):
            raise MemoryError(f"no memory for the scores of {self._padded} centroids")

    def _centroids_for(self, loaded: Loaded) -> _Centroids:
        """Return centroids with offsets and terms for rows less the block's reference."""
        if self._made is None or self._made[0] is not loaded:
            offsets = self._weights.offsets(loaded.reference)
            terms = self._weights.terms(loaded.reference, loaded.lost, 8.0 * UNIT)
            made = _Centroids(
                **{"exact": self._centroids, "weights": self._laid_out, "offsets": offsets},
                **{"num": len(offsets), "padded": self._padded, "rest": self._rest},
                **dict(zip(("square", "linear", "last", "constant"), terms, strict=True)),
            )
            self._made = loaded, made
        return self._made[1]

    def distances(self, features: Features, centroids: Features, labels: Labels | None) -> npt.NDArray[np.float64]:
        """See `cluster.backend.Backend`."""
        out = np.empty(len(features))
        self._library.lloyd_measure(
            *(_address(features), *features.shape, _address(centroids), _address(labels), _address(out))
        )
        return out


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an empty array that begins on a line of the cache."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, dtype=np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)


def _bfloat16(weights: npt.NDArray[np.float64]) -> Features:
    """Return weights rounded to bfloat16, ties to even."""
    bits = weights.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
