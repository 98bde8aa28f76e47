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


def generator(*parts: Part) -> np.random.Generator:
    """Return a numpy generator for draws that are not per sample (permutations, choices, normals)."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
