"""The names of the host's own options; here and not read from it, so that help and errors need no torch."""

from yolo_prune.options.host_keys import HostKeys

TRAIN_KEYS = (
    *("patience", "cache", "fraction", "rect", "single_cls", "multi_scale", "cos_lr", "close_mosaic", "amp"),
    *("lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "nbs"),
    *("box", "cls", "cls_pw", "dfl", "dropout", "time", "save_period", "plots", "val"),
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr"),
    *("bgr", "mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "auto_augment", "erasing"),
    *("deterministic", "compile", "profile", "pretrained", "overlap_mask", "mask_ratio", "classes", "conf"),
    *("iou", "max_det", "save", "save_json", "channels_last"),
)
"""Training arguments of the host that ride along untouched; the host checks them when it trains."""

OWN_KEYS = (
    *(
        "epochs",
        "imgsz",
        "batch",
        "device",
        "seed",
        "workers",
        "lr0",
        "optimizer",
        "project",
        "name",
        "exist_ok",
    ),
    *(
        "freeze",
        "task",
        "split",
        "cls_remap",
        "distill_model",
        "dis",
        "pose",
        "kobj",
        "rle",
        "angle",
        "quantize",
    ),
    *("nms", "augmentations", *TRAIN_KEYS),
    *("dnn", "source", "vid_stride", "stream_buffer", "visualize", "augment", "agnostic_nms", "retina_masks"),
    *("embed", "show", "save_frames", "save_txt", "save_conf", "save_crop", "show_labels", "show_conf"),
    *("show_boxes", "line_width", "format", "optimize", "dynamic", "simplify", "opset", "workspace"),
    *("dlog", "dgrad", "dlam", "tracker", "half", "int8", "keras"),  # the last three in older releases
)
"""All that ``yolo train`` takes, useful there or not: ``train`` passes them on, with the host's own defaults."""

TEXT_KEYS = (
    *("model", "data", "project", "name", "optimizer", "split", "copy_paste_mode", "auto_augment", "task"),
    *("distill_model", "format", "source", "tracker"),
)
"""Keys whose value is a text, whatever it looks like: ``name=2024_01`` is no number."""

SWITCH_OR_TEXT_KEYS = ("pretrained", "cache", "amp", "compile")
"""Keys whose value is true, false or a text."""

LIST_KEYS = ("freeze", "classes", "embed")
"""Keys whose value is a whole number or a list, of which the host passes over anything else."""

IDLE_KEYS = (
    *("dnn", "source", "vid_stride", "stream_buffer", "retina_masks", "embed", "show", "save_frames"),
    *("save_crop", "show_conf", "show_boxes", "line_width", "format", "optimize", "dynamic", "simplify"),
    *("opset", "workspace", "tracker", "int8", "keras"),
)
"""Keys of ``yolo predict``, ``track`` and ``export`` that ``yolo train`` takes and that change nothing there."""

KEYS = HostKeys(
    retrain=TRAIN_KEYS,
    train=OWN_KEYS,
    ignored=("mode", "cfg"),  # what else is in the file that ``yolo copy-cfg`` writes
    texts=TEXT_KEYS,
    switches_or_texts=SWITCH_OR_TEXT_KEYS,
    lists=LIST_KEYS,
)
