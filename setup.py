"""The one compiled part; everything else stands in setup.cfg. Without g++ it is left out, and numpy does its work."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]

setup(ext_modules=[Extension("cluster._lloyd", ["cluster/lloyd.cpp"], extra_compile_args=FLAGS, optional=True)])
