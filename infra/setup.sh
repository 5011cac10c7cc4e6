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

# Compile a package, or all, on all cores, as pip and uv do not: what is not compiled, every process that imports it
# compiles anew where PYTHONDONTWRITEBYTECODE is set. Some packages hold files for other Pythons, and thousands that
# nobody here imports.
compile() {
    local unused='/(tests?|kubernetes|databricks|mypy|pip|fontTools|apprise/plugins|sympy/physics|dateparser/data'
    unused+='|kubeflow_trainer_api|transformers/models/(?!auto/|gpt2/|qwen3/)[^/]+)/'
    .venv/bin/python -m compileall -qq -j 0 -x "$unused" .venv/lib/python*/site-packages/${1:-} >/dev/null 2>&1 || true
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
    local install=(install -c infra/constraints.txt) package=".${extras:+[$extras]}" torch
    local pip=(.venv/bin/python -m pip -qq --disable-pip-version-check)
    # torch by pip, which knows what this machine's pip.conf says about where its builds are; uv does not
    "${pip[@]}" "${install[@]}" --no-compile --no-deps uv torch
    compile torch & # while the rest is on its way
    torch=$!
    # in a quarter of pip's time; but only pip knows of a mirror that pip.conf names
    .venv/bin/uv pip -q --python .venv/bin/python "${install[@]}" -e "$package" 2>/dev/null ||
        "${pip[@]}" "${install[@]}" --no-compile -e "$package"
    wait "$torch"
    compile
    echo "$wanted" >.venv/.installed-"$extras"
}
