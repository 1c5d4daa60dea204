#!/usr/bin/env bash
# Run the tests: scripts/test.sh [pytest options]. Makes .venv on the first run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec .venv/bin/python -m pytest "$@" </dev/null
