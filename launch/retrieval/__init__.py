"""Search by image in what a run has embedded: index a split, ask it, serve it (commands: launch/cli_retrieval.py)."""
