"""What runs a model, one file a runtime, and the images that it is fed with."""

RUNTIMES = {
    "torch": "yolo_prune.runtimes.pytorch",
    "onnxruntime": "yolo_prune.runtimes.onnxruntime",
}
"""Runtime by name -> the module whose ``open_runtime`` loads a model into it, imported by whoever opens one."""
