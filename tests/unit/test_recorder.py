"""What a run tells of a silo that died and was back in time: terminal and timing, not history."""

from dataclasses import replace

from pipelines.training.recorder import TrainingRecorder, history_line, timing_line
from ray_fed.federation.rounds.job import RoundRecord

SECONDS = {"total": 1.0, "compute": 0.5, "communicate": 0.5, "evaluate": 0.0}
PLAIN = RoundRecord("alone", "baseline", 3, 9, {"train_loss": 0.1}, ("a", "b"), (), 10, SECONDS)
KILLED = replace(PLAIN, restarts=(("a", "its process died"), ("c", "its process died")))


class Screen:
    def __init__(self):
        self.lines = []

    def note(self, line):
        self.lines.append(line)


def test_a_silo_that_was_started_again_is_told_and_history_is_that_of_an_undisturbed_run():
    recorder = TrainingRecorder.__new__(TrainingRecorder)
    recorder.progress = Screen()
    recorder._tell_restarts(KILLED, 0)
    assert recorder.progress.lines == [
        "round 3/9: silo 'a' was started again and redid the round: its process died",
        "round 3/9: silo 'c' was started again: its process died",
    ]
    assert timing_line(KILLED) == {"job": "alone", "round": 3, **SECONDS, "restarts": dict(KILLED.restarts)}
    assert timing_line(PLAIN) == {"job": "alone", "round": 3, **SECONDS}
    assert history_line(KILLED, 0) == history_line(PLAIN, 0)
