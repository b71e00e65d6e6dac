"""The command line above the rest: what runs the server, measures it, and makes its demo models."""
