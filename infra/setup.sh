# Sourced by run.sh and test.sh: makes .venv and installs gptpipe with the pinned versions, once.
# Usage: setup EXTRAS   (for example: setup "" or setup dev,stack)

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
    echo "setting up: installing pinned packages, about two minutes the first time" >&2
    # the one that Python brings may be years old, and takes twice the time
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile -c infra/constraints.txt -U pip
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile -c infra/constraints.txt -e ".${extras:+[$extras]}"
    # on all cores, as pip does not; some packages hold files for other Pythons, and thousands
    # that nobody here imports
    .venv/bin/python -m compileall -qq -j 0 -x '/(tests?|kubernetes|pip|transformers/models/(?!auto/|gpt2/)[^/]+)/' .venv/lib >/dev/null 2>&1 || true
    echo "$wanted" >.venv/.installed-"$extras"
}
