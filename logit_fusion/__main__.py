"""`python -m logit_fusion` is `logit-fusion`."""

from logit_fusion.cli import main

main()
