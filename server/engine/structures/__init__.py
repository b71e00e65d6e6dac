"""Structured outputs: constraints as the engine's one backend reads them, and the trial that each passes before."""
