"""fusion_kernels."""
