"""`python -m launch` is `subspace`; `torchrun -m launch train CONFIG` works under anybody's agent."""

from launch.cli import main

main()
