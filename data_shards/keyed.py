"""Keyed randomness: every draw is a pure function of (seed, purpose, epoch, step or sample id, ...).

Nothing in the project owns a random stream, so order, augmentation and re-initialisation depend neither on the
number of ranks, loader workers or restarts, nor on what was drawn before.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators", https://doi.org/10.1145/2714064.2660195), applied to a counter: statistically sound, and one vectorised
expression for a whole batch, where a generator object per sample would cost microseconds each.

Legend: N keys, n draws per key.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Part = int | str
KeyArray = npt.NDArray[np.uint64]

_FEW = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: KeyArray) -> KeyArray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: Part) -> int:
    """Return the 64-bit key of (seed, purpose, ...): integers and strings, in order."""
    digest = hashlib.blake2b("\x1f".join(f"{type(p).__name__}:{p}" for p in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def fold(base: int, ids: npt.ArrayLike) -> KeyArray:
    """Return one key per id: (N,) uint64 from a base key and (N,) integers, e.g. sample ids."""
    counters = np.atleast_1d(np.asarray(ids)).astype(np.int64).view(np.uint64)
    return _mix(_mix(counters + _GOLDEN) ^ np.uint64(base))


def uniform(keys: KeyArray, num_draws: int) -> npt.NDArray[np.float64]:
    """Return (N, n) numbers in [0, 1) with 53 random bits; row i depends on keys[i] alone."""
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(np.asarray(keys, dtype=np.uint64)[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(keys: KeyArray, sizes: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (N,) where each of `places` (N,) goes under the permutation of 0 .. sizes - 1 (N,) that its key names.

    One place costs the same however many there are: a Feistel network of six rounds over the next power of two, walked
    again while it leads beyond the size (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"); at most
    2^40 places. Of up to 16, where such a network is far from even, the places are sorted by draws.
    """
    out, few = np.asarray(places, dtype=np.int64).copy(), np.flatnonzero(sizes <= _FEW)
    out[few] = _sorted_places(keys[few], sizes[few], out[few])
    walking = np.flatnonzero(sizes > _FEW)
    bits = np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.uint64)
    low = bits >> np.uint64(1)
    while len(walking):
        own, high = out[walking].astype(np.uint64), bits[walking] - low[walking]
        out[walking] = _feistel(keys[walking], own, low[walking], high).astype(np.int64)
        walking = walking[out[walking] >= sizes[walking]]
    return out


def _sorted_places(
    keys: KeyArray, sizes: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return where places (N,) go when the numbers 0 .. sizes - 1, 16 at most, are sorted by draws of their keys."""
    draws = _mix(keys[:, None] + np.arange(1, _FEW + 1, dtype=np.uint64) * _GOLDEN)
    draws[np.arange(_FEW) >= sizes[:, None]] = np.iinfo(np.uint64).max
    found: npt.NDArray[np.int64] = np.argsort(draws, axis=1, kind="stable")[np.arange(len(keys)), places]
    return found


def _feistel(keys: KeyArray, values: KeyArray, low: KeyArray, high: KeyArray) -> KeyArray:
    """Return values permuted among the numbers of low + high bits; halves of unlike width change places."""
    one = np.uint64(1)
    left, right = values >> low, values & ((one << low) - one)
    for number in range(6):
        width = high if number % 2 == 0 else low
        mixed = _mix(keys + (right + one) * _GOLDEN + np.uint64(number << 56))
        left, right = right, (left ^ mixed) & ((one << width) - one)
    return (left << low) | right


def generator(*parts: Part) -> np.random.Generator:
    """Return a numpy generator for draws that are not per sample (permutations, choices, normals)."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
