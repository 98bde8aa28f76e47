"""The script that test_f_store.py has torchrun start."""

from tests.faults.test_f_store import worker

worker()
