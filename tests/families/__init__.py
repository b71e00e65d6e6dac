"""Families of checkpoints as people have them, each served beside itself and judged against Transformers."""
