#!/usr/bin/env bash
# Makes this machine a node of trainings on several machines: sets everything up, checks it, and works until SIGTERM.
# Reads PREFECT_API_URL, GPTPIPE_STORAGE and the S3 keys from the environment; a machine without a GPU says --cpu.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup ""
exec .venv/bin/gptpipe worker "$@"
