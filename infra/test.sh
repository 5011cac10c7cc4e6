#!/usr/bin/env bash
# Sets everything up and runs the checks: ruff, mypy, pytest. --all runs the slow tests too; other arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = "--all" ]; then
    setup dev,stack,dask,ray,harness
    select=()
    shift
else
    setup dev,stack
    select=(-m "not slow")
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "${select[@]}" "$@"
