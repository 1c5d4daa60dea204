"""The command line."""

from yolo_prune.cli.entry import main

__all__ = ["main"]
