"""The script for the day a GPU is there, at toy size on the CPU: its sections run, and what fails is a line."""

import json

import pytest

from benchmarks import on_gpu


@pytest.mark.parametrize("section", ["environment", "trainer", "unet", "style", "private"])
def test_a_section_finds_what_can_be_written_down_and_nothing_untrue(section, monkeypatch):
    monkeypatch.setenv("RAY_FED_CUDA_GRAPHS", "on")
    found = on_gpu.SECTIONS[section][0](on_gpu.TOY)
    assert json.loads(json.dumps(found)) == found
    assert not any(value is False for value in found.values())


def test_all_sections_together_take_under_nine_minutes():
    assert sum(limit for _, limit in on_gpu.SECTIONS.values()) < 9 * 60


def test_a_section_that_takes_too_long_or_cannot_run_is_a_line_of_the_page():
    late = on_gpu.outcome("environment", "toy", limit=0.01)
    assert late["failed"] == "not done within 0.01 s"
    written = on_gpu.page({"environment": {"found": {"gpu": "H"}, "seconds": 1, "notes": []}, "unet": late}, "toy")
    assert "On H, 1 of 2 sections ran; not as promised: unet." in written
    assert "**Failed:** not done within 0.01 s" in written
