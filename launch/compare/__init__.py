"""`subspace compare`: methods x seeds x datasets from one file to the tables of a paper.

sweep_file -> cells -> runner (processes, or tasks on Ray) -> run folders
run folders -> results, queries -> summary, bootstrap, claim -> comparison -> tables, page
"""
