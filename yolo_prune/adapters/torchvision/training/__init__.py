"""A reference training loop for detectors and classifiers; what it trains may be cut, before or on the way."""
