"""Tests of the demo family."""
