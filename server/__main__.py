"""`python -m server` is `logit-fusion`."""

from server.cli import main

main()
