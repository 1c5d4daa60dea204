"""Trainers with hooks, as detectron2 and mayaku have them: a hook that prunes on the way."""

from yolo_prune.adapters.detectron.hook import PruningHook

__all__ = ["PruningHook"]
