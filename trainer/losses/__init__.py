"""Losses: plain functions of tensors, (N, d) unit vectors and (N,) labels -> ()."""
