"""The embedded demo family: its data, its training, and its tasks."""

from pathlib import Path

FAMILY = Path(__file__).parent
"""The folder that holds zoo.yaml, models/, data/ and evaluation/."""
