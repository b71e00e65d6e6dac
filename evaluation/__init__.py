"""`logit-fusion eval`: tasks asked under every way of weighting the experts, with intervals."""
