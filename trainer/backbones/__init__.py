"""Backbones: (B, C, H, W) -> a list of levels, finest first, described by `channels` and `strides`.

For `trainer.weights` a backbone may also name its `parts`, the modules that it uses whole, and the `dialects` in which
other libraries spell its parameters.
"""
