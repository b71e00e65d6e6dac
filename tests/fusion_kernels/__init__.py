"""Tests of fusion_kernels."""
