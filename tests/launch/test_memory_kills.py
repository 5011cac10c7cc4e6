"""Kills for lack of memory: the counters of kernel and control groups, as they are written."""

from __future__ import annotations

from pathlib import Path

from gptpipe.launch.memory_kills import memory_figures, memory_kills


def test_counters_add_up_and_what_is_absent_or_another_line_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\noom_kill_disable 9\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 7\noom 5\noom_kill 2\noom_group_kill 8\n")
    places = [tmp_path / "vmstat", tmp_path / "memory.events", tmp_path / "absent"]
    assert memory_kills(places) == 5
    assert memory_kills([]) == 0


def test_figures_say_how_much_there_is() -> None:
    assert " GB free now" in memory_figures()
