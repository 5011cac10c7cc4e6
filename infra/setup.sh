# Sourced by run.sh and test.sh: makes .venv and installs gptpipe with the pinned versions, once.
# Usage: setup EXTRAS   (for example: setup "" or setup dev,stack)

# what Python has compiled it keeps, in .venv: without, each process would compile all that it imports
unset PYTHONDONTWRITEBYTECODE

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found — install one, or name it: PYTHON=/path/to/python $0" >&2
    return 2
}

setup() {
    local extras=$1 python wanted stamp
    wanted=$(cat pyproject.toml infra/constraints.txt | cksum)
    local enough=(".venv/.installed-$extras" .venv/.installed-dev,stack,dask,ray)
    [ -n "$extras" ] || enough+=(.venv/.installed-dev,stack)
    for stamp in "${enough[@]}"; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
            return
        fi
    done
    python=$(find_python)
    if [ ! -x .venv/bin/python ]; then
        echo "setting up: $("$python" --version) in .venv" >&2
        "$python" -m venv .venv
    fi
    echo "setting up: installing pinned packages, one to two minutes the first time" >&2
    local install=(install -c infra/constraints.txt) package=".${extras:+[$extras]}"
    local pip=(.venv/bin/python -m pip -qq --disable-pip-version-check)
    # torch by pip, which knows what this machine's pip.conf says about where its builds are; uv does not
    "${pip[@]}" "${install[@]}" --no-compile --no-deps uv torch
    # in less than half of pip's time; but only pip knows of a mirror that pip.conf names
    if ! .venv/bin/uv pip install -q --python .venv/bin/python "${install[@]:1}" -e "$package"; then
        echo "setting up: uv could not, pip does it" >&2
        "${pip[@]}" "${install[@]}" --no-compile -e "$package"
    fi
    # what most processes import is compiled now, on two cores, and not by several of them at once
    .venv/bin/python -c "import torch.distributed.run, pyarrow.parquet, scipy.stats, matplotlib.pyplot, s3fs" &
    .venv/bin/python -W ignore -c "import prefect.server.api.server, mlflow.server.fastapi_app"
    wait
    echo "$wanted" >.venv/.installed-"$extras"
}
