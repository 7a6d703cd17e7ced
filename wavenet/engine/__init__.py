"""Engines of the sample loop: C++, CUDA, numba and plain torch."""
