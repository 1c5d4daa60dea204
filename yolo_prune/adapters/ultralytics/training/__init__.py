"""Training with the host: pruned models that stay so, and pruning inside a run."""
