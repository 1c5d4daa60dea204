#!/usr/bin/env bash
# Train, prune, retrain and report on a data set that the package draws itself: scripts/demo.sh [key=value ...].
# Makes .venv on the first run. Your own detector and data: scripts/demo.sh model=best.pt data=data.yaml
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec .venv/bin/yolo-prune demo "$@" </dev/null
