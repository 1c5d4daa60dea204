"""What runs a model, one file a runtime, and the images that it is fed with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeEntry:
    """Where a runtime is, and what it runs; known without importing it.

    Attributes:
        module: Its ``open_runtime`` loads a model. Where it runs exported files, its ``read_file`` says what one takes.
        endings: Of the names of the files (or folders) that it runs itself, in lower case.
        extra: Of this package, which installs it.
        checkpoints: Whether those files are checkpoints, which the host that wrote them loads.
        package: What is imported for it, where that has another name than the runtime.
        exported: Ending of what a checkpoint is exported to for it; empty where it runs checkpoints, or files that are
            made elsewhere.
        int8: Ending of the file or folder in 8 bits that a checkpoint is exported to for it; empty where there is none.
    """

    module: str
    endings: tuple[str, ...]
    extra: str
    checkpoints: bool = False
    package: str = ""
    exported: str = ".onnx"
    int8: str = ""

    def runs(self, name: str) -> bool:
        """Tell whether it runs a file of such a name as it is."""
        return name.lower().rstrip("/\\").endswith(self.endings)


PROVIDERS = {
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""What ONNX Runtime hands a network to, by the name behind the colon of ``onnxruntime:``."""
RUNTIMES = {
    "torch": RuntimeEntry(
        "yolo_prune.runtimes.pytorch", (".pt", ".pth"), "torch", checkpoints=True, exported=""
    ),
    "onnxruntime": RuntimeEntry("yolo_prune.runtimes.onnxruntime", (".onnx",), "onnx", int8="_int8.onnx"),
    "openvino": RuntimeEntry(
        "yolo_prune.runtimes.openvino",
        (".onnx", ".xml", "_openvino_model"),
        "openvino",
        int8="_int8_openvino_model",
    ),
    "ncnn": RuntimeEntry(
        "yolo_prune.runtimes.ncnn", (".param", "_ncnn_model", ".onnx"), "ncnn", exported="_ncnn_model"
    ),
    "opencv": RuntimeEntry("yolo_prune.runtimes.opencv", (".onnx",), "opencv", package="cv2"),
    "torchscript": RuntimeEntry(
        "yolo_prune.runtimes.torchscript",
        (".torchscript",),
        "torch",
        package="torch",
        exported=".torchscript",
    ),
    "litert": RuntimeEntry(
        "yolo_prune.runtimes.litert", (".tflite",), "litert", package="ai_edge_litert", exported=""
    ),
    "tensorrt": RuntimeEntry("yolo_prune.runtimes.tensorrt", (".engine",), "tensorrt", exported=""),
    **{
        f"onnxruntime:{provider}": RuntimeEntry(
            "yolo_prune.runtimes.onnxruntime", (".onnx",), "onnx", package="onnxruntime"
        )
        for provider in PROVIDERS
    },
}
"""The runtimes by name. Of several that run a file the first one does, unless another is named."""
EXPORTS = {
    "onnx": ".onnx",
    "torchscript": ".torchscript",
    "openvino": "_openvino_model",
    "ncnn": "_ncnn_model",
}
"""Ending of what a checkpoint is exported to, by format."""
DEFAULT_RUNTIMES = ("torch", "onnxruntime")
"""What models are measured on where nothing else is asked for."""


def is_exported(name: str) -> bool:
    """Tell by its name whether a model is an exported file, which runs without the framework that it came from."""
    return any(entry.runs(name) and not entry.checkpoints for entry in RUNTIMES.values())
