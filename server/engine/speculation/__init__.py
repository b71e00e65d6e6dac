"""Speculative decoding by members that are loaded anyway: one drafts, the fused model verifies; no token changes."""
