"""Batches: every example once, in its right place, in few shapes, and resumable."""

import collections
import itertools

import numpy as np
import pytest

from srgnn_jax.data import batches
from srgnn_jax.data.batches import (
    eval_batches,
    make_batch,
    steps_per_epoch,
    tier_layout,
    train_batches,
)
from srgnn_jax.data.sessions import Sessions


def draw_sessions(count=60, longest=30, seed=0):
    """Draws sessions, mostly short; no two clicks have the same item."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.25, count) + 1, longest)
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.permutation(offsets[-1]).astype(np.int32) + 1
    return Sessions(items, offsets)


def expected(sessions, max_length=0):
    """Spells the examples out, as (prefix, target)."""
    return sorted(
        (session[max(n - max_length, 0) if max_length else 0 : n], session[n])
        for session in (tuple(session.tolist()) for session in sessions)
        for n in range(1, len(session))
    )


def rows_of(batch, shards=1):
    """Reads a batch back: (prefix, target, weight) of every row, shard by shard."""
    target, weight = batch["target"], batch["weight"]
    prefixes = [[] for _ in range(shards)]
    for item_seq, item_seq_len in batch["tiers"]:
        assert item_seq.dtype == item_seq_len.dtype == target.dtype == np.int32
        parts = zip(
            np.split(item_seq, shards), np.split(item_seq_len, shards), strict=True
        )
        for shard, (part, lengths) in enumerate(parts):
            for row, length in zip(part.tolist(), lengths.tolist(), strict=True):
                assert not any(row[length:])
                prefixes[shard].append(tuple(row[:length]))
    flat = [prefix for shard in prefixes for prefix in shard]
    return list(zip(flat, target.tolist(), weight.tolist(), strict=True))


def examples_of(epoch, shards=1):
    """The examples of some batches, in their order, without rows that only fill up."""
    return [
        (prefix, target)
        for batch in epoch
        for prefix, target, weight in rows_of(batch, shards)
        if weight
    ]


def shapes(batch):
    return tuple(item_seq.shape for item_seq, _ in batch["tiers"])


def assert_equal(some, others):
    for batch, other in zip(some, others, strict=True):
        assert rows_of(batch) == rows_of(other)
        assert shapes(batch) == shapes(other)


@pytest.mark.parametrize("max_length", [0, 3])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_an_epoch_holds_every_example_once(shards, max_length):
    sessions = draw_sessions()
    examples = sessions.examples(max_length)
    size = 28
    epoch = list(train_batches(examples, size, seed=1, epoch=0, shards=shards))
    assert len(epoch) == steps_per_epoch(len(examples), size)
    assert sorted(examples_of(epoch, shards)) == expected(sessions, max_length)
    rows = -(-size // shards) * shards
    for step, batch in enumerate(epoch):
        real = min(size, len(examples) - step * size)
        weight = batch["weight"]
        assert weight.dtype == np.float32
        assert (len(weight), weight.sum()) == (rows, real)
        for prefix, target, weight in rows_of(batch, shards):
            # What only fills up is one click of padding, with a target that exists.
            assert weight == 1 or (weight, prefix, target) == (0, (0,), 1)


def test_the_order_is_that_of_seed_and_epoch():
    examples = draw_sessions().examples()

    def order(seed, epoch):
        return examples_of(train_batches(examples, 1, seed, epoch))

    orders = [order(1, 0), order(1, 1), order(2, 0), order(2, 1)]
    assert order(1, 1) == orders[1]
    assert len({tuple(order) for order in orders}) == 4
    in_place = [a == b for a, b in zip(orders[0], orders[1], strict=True)]
    assert sum(in_place) < len(in_place) / 10


@pytest.mark.parametrize("first_step", [0, 1, 4])
def test_an_epoch_goes_on_where_it_was_left(first_step):
    examples = draw_sessions().examples()
    whole = list(train_batches(examples, 28, seed=3, epoch=2))
    rest = train_batches(examples, 28, seed=3, epoch=2, first_step=first_step)
    assert_equal(rest, whole[first_step:])


def test_an_epoch_that_is_over_goes_on_with_nothing():
    examples = draw_sessions().examples()
    steps = steps_per_epoch(len(examples), 28)
    assert not list(train_batches(examples, 28, 3, 2, first_step=steps))


def test_shards_share_the_examples_and_lengths_evenly():
    examples = draw_sessions(count=200).examples()
    for batch in train_batches(examples, 64, seed=0, epoch=0, shards=4):
        real = np.split(batch["weight"], 4)
        if batch["weight"].sum() < 64:
            continue
        assert [part.sum() for part in real] == [16] * 4
        for _, item_seq_len in batch["tiers"]:
            # Sorted by length and dealt out: the shards' k-th rows are neighbours.
            shard_lengths = np.stack(np.split(item_seq_len, 4))
            assert (shard_lengths.max(0)[:-1] <= shard_lengths.min(0)[1:]).all()


def test_shards_hold_the_batch_of_one_device():
    examples = draw_sessions().examples()
    one = train_batches(examples, 28, seed=1, epoch=0)
    many = train_batches(examples, 28, seed=1, epoch=0, shards=3)
    for batch, other in zip(one, many, strict=True):
        assert sorted(examples_of([batch])) == sorted(examples_of([other], 3))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_run_has_two_shapes_at_most(shards):
    examples = draw_sessions(count=300).examples()
    seen = collections.Counter(
        shapes(batch)
        for epoch in range(5)
        for batch in train_batches(examples, 32, 0, epoch, shards=shards)
    )
    assert len(seen) <= 2
    usual, times = seen.most_common(1)[0]
    assert len(usual) > 1
    assert times > 0.9 * seen.total()


def test_tiers_waste_little_on_padding():
    examples = draw_sessions(count=2_000, longest=60).examples()
    layout = tier_layout(examples.lengths, 256)
    assert sum(rows for rows, _ in layout) == 256
    lengths = [length for _, length in layout]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 59
    assert len(lengths) == 4
    assert sum(rows * length for rows, length in layout) < 256 * 59 / 3


def test_tiers_have_the_fewest_positions():
    lengths = np.minimum(np.random.default_rng(0).geometric(0.3, 5_000), 14)

    def longer(end, rows=64):
        share = np.mean(lengths > end)
        return np.ceil(rows * share + 4 * np.sqrt(rows * share * (1 - share)))

    def positions(ends):
        bounds = [64, *(longer(end) for end in ends)]
        return sum(
            (more - fewer) * end
            for more, fewer, end in zip(bounds, bounds[1:], ends, strict=False)
        )

    least = min(
        positions((*ends, 14))
        for n in range(4)
        for ends in itertools.combinations(range(1, 14), n)
    )
    layout = tier_layout(lengths, 64)
    assert sum(rows * length for rows, length in layout) == least


@pytest.mark.parametrize(
    ("lengths", "layout"),
    [
        ([1, 2, 3], ((8, 3),)),
        ([4, 4, 4], ((8, 4),)),
        ([20, 20, 20], ((8, 20),)),
        ([2] * 1000 + [9], ((7, 2), (1, 9))),
    ],
)
def test_tiers_of_small_data(lengths, layout):
    assert tier_layout(np.array(lengths, np.int32), 8) == layout


def test_the_longest_tier_may_be_given():
    assert tier_layout(np.array([2, 3]), 8, 30) == ((8, 3),)


def test_a_batch_that_does_not_fit_falls_back_on_one_tier():
    examples = Sessions.from_lists(
        [[1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6], [7, 8], [8, 9]], last_only=True
    ).examples()
    layouts = (((2, 1), (1, 5)), ((3, 5),))
    fits = make_batch(examples, np.array([2, 0, 3]), layouts)
    assert shapes(fits) == ((2, 1), (1, 5))
    does_not = make_batch(examples, np.array([1, 0, 3]), layouts)
    assert shapes(does_not) == ((3, 5),)
    assert sorted(examples_of([does_not])) == [
        ((1, 2, 3, 4, 5), 6),
        ((2, 1, 3, 4, 5), 6),
        ((8,), 9),
    ]


def test_a_batch_fits_only_where_it_does_for_every_shard():
    examples = Sessions.from_lists(
        [[1, 2], [3, 4, 5, 6], [4, 5, 6, 7]], last_only=True
    ).examples()
    layouts = (((1, 1), (1, 3)), ((2, 3),))
    batch = make_batch(examples, np.array([0, 1, 2]), layouts, shards=2)
    assert shapes(batch) == ((2, 1), (2, 3))
    # Of the two shorter ones, only that of one shard is short enough.
    batch = make_batch(examples, np.array([0, 1, 2, 1]), layouts, shards=2)
    assert shapes(batch) == ((4, 3),)
    prefixes = [prefix for prefix, *_ in rows_of(batch, shards=2)]
    assert sorted(prefixes) == [(1,), (3, 4, 5), (3, 4, 5), (4, 5, 6)]


def test_training_falls_back_where_long_sessions_come_together(monkeypatch):
    # Without room for chance, about half of the batches do not fit their layout.
    monkeypatch.setattr(batches, "TIER_SIGMAS", 0.0)
    sessions = draw_sessions(count=100)
    epoch = list(train_batches(sessions.examples(), 32, seed=0, epoch=0))
    assert len({shapes(batch) for batch in epoch}) == 2
    assert sorted(examples_of(epoch)) == expected(sessions)


@pytest.mark.parametrize("max_length", [0, 3])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_evaluation_covers_everything_once(shards, max_length):
    sessions = draw_sessions()
    examples = sessions.examples(max_length)
    epoch = list(eval_batches(examples, 28, shards))
    assert sorted(examples_of(epoch, shards)) == expected(sessions, max_length)
    assert len({shapes(batch) for batch in epoch}) == (1 if max_length else 2)


def test_evaluation_pads_short_examples_to_less():
    epoch = list(eval_batches(draw_sessions().examples(), 28))
    lengths = [batch["tiers"][0][0].shape[1] for batch in epoch]
    assert lengths == sorted(lengths)
    assert set(lengths) == {8, 29}


@pytest.mark.parametrize(
    ("examples", "size", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)]
)
def test_steps_per_epoch(examples, size, steps):
    assert steps_per_epoch(examples, size) == steps
