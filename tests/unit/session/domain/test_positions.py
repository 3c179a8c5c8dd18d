"""Positions, their queues and the memory of what was met, against plain models."""

from __future__ import annotations

import random

import hypothesis
import hypothesis.strategies as st

from services.session.domain.positions import (
    FLAG_BITS,
    MAX_LOGS,
    MAX_SEQUENCE,
    P2P,
    QOS2,
    WINDOW,
    Met,
    Queue,
    log_index_of,
    pack,
    sequence_of,
)


@hypothesis.given(st.integers(0, MAX_LOGS - 1), st.integers(1, MAX_SEQUENCE), st.sampled_from([0, QOS2, P2P]))
def test_a_position_fits_what_sqlite_and_arrays_take_and_comes_apart_again(log: int, sequence: int, flags: int) -> None:
    position = pack(log, sequence, flags)
    assert 0 < position < 1 << 63
    delivery_id = position >> FLAG_BITS
    assert (log_index_of(delivery_id), sequence_of(delivery_id), position & 3) == (log, sequence, flags)


def test_a_queue_is_a_list() -> None:
    for seed in range(200):
        source = random.Random(seed)
        queue, model = Queue(), list[tuple[int, int]]()
        for n in range(300):
            item = (pack(n % 3, n + 1, n % 4), n)
            match source.randrange(6):
                case 0 | 1:
                    queue.append(*item)
                    model.append(item)
                case 2 if model:
                    assert queue.pop() == model.pop(0)
                case 3 if model:
                    assert queue.pop_newest() == model.pop()
                case 4:
                    first = [(pack(5, 4 * n + k + 1, 0), 0) for k in range(source.randrange(4))]
                    queue.put_first(first)
                    model[:0] = first
                case 5 if model:
                    wanted = source.choice(model)
                    assert queue.take({wanted[0] >> FLAG_BITS, 1 << 60}) == [wanted]
                    model.remove(wanted)
                    assert not queue.take({wanted[0] >> FLAG_BITS})
            assert list(queue) == model
            assert len(queue) == len(model)
            if model:
                assert queue.first_time_s() == model[0][1]
        queue.sort()
        assert list(queue) == sorted(model, key=lambda each: (each[1], each[0]))


def test_what_was_met_is_known_within_the_window() -> None:
    for seed in range(100):
        source = random.Random(seed)
        met, model, read_through, top = Met(), set[int](), 0, 0
        for _ in range(400):
            jump = source.choice((1, 2, 7, 8, 9, 63, 64, 65, 1000, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW))
            sequence = source.choice((top + jump, max(1, top - jump), top + 1))
            if source.random() < 0.02:
                read_through = max(read_through, sequence)
                met.read_to(sequence)
            is_new = sequence > read_through and sequence not in model
            is_forgotten = read_through < sequence <= top - WINDOW
            assert met.has(sequence) == (not is_new and not is_forgotten)
            assert met.add(sequence) == (is_new or is_forgotten)
            if sequence > read_through:
                model.add(sequence)
                top = max(top, sequence)
            if source.random() < 0.1:  # a checkpoint, and a crash
                met = Met(met.read_through, met.top, met.bits)
            assert met.resume_after == max(read_through, top - WINDOW)
