"""Subspaces: how the embedding is cut, which dimensions matter, and how rows move when it grows."""
