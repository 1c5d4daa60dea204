#!/usr/bin/env bash
# Run the tests in two processes: scripts/test.sh [pytest options], -n 0 for one. Makes .venv on the first run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@" </dev/null
