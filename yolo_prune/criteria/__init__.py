"""What a channel is worth: from weights alone, or measured on calibration images.

This file lists the names, so that help and errors need neither torch nor NumPy.
"""

RECONSTRUCTION = "reconstruction"
"""Measured on images: what the layers that read a channel lose when it goes, after they were fitted to the others."""

LABELLED = ("svm",)
"""Those that need to know what is in the images, too."""

MEASURED = (RECONSTRUCTION, "taylor", "fisher", "activation", *LABELLED)
"""Those that need images; all but the first are in :data:`yolo_prune.criteria.ranking.IMAGE_SCORES`."""

CRITERIA = (*MEASURED, "bn_scale", "l1", "l2", "lamp", "fpgm", "random")
"""Every criterion by name; those that need no images are in :data:`yolo_prune.criteria.weights.SCORES`."""

FOREIGN = "tp:"
"""Before the name of an estimator of Torch-Pruning, see :mod:`yolo_prune.criteria.torch_pruning`."""
