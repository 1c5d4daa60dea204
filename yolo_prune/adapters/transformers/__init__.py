"""Detectors of the transformers package: the rules of their blocks."""
