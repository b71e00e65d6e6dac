"""Benchmarks: each prints ratios measured in one run and stores them under `bench/results/`."""
