"""Weakly supervised segmentation: maps -> masks, their scores, what they are compared with."""
