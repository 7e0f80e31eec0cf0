"""Headers of .npy arrays are parsed in many threads at once."""

import gc
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flamscale.data import storage
from flamscale.data.decode_latents import decode_latents
from flamscale.data.labels import read_labels
from flamscale.data.manifest import Manifest


@pytest.fixture
def threads_that_take_turns_while_parsing() -> Iterator[ThreadPoolExecutor]:
    """16 threads that give way to one another at each collection of garbage, of which parsing has many."""

    def give_way(*_: object) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.set_threshold(5)
    gc.callbacks.append(give_way)
    try:
        with ThreadPoolExecutor(16) as threads:
            yield threads
    finally:
        gc.callbacks.remove(give_way)
        gc.set_threshold(*thresholds)


def test_labels_are_read(
    threads_that_take_turns_while_parsing: ThreadPoolExecutor, data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = data_set.of_split("train")[0]
    samples = shard.samples
    first = read_labels(shard, samples, 0, "")["actions"]
    member = samples.members["npz"]
    content = storage.read_range(shard.url, int(member.offsets[0]), int(member.sizes[0]))
    monkeypatch.setattr(storage, "read_range", lambda *_: content)  # at once, so that threads meet while they parse
    found = list(threads_that_take_turns_while_parsing.map(lambda _: read_labels(shard, samples, 0, ""), range(1500)))
    assert all(np.array_equal(labels["actions"], first) for labels in found)


def test_latents_are_decoded(threads_that_take_turns_while_parsing: ThreadPoolExecutor) -> None:
    def decode(num_frames: int) -> int:
        file = io.BytesIO()
        np.save(file, np.zeros((num_frames, 4), dtype=np.uint16))
        return len(decode_latents(file.getvalue(), 0, num_frames, 1))

    assert list(threads_that_take_turns_while_parsing.map(decode, range(1, 400))) == list(range(1, 400))
