"""Batches of several streams: in their proportions, from any position, whole, of any number of rows."""

import collections
import itertools

import numpy as np
import pytest

from data_pipelines.mixture import Mixture
from nova_jax import experiment
from nova_jax.models.text import WordTextEncoder
from nova_jax.types import Batch


class Counting(experiment.DataSource):
    """A stream whose rows say which part they are of and their position in it."""

    def __init__(self, part):
        self.part = part

    def describe(self):
        return {"part": self.part}

    def fingerprint(self):
        return f"part {self.part}"

    def with_text_encoder(self, encoder):
        return Counting((self.part, encoder))

    def batches(self, start, batch_size, shard_index=0, shard_count=1):
        rows = batch_size // shard_count
        for first in itertools.count(start, batch_size):
            at = first + shard_index * rows + np.arange(rows)
            values = np.stack([np.full(rows, self.part), at], axis=1)
            yield Batch(values.astype(np.float32).reshape(rows, 1, 1, 1, 2))


MIXTURE = Mixture(parts=((Counting(0), 5), (Counting(1), 3), (Counting(2), 1)))


def take(start, batches, batch_size=4, **shard):
    stream = MIXTURE.batches(start, batch_size, **shard)
    return [np.asarray(next(stream).x0)[:, 0, 0, 0] for _ in range(batches)]


def test_a_mixture_is_a_data_source():
    assert isinstance(MIXTURE, experiment.DataSource)


def test_all_parts_are_read_by_the_encoder_of_the_network():
    encoder = WordTextEncoder()
    bound = TOKENS.with_text_encoder(encoder)
    assert [part[0].part for part in bound.parts] == [(0, encoder), (1, encoder), (2, encoder)]
    assert [part[1:] for part in bound.parts] == [part[1:] for part in TOKENS.parts]


def test_every_batch_comes_whole_from_one_part_and_parts_keep_their_proportions():
    batches = take(0, 18)
    assert all(len(set(batch[:, 0])) == 1 for batch in batches)
    assert collections.Counter(int(batch[0, 0]) for batch in batches) == {0: 10, 1: 6, 2: 2}


def test_each_part_is_read_in_order_without_gaps():
    batches = np.concatenate(take(0, 27))
    for part in range(3):
        positions = batches[batches[:, 0] == part, 1]
        np.testing.assert_array_equal(positions, np.arange(len(positions)))


def test_parts_are_spread_over_the_cycle():
    order = MIXTURE.order
    gaps = np.diff([i for i, part in enumerate(order + order) if part == 1])
    assert gaps.max() <= 4


@pytest.mark.parametrize("done", [1, 7, 9, 23])
def test_a_mixture_goes_on_where_it_stopped(done):
    np.testing.assert_array_equal(take(4 * done, 12), take(0, done + 12)[done:])


def test_shards_are_parts_of_the_same_batches():
    halves = [take(8, 5, shard_index=i, shard_count=2) for i in range(2)]
    for whole, *parts in zip(take(8, 5), *halves, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_a_position_inside_a_batch_is_refused():
    with pytest.raises(ValueError, match="position 6 lies inside a batch of 4"):
        next(MIXTURE.batches(6, 4))


def test_the_shares_of_the_examples_are_the_weights():
    assert [share for share, _ in MIXTURE.examples()] == pytest.approx([5 / 9, 3 / 9, 1 / 9])


def test_weights_and_parts_enter_the_fingerprint():
    others = [Mixture(parts=((Counting(0), 5), (Counting(1), 3), (Counting(2), 2))), Mixture(parts=MIXTURE.parts[:2])]
    assert len({m.fingerprint() for m in (MIXTURE, *others)}) == 3


@pytest.mark.parametrize("parts", [(), ((Counting(0), 0),)])
def test_a_mixture_of_nothing_is_refused(parts):
    with pytest.raises(ValueError, match="weight of 1 or more"):
        Mixture(parts=parts)


TOKENS = Mixture(parts=((Counting(0), 2), (Counting(1), 1, 3.0), (Counting(2), 1, 0.5)))


def take_all(start, batches, **shard):
    stream = TOKENS.batches(start, 4, **shard)
    return [np.asarray(next(stream).x0)[:, 0, 0, 0] for _ in range(batches)]


def test_parts_have_batches_of_their_own_numbers_of_rows_and_are_read_without_gaps():
    batches = take_all(0, 16)
    assert TOKENS.batch_sizes(4) == (4, 12, 2)
    assert {(int(batch[0, 0]), len(batch)) for batch in batches} == {(0, 4), (1, 12), (2, 2)}
    for part in range(3):
        positions = np.concatenate([batch[:, 1] for batch in batches if batch[0, 0] == part])
        np.testing.assert_array_equal(positions, np.arange(len(positions)))


@pytest.mark.parametrize("done", [1, 3, 4, 9])
def test_parts_of_other_sizes_go_on_where_they_stopped(done):
    for again, once in zip(take_all(4 * done, 8), take_all(0, done + 8)[done:], strict=True):
        np.testing.assert_array_equal(again, once)


def test_shards_are_parts_of_batches_of_any_size():
    halves = [take_all(8, 6, shard_index=i, shard_count=2) for i in range(2)]
    for whole, *parts in zip(take_all(8, 6), *halves, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_rows_that_do_not_divide_say_so():
    with pytest.raises(ValueError, match="part of 2 rows does not divide over 4 data shards"):
        next(TOKENS.batches(0, 4, shard_index=0, shard_count=4))
    with pytest.raises(ValueError, match=r"0.5 times the rows of the batch size 3, which is 1.5"):
        TOKENS.batch_sizes(3)
    with pytest.raises(ValueError, match="above 0"):
        Mixture(parts=((Counting(0), 1, 0.0),))


def test_examples_count_rows_and_rows_enter_description_and_fingerprint():
    assert [share for share, _ in TOKENS.examples()] == pytest.approx([2 / 4, 3 / 4, 0.5 / 4])
    assert TOKENS.describe()["rows"] == [1.0, 3.0, 0.5]
    assert "rows" not in MIXTURE.describe()
    plain = Mixture(parts=tuple(part[:2] for part in TOKENS.parts))
    assert plain.fingerprint() != TOKENS.fingerprint()
