"""Which channels of which tensors live and die together."""
