#!/usr/bin/env bash
# Sets everything up and runs the whole pipeline on real text (Python's standard library unless told otherwise).
# Everything after the script's name is passed on to `gptpipe run`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup ""
exec .venv/bin/gptpipe run "$@"
