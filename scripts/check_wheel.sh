#!/usr/bin/env bash
# Build the package, install the wheel with one runtime into a bare environment, and use it there: scripts/check_wheel.sh
# [folder]. The wheel and the source distribution are in dist/ afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
work="${1:-$(mktemp -d)}"
"$PYTHON" -m venv --clear "$work/build"
"$work/build/bin/python" -m pip install --disable-pip-version-check --quiet build onnx
rm -rf dist
"$work/build/bin/python" -m build --outdir dist .
"$work/build/bin/python" scripts/tiny_onnx.py "$work/tiny.onnx"
"$PYTHON" -m venv --clear "$work/bare"
"$work/bare/bin/python" -m pip install --disable-pip-version-check --quiet dist/*.whl onnxruntime
cd "$work" # not the checkout: what is imported is what was installed
bare/bin/yolo-prune --version
bare/bin/yolo-prune doctor
bare/bin/yolo-prune check model=tiny.onnx min_fps=1 max_size_mb=1 seconds=2
bare/bin/python - <<'END'
import importlib.util
from importlib.resources import files

assert importlib.util.find_spec("torch") is None, "the environment is not bare"
shipped = sorted(file.name for file in (files("yolo_prune") / "schemas").iterdir())
assert shipped == ["plan.schema.json", "report.schema.json"], shipped
print("the wheel holds", *shipped)
END
