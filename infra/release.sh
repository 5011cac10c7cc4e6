#!/usr/bin/env bash
# Builds a release into dist/: wheel, sources, and an SBOM (CycloneDX) of all that an installation with servers brings.
# With --audit it also asks over the network which of that is known to be vulnerable, and fails if anything is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ "${1:-}" = "" ] || [ "$1" = "--audit" ] || { echo "usage: $0 [--audit]" >&2; exit 2; }
python=$(find_python)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
install() { # into an environment of its own: install NAME WHAT...
    "$python" -m venv "$scratch/$1"
    "$scratch/$1/bin/python" -m pip install -qq --disable-pip-version-check --no-compile -c infra/constraints.txt "${@:2}"
}
echo "building: wheel and sources" >&2
install tools build cyclonedx-bom pip-audit
rm -rf dist
"$scratch/tools/bin/python" -m build -o dist . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; exit 1; }
echo "installing what was built, to list what it brings" >&2
wheel=$(echo dist/*.whl)
install installed "$wheel[stack]"
"$scratch/installed/bin/python" -m pip uninstall -qq -y pip setuptools # the environment's own, which gptpipe does not need
name=$(basename "$wheel")
"$scratch/tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --of JSON \
    -o "dist/${name%%-py3*}.cdx.json" "$scratch/installed/bin/python"
if [ "${1:-}" = "--audit" ]; then
    "$scratch/installed/bin/python" -c "
from importlib.metadata import distributions
for each in distributions():
    if each.name != 'gptpipe':
        print(f'{each.name}=={each.version.split(\"+\")[0]}')" >"$scratch/pinned.txt"
    "$scratch/tools/bin/pip-audit" --no-deps --disable-pip -r "$scratch/pinned.txt"
fi
ls -l dist
