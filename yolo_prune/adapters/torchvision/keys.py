"""The names of the training loop's options; here and not beside it, so that help and errors need no torch."""

from yolo_prune.options.host_keys import HostKeys

RECIPE_KEYS = ("momentum", "weight_decay", "warmup_epochs", "lrf", "fliplr", "scale", "patience", "rois")
"""What a retraining takes beside the options that ``prune`` has itself."""

TRAIN_KEYS = (
    *("epochs", "imgsz", "batch", "device", "seed", "workers", "lr0", "optimizer", "project", "name"),
    *("exist_ok", *RECIPE_KEYS),
)
"""What ``train`` takes."""

KEYS = HostKeys(retrain=RECIPE_KEYS, train=TRAIN_KEYS, texts=("project", "name", "optimizer"))
