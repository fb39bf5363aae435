"""Entry point of the build.  Everything declarative is in pyproject.toml.  There is nothing to compile:
cuda-nn is pure Python, and installs without a compiler or a CUDA toolkit."""

from setuptools import setup

setup()
