"""`python -m server`: the commands that need nothing above the server."""

from server.cli import run

run()
