"""Optimizers that the benchmarks compare with, where no package on an index has them."""
