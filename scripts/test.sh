#!/usr/bin/env bash
# Run the tests in two processes, the slow ones left out: scripts/test.sh [pytest options]. -m slow runs those alone,
# -m "slow or not slow" all of them, -n 0 all in one process. Makes .venv on the first run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # each process has a core to itself
# In the order of the folders: the many quick files come last, so that no process waits for the other at the end.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" </dev/null
