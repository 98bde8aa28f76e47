"""Heads: levels of a backbone -> embedded images."""
