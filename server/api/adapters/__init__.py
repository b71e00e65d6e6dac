"""Experts that are loaded and unloaded while the server serves."""

from server.api.adapters.loading import Adapters

__all__ = ["Adapters"]
