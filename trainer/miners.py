"""Which triplets of a batch the loss looks at. Pure functions of (vectors, labels), without gradient.

All of them exclude a sample itself by its index, never take a positive as a negative, and return no triplet for an
anchor that has no positive or no negative. The host waits a constant number of times per batch, not per anchor.

Legend: N vectors of unit length, d their width (of the subspace, not of the embedding), q negatives per anchor,
T triplets.
"""

from __future__ import annotations

import torch

from trainer.losses.margin import Triplets


@torch.no_grad()
def nearest_beyond_cutoff(
    vectors: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None, *, cutoff: float = 0.5
) -> Triplets:
    """Pair the positives of each anchor with its q nearest negatives at a distance of at least `cutoff`.

    q is the floored mean number of positives, at least 1: 7 for 4 classes x 8, so 224 triplets. Positives and
    negatives go in batch order and are paired by position, truncated to the shorter list. This is the miner of the
    released ADSL and D&C code, except for anchors with fewer than q negatives beyond the cutoff: theirs takes
    anything then, positives and the anchor included; ours fills up with negatives inside the cutoff, farthest first,
    so that a network that still maps everything to one place gets a gradient. `generator` is not used.
    """
    positives, negatives = pair_masks(labels)
    q = max(1, int(positives.sum()) // max(1, len(labels)))
    distances = pairwise_distances(vectors)
    # Beyond the cutoff by distance (at most 2); inside it after all of those, farthest first.
    order_key = torch.where(distances >= cutoff, distances, 4.0 + cutoff - distances)
    order_key = order_key.masked_fill(~negatives, torch.inf)
    sorted_key, order = order_key.sort(dim=1, stable=True)
    chosen = torch.where(sorted_key < torch.inf, order, len(labels))[:, :q].sort(dim=1).values
    return _paired(_in_batch_order(positives)[:, :q], chosen)


@torch.no_grad()
def distance_weighted(
    vectors: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator | None = None,
    *,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> Triplets:
    """Draw q negatives per anchor, without replacement, so that their distances are spread evenly.

    The weight of a negative is the inverse density of its distance on the sphere of dimension d (Wu et al. 2017),
    with the distance clamped to `cutoff` from below and the weight tiny beyond `nonzero_loss_cutoff` (alpha + beta of
    the loss). q is the rounded mean number of positives, at most N minus the largest class. Positives are drawn to
    the same count, with replacement where there are fewer. Raises ValueError without a generator: draws are keyed.
    """
    if generator is None:
        raise ValueError("distance_weighted draws at random and needs a generator")
    positives, negatives = pair_masks(labels)
    num_samples = len(labels)
    mean_positives = int(positives.sum()) / max(1, num_samples)
    q = max(1, min(int(mean_positives + 0.5), int(negatives.sum(dim=1).min()) if num_samples else 0))
    weights = inverse_density(pairwise_distances(vectors), negatives, vectors.shape[1], cutoff, nonzero_loss_cutoff)
    # The q first arrivals of exponential clocks with these rates are a weighted draw without replacement.
    draws = torch.rand((3, num_samples, num_samples), generator=generator, device=generator.device).to(vectors.device)
    arrival = (-torch.log1p(-draws[0]) / weights).masked_fill(~negatives, torch.inf)
    chosen_arrival, chosen = arrival.sort(dim=1, stable=True)
    chosen = torch.where(chosen_arrival < torch.inf, chosen, num_samples)[:, :q]
    return _paired(_draw_positives(positives, draws[1], draws[2], q), chosen)


@torch.no_grad()
def all_triplets(vectors: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None) -> Triplets:
    """Return every (anchor, positive, negative); N^3 booleans, so for batches up to a few hundred."""
    positives, negatives = pair_masks(labels)
    anchor, positive, negative = (positives[:, :, None] & negatives[:, None, :]).nonzero(as_tuple=True)
    return anchor, positive, negative


@torch.no_grad()
def semi_hard(vectors: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None) -> Triplets:
    """Give every (anchor, positive) the nearest negative farther away than the positive; without one, the farthest.

    Schroff et al. 2015 (https://arxiv.org/abs/1503.03832), as in the follow-up of Divide and Conquer.
    """
    positives, negatives = pair_masks(labels)
    anchor, positive = positives.nonzero(as_tuple=True)
    distances, allowed = pairwise_distances(vectors), negatives[anchor]
    to_others = distances[anchor]
    beyond = allowed & (to_others > distances[anchor, positive, None])
    nearest = to_others.masked_fill(~beyond, torch.inf).argmin(dim=1)
    farthest = to_others.masked_fill(~allowed, -1.0).argmax(dim=1)
    negative = torch.where(beyond.any(dim=1), nearest, farthest)
    found = allowed.any(dim=1)
    return anchor[found], positive[found], negative[found]


def no_tuples(vectors: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None) -> None:
    """Leave the choice to the loss: all pairs or triplets, or proxies."""


def pairwise_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Return (N, N) distances, at least 0.01, in float32 or better whatever autocast says."""
    with torch.autocast(vectors.device.type, enabled=False):
        x = vectors if vectors.dtype == torch.float64 else vectors.float()
        squared_norm = x.square().sum(dim=1)
        squared = squared_norm[:, None] + squared_norm[None, :] - 2.0 * (x @ x.T)
        return squared.clamp(min=1e-4).sqrt()


def inverse_density(
    distances: torch.Tensor, negatives: torch.Tensor, num_dims: int, cutoff: float, nonzero_loss_cutoff: float
) -> torch.Tensor:
    """Return (N, N) weights: 1 / density of a distance on the unit sphere of R^d, scaled per row; 0 off `negatives`.

    log w = (2 - d) log D - (d - 3) / 2 log(1 - D^2 / 4), zeroed where it does not apply, minus its row maximum.
    """
    useful = negatives & (distances < nonzero_loss_cutoff)
    clamped = distances.clamp(min=cutoff, max=nonzero_loss_cutoff)
    log_weights = (2.0 - num_dims) * clamped.log() - (num_dims - 3.0) / 2.0 * torch.log1p(-clamped.square() / 4.0)
    log_weights = torch.where(useful, log_weights, 0.0)
    weights = (log_weights - log_weights.amax(dim=1, keepdim=True)).exp() + 1e-9
    weights = torch.where(distances > nonzero_loss_cutoff, 1e-6, weights)
    return torch.where(negatives, weights, 0.0)


def pair_masks(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, N) booleans: same label and not itself; other label."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _in_batch_order(mask: torch.Tensor) -> torch.Tensor:
    """Return (N, N): the columns that are set, ascending, padded with N."""
    columns = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return torch.where(mask, columns, mask.shape[1]).sort(dim=1).values


def _draw_positives(positives: torch.Tensor, order: torch.Tensor, picks: torch.Tensor, q: int) -> torch.Tensor:
    """Return (N, q) positives: distinct where there are q of them, else drawn with replacement; N where none."""
    num_samples = len(positives)
    key, shuffled = order.masked_fill(~positives, torch.inf).sort(dim=1, stable=True)
    shuffled = torch.where(key < torch.inf, shuffled, num_samples)
    count = positives.sum(dim=1, keepdim=True)
    pick = torch.minimum((picks * count).long(), count - 1).clamp(min=0)  # a rounded-up product must not leave the list
    repeated = shuffled.gather(1, pick)
    return torch.where(count >= q, shuffled, repeated)[:, :q]


def _paired(positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """Turn two (N, q) index tables, padded with N, into triplets of the places where both are set."""
    num_samples = len(positive)
    anchor, place = ((positive < num_samples) & (negative < num_samples)).nonzero(as_tuple=True)
    return anchor, positive[anchor, place], negative[anchor, place]
