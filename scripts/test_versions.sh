#!/usr/bin/env bash
# The fast subset of the tests on the oldest supported Ultralytics and on the newest: scripts/test_versions.sh [pytest options].
# Only the host is exchanged: each version goes into a folder of its own that shadows the one in .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
oldest="$(sed -n 's/.*"ultralytics>=\([0-9.]*\).*/\1/p' pyproject.toml)"
subset=(tests/arch tests/adapters/test_ultralytics_{load,data,rules,options,train}.py tests/adapters/test_{attach,classify,exact,saliency,verify}.py
    tests/e2e/test_prune_{tasks,classify}.py)
status=0
export YOLO_CONFIG_DIR="$PWD/.venv/versions/settings" # an older host resets the settings that it finds
mkdir -p "$YOLO_CONFIG_DIR"
for version in "==$oldest" ""; do
    folder=".venv/versions/ultralytics$version"
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target "$folder" "ultralytics$version" </dev/null
    PYTHONPATH="$PWD/$folder" .venv/bin/python -c 'import ultralytics; print("Ultralytics", ultralytics.__version__, ultralytics.__file__)'
    PYTHONPATH="$PWD/$folder" .venv/bin/python -m pytest -q "${subset[@]}" "$@" </dev/null || { echo "red: Ultralytics $version" >&2; status=1; }
done
exit "$status"
