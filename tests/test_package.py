"""The wheel works where it is installed, without the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import sys
from pathlib import Path
import flows.retrain, gptpipe
from gptpipe.config import PRESETS, PipelineConfig
from gptpipe.tokenizer import get_tokenizer
place = Path(sys.argv[1]).resolve()
assert Path(gptpipe.__file__).is_relative_to(place) and Path(flows.__file__).is_relative_to(place)
assert all(PipelineConfig(preset=name).model.n_layer for name in PRESETS)
assert get_tokenizer().encode("hello world") == [31373, 995]
"""


def test_the_wheel_holds_flows_presets_and_ranks(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "-n", "-o", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("gptpipe-*.whl")
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, place],
        cwd=tmp_path,
        env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert probe.returncode == 0, probe.stderr
    assert (place / "bin" / "gptpipe").exists()


def test_only_the_command_line_calls_flows_and_only_tracking_knows_mlflow() -> None:
    for file in (ROOT / "gptpipe").rglob("*.py"):
        text, room = file.read_text(), file.relative_to(ROOT / "gptpipe").parts[0]
        if room != "cli":
            assert "import prefect" not in text, file
            assert "from prefect" not in text, file
            assert "from flows" not in text, file
        if room != "tracking":
            assert "import mlflow" not in text, file
            assert "from mlflow" not in text, file


@pytest.mark.parametrize("module", ["gptpipe.train.loop", "gptpipe.corpus.build"])
def test_ranks_and_tokenizing_workers_import_neither_prefect_nor_mlflow(module: str) -> None:
    code = f"import sys, {module}; assert not {{'prefect', 'mlflow', 'typer', 's3fs'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
