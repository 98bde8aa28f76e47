"""Backbones: (B, C, H, W) -> a list of levels, finest first, described by `channels` and `strides`."""
