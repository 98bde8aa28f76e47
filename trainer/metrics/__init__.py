"""Scores of an embedded split: nearest-neighbour retrieval and agreement of k-means with the classes."""
