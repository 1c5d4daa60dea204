#!/usr/bin/env bash
# All that only a GPU can show, in one command of at most 8 minutes, on a bare machine without a network:
#     scripts/gpu_check.sh [--wheels DIR] [--out DIR] [--minutes N]
# runs the tests marked gpu, prunes a detector on drawn data, times parent and pruned in float32 and float16, eager and
# compiled, and writes one JSON: OUT/gpu_check.json (OUT: --out, else the folder $OUT, else gpu_check).
# Torch must be there (PYTHON=/path/to/python3 names the interpreter that has it); all other packages come as wheels:
#     scripts/gpu_check.sh --download [--wheels DIR] [pip options]
# fills that folder (default: wheels) on a machine with a network where the package is installed in .venv, for a target
# of the same kind; for another one add for example: --python-version 3.12 --platform manylinux_2_28_x86_64
# Torchvision, if the target lacks it, must fit its torch: add torchvision==0.22.1 or whatever does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=wheels out="${OUT:-gpu_check}" minutes=8 download=false rest=()
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) wheels="$2"; shift 2 ;;
        --out) out="$2"; shift 2 ;;
        --minutes) minutes="$2"; shift 2 ;;
        --download) download=true; shift ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) rest+=("$1"); shift ;;
    esac
done
if "$download"; then
    python=.venv/bin/python
    [ -x "$python" ] || python="${PYTHON:-python3}"
    mapfile -t packages < <("$python" scripts/gpu_check.py --list "${rest[@]}")
    mkdir -p "$wheels"
    exec "$python" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: \
        --dest "$wheels" "${packages[@]}" "${rest[@]}"
fi
[ "${#rest[@]}" = 0 ] || { echo "unknown: ${rest[*]} (--help lists the options)" >&2; exit 2; }
python="${PYTHON:-python3}"
"$python" -c 'import torch' 2>/dev/null || { echo "$python has no torch: set PYTHON to one that has" >&2; exit 2; }
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" >/dev/null; then
    files=()
    for file in "$wheels"/*.whl; do
        case "$file" in
            */torchvision-*) "$python" -c 'import torchvision' 2>/dev/null && continue ;;
        esac
        files+=("$file")
    done
    "$python" -m pip install --disable-pip-version-check --quiet --no-index --no-deps --no-compile --target "$site" "${files[@]}"
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export YOLO_OFFLINE=true YOLO_AUTOINSTALL=false YOLO_CONFIG_DIR="$site/settings"
mkdir -p "$YOLO_CONFIG_DIR"
exec "$python" scripts/gpu_check.py --out "$out" --minutes "$minutes" </dev/null
