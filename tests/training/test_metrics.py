"""metrics.jsonl and TensorBoard hold every step once, whatever was killed when."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flamscale.training.metrics import MetricsRecorder, read_records


def record(recorder: MetricsRecorder, stage: str, *steps: int) -> None:
    for step in steps:
        recorder.write({"stage": stage, "step": step, "kind": "train", "loss": float(step), "losses": [1.0]})


def test_resume_drops_later_records_of_its_stage_and_torn_lines(tmp_path: Path) -> None:
    first = MetricsRecorder(tmp_path)
    first.resume("tokenizer", 0)
    record(first, "tokenizer", 5, 10)
    first.resume("flam", 0)
    record(first, "flam", 2, 4, 6)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "flam", "st')
    second = MetricsRecorder(tmp_path)
    second.resume("flam", 4)
    record(second, "flam", 8)
    second.close()
    steps = [(line["stage"], line["step"]) for line in read_records(tmp_path / "metrics.jsonl")]
    assert steps == [("tokenizer", 5), ("tokenizer", 10), ("flam", 2), ("flam", 4), ("flam", 8)]
    events = EventAccumulator(str(tmp_path / "tensorboard/flam")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 2.0), (4, 4.0), (8, 8.0)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    recorder = MetricsRecorder(tmp_path / "run", enabled=False)
    recorder.resume("flam", 0)
    record(recorder, "flam", 1)
    recorder.close()
    assert not (tmp_path / "run").exists()


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_records(path) == [{"step": 1}, {"step": 2}]


def test_observers_see_each_record_once_it_is_written(tmp_path: Path) -> None:
    seen = []
    recorder = MetricsRecorder(tmp_path, observers=[lambda record: seen.append((record, read_records(recorder.path)))])
    recorder.resume("flam", 0)
    record(recorder, "flam", 1, 2)
    recorder.close()
    assert [(line["step"], len(written)) for line, written in seen] == [(1, 1), (2, 2)]
