"""Backbones: images -> levels, by name."""
