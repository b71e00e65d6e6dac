"""What can be said of the GPU's kernels: without a card from what they are compiled to, on a card by measuring."""
