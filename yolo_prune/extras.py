"""What is optional: the base install measures exported files, everything else is an extra of the package."""

from __future__ import annotations

from collections.abc import Sequence

from yolo_prune.errors import MissingRuntimeError

EXTRAS = {
    **dict.fromkeys(("torch", "scipy", "matplotlib", "jinja2", "cv2"), "torch"),
    **dict.fromkeys(("pycocotools", "PIL"), "accuracy"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxslim"), "onnx"),
    **{name: name for name in ("openvino", "ncnn", "nncf", "ray", "tensorrt")},
    **{"ai_edge_litert": "litert", "torch_pruning": "compare", "sklearn": "svm"},
}
"""Module -> the extra that installs it. Modules of a host are in the extra of their own name, which brings torch."""


def missing_extra(
    error: ImportError, what: str, packages: Sequence[str] = (), preferred: str | None = None
) -> MissingRuntimeError | None:
    """Return the sentence for a module that is not installed, None where no extra installs it.

    Args:
        error: What an import raised.
        what: Needs the module, for the beginning of the sentence.
        packages: Packages of hosts, each an extra of its own name.
        preferred: The extra to name for what every host needs: that of the host in question.

    Example:
        >>> print(missing_extra(ModuleNotFoundError(name="ray"), "a sweep"))
        a sweep needs 'ray', which is not installed: pip install "yolo-prune[ray]".
    """
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = module if module in packages else EXTRAS.get(module)
    if extra is None:
        return None
    extra = preferred if extra == "torch" and preferred else extra
    return MissingRuntimeError(
        f"{what} needs '{module}', which is not installed: pip install \"yolo-prune[{extra}]\"."
    )
