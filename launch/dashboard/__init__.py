"""`subspace dashboard ROOT`: a page that lists the runs of a folder and compares their curves while they grow."""
