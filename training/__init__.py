"""From a data set to an expert: `logit-fusion expert train`."""
