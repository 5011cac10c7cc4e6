#!/usr/bin/env bash
# Sets everything up and runs the checks: ruff, mypy, pytest in up to five processes. --all runs the slow tests too.
# Other arguments go to pytest.
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
workers=$(.venv/bin/python -c "from gptpipe.cores import usable_cores; print(min(4, usable_cores()))")
# one more than cores, as tests often wait for servers; whole files, the long ones first, as tests/conftest.py has them
select+=(-n "$((workers + 1))" --dist loadfile --no-loadscope-reorder)
.venv/bin/ruff check .
.venv/bin/ruff format --check .
types=$(mktemp)
trap 'rm -f "$types"' EXIT
.venv/bin/mypy >"$types" 2>&1 & # beside the tests, which often wait for servers
mypy=$!
# threads of tests that run side by side do not spin while others wait for the core
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
status=0
.venv/bin/python -m pytest "${select[@]}" "$@" || status=$?
wait "$mypy" || status=1
cat "$types"
exit "$status"
