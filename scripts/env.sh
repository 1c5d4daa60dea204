# Sourced by the other scripts: goes to the repository's root and makes .venv ready, once per change of the pins.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Python 3.10 or newer is needed: set PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "making .venv" >&2
    "$PYTHON" -m venv --clear .venv
fi
wanted="$(.venv/bin/python -c '
import hashlib, pathlib
files = ("pyproject.toml", "scripts/constraints.txt")
print(hashlib.sha256(b"".join(pathlib.Path(file).read_bytes() for file in files)).hexdigest())')"
if [ "$(cat .venv/yolo-prune.stamp 2>/dev/null)" != "$wanted" ]; then
    echo "installing the package and what it needs into .venv (minutes on the first run)" >&2
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --quiet \
        --constraint scripts/constraints.txt --editable ".[ultralytics,torchvision,timm,onnx,dev,docs]" </dev/null
    echo "$wanted" >.venv/yolo-prune.stamp
fi
