#!/usr/bin/env bash
# Sets everything up and starts the servers and a worker on this machine; `.venv/bin/gptpipe down` stops them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup stack
exec .venv/bin/gptpipe up "$@"
