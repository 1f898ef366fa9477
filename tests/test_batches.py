"""Batches: every example once, in the right place, in few shapes, and resumable."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from srgnn_jax.data import batches
from srgnn_jax.data.batches import (
    eval_batches,
    make_batch,
    steps_per_epoch,
    train_batches,
)
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.data.tiering import (
    NEVER,
    TIERING,
    Tiering,
    choose_layout,
    tier_layout,
)


def num_positions(layout):
    return sum(rows * length for rows, length in layout)


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


gather_part = jax.jit(batches.gather_part)


def rows_of(batch, examples):
    """Reads a batch back: (prefix, target, weight) of every row, part by part."""
    rows = []
    for n in range(len(batch.start)):
        part = jax.device_get(gather_part(examples.items, batch, n))
        prefixes = []
        for item_seq, item_seq_len in part.tiers:
            assert item_seq.dtype == item_seq_len.dtype == part.target.dtype == np.int32
            for row, length in zip(
                item_seq.tolist(), item_seq_len.tolist(), strict=True
            ):
                assert not any(row[length:])
                prefixes.append(tuple(row[:length]))
        rows += zip(prefixes, part.target.tolist(), part.weight.tolist(), strict=True)
    return rows


def examples_of(epoch, examples):
    """The examples of some batches, in their order, without padding rows."""
    return [
        (prefix, target)
        for batch in epoch
        for prefix, target, weight in rows_of(batch, examples)
        if weight
    ]


def shapes(batch):
    return len(batch.start), batch.layout


def assert_equal(some, others, examples):
    for batch, other in zip(some, others, strict=True):
        assert rows_of(batch, examples) == rows_of(other, examples)
        assert shapes(batch) == shapes(other)


@pytest.mark.parametrize(("shards", "max_length"), [(1, 0), (3, 3)])
def test_an_epoch_holds_every_example_once(shards, max_length):
    sessions = draw_sessions()
    examples = sessions.examples(max_length)
    size = 28
    epoch = list(train_batches(examples, size, seed=1, epoch=0, shards=shards))
    assert len(epoch) == steps_per_epoch(len(examples), size)
    assert sorted(examples_of(epoch, examples)) == expected(sessions, max_length)
    for step, batch in enumerate(epoch):
        real = min(size, len(examples) - step * size)
        assert (batch.length.shape, batch.examples) == (
            (shards, -(-size // shards)),
            real,
        )
        for prefix, target, weight in rows_of(batch, examples):
            # A padding row is one click of padding, with a target that exists.
            assert weight == 1 or (weight, prefix, target) == (0, (0,), 1)


def test_the_order_is_that_of_seed_and_epoch():
    examples = draw_sessions().examples()

    def order(seed, epoch):
        made = train_batches(examples, 1, seed, epoch)
        return [batch.example.item() for batch in made]

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
    assert_equal(rest, whole[first_step:], examples)


def test_an_epoch_that_is_over_goes_on_with_nothing():
    examples = draw_sessions().examples()
    steps = steps_per_epoch(len(examples), 28)
    assert not list(train_batches(examples, 28, 3, 2, first_step=steps))


def test_parts_share_the_examples_and_lengths_evenly():
    examples = draw_sessions(count=200).examples()
    epoch = train_batches(examples, 64, seed=0, epoch=0, shards=4)
    full = [batch for batch in epoch if batch.examples == 64]
    assert len(full) == len(examples) // 64 > 1
    for batch in full:
        assert np.count_nonzero(batch.length, axis=1).tolist() == [16] * 4
        # Sorted by length and dealt out: the parts' k-th rows are neighbours.
        assert (batch.length.max(0)[:-1] <= batch.length.min(0)[1:]).all()


@pytest.mark.parametrize("limits", [{"shards": 3}, {"max_positions": 60}])
def test_parts_hold_the_batch_of_one_device(limits):
    examples = draw_sessions().examples()
    one = list(train_batches(examples, 28, seed=1, epoch=0))
    assert len(one) > 1
    many = train_batches(examples, 28, seed=1, epoch=0, **limits)
    for batch, other in zip(one, many, strict=True):
        assert len(batch.start) == 1 < len(other.start)
        assert sorted(examples_of([batch], examples)) == sorted(
            examples_of([other], examples)
        )


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("max_positions", [40, 100, 10_000])
def test_parts_are_no_larger_than_a_device_may_hold(shards, max_positions):
    lengths = draw_sessions(count=300).examples().lengths
    layout, parts = choose_layout(lengths, 96, shards, max_positions)
    assert parts % shards == 0
    assert parts * sum(rows for rows, _ in layout) >= 96
    assert num_positions(layout) <= max_positions
    if parts > shards:
        fewer = tier_layout(lengths, 96, parts // 2)
        assert num_positions(fewer) > max_positions


def test_rows_of_a_part_can_be_limited():
    lengths = draw_sessions().examples().lengths
    layout, parts = choose_layout(lengths, 28, 1, 10_000, max_rows=9)
    assert (sum(rows for rows, _ in layout), parts) == (7, 4)


def test_one_row_may_be_longer_than_the_limit():
    assert choose_layout(np.array([50, 50]), 2, 1, 8) == (((1, 50),), 2)


def test_a_batch_can_bring_its_own_clicks():
    examples = draw_sessions().examples()
    epoch = list(train_batches(examples, 28, seed=1, epoch=0, max_positions=60))
    sizes = set()
    for batch in epoch:
        clicks, own = batches.own_clicks(examples.items, batch)
        theirs = dataclasses.replace(examples, items=clicks)
        assert rows_of(own, theirs) == rows_of(batch, examples)
        sizes.add((batch.layout, len(clicks)))
    assert len(sizes) == len({batch.layout for batch in epoch})


@pytest.mark.parametrize("max_positions", [10_000, 60])
def test_sums_over_parts_are_those_of_the_batch(max_positions):
    examples = draw_sessions().examples()
    batch = next(
        train_batches(examples, 28, seed=1, epoch=0, max_positions=max_positions)
    )

    def sums(part):
        return {
            "clicks": sum(length.sum() for _, length in part.tiers),
            "items": sum(item_seq.sum() for item_seq, _ in part.tiers),
            "targets": (part.target * part.weight).sum(),
        }

    found = jax.jit(functools.partial(batches.sum_over_parts, sums))(
        examples.items, batch
    )
    rows = rows_of(batch, examples)
    assert found["clicks"] == sum(len(prefix) for prefix, *_ in rows)
    assert found["items"] == sum(sum(prefix) for prefix, *_ in rows)
    assert found["targets"] == sum(target * weight for _, target, weight in rows)


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
    assert len(lengths) == TIERING.most
    assert sum(rows * length for rows, length in layout) < 256 * 59 / 5


def test_tiers_have_the_fewest_positions():
    lengths = np.minimum(np.random.default_rng(0).geometric(0.3, 5_000), 14)

    tail = TIERING.overflow / 14
    longer = [stats.binom.isf(tail, 64, np.mean(lengths > end)) for end in range(15)]

    def positions(ends):
        bounds = [64, *(longer[end] for end in ends)]
        return sum(
            (more - fewer) * end
            for more, fewer, end in zip(bounds, bounds[1:], ends, strict=False)
        )

    least = min(
        positions((*ends, 14))
        for n in range(8)
        for ends in itertools.combinations(range(1, 14), n)
    )
    layout = tier_layout(lengths, 64)
    assert sum(rows * length for rows, length in layout) == least


@pytest.mark.parametrize(
    ("lengths", "layout"),
    [
        # Five of the eight rows are padding.
        ([1, 2, 3], ((5, 1), (3, 3))),
        ([4, 4, 4], ((5, 1), (3, 4))),
        ([20, 20, 20], ((5, 1), (3, 20))),
        ([2] * 1000 + [9], ((7, 2), (1, 9))),
    ],
)
def test_tiers_of_small_data(lengths, layout):
    assert tier_layout(np.array(lengths, np.int32), 8) == layout


def test_a_batch_that_does_not_fit_falls_back_on_one_tier():
    examples = Sessions.from_lists(
        [[1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6], [7, 8], [8, 9]], last_only=True
    ).examples()
    layouts = (((2, 1), (1, 5)), ((3, 5),))
    fits = make_batch(examples, np.array([2, 0, 3]), layouts)
    assert fits.layout == ((2, 1), (1, 5))
    does_not = make_batch(examples, np.array([1, 0, 3]), layouts)
    assert does_not.layout == ((3, 5),)
    assert sorted(examples_of([does_not], examples)) == [
        ((1, 2, 3, 4, 5), 6),
        ((2, 1, 3, 4, 5), 6),
        ((8,), 9),
    ]


def test_a_batch_fits_only_where_it_does_for_every_part():
    examples = Sessions.from_lists(
        [[1, 2], [3, 4, 5, 6], [4, 5, 6, 7]], last_only=True
    ).examples()
    layouts = (((1, 1), (1, 3)), ((2, 3),))
    batch = make_batch(examples, np.array([0, 1, 2]), layouts, parts=2)
    assert batch.layout == layouts[0]
    # Of the two shorter ones, only that of one part is short enough.
    batch = make_batch(examples, np.array([0, 1, 2, 1]), layouts, parts=2)
    assert batch.layout == layouts[1]
    prefixes = [prefix for prefix, *_ in rows_of(batch, examples)]
    assert sorted(prefixes) == [(1,), (3, 4, 5), (3, 4, 5), (4, 5, 6)]


def test_training_falls_back_where_long_sessions_come_together():
    # With so little room, about half of the batches do not fit the first layout.
    tiering = Tiering(overflow=20.0)
    sessions = draw_sessions(count=100)
    examples = sessions.examples()
    epoch = list(train_batches(examples, 32, seed=0, epoch=0, tiering=tiering))
    tight = tier_layout(examples.lengths, 32, tiering=tiering)
    roomier = tier_layout(examples.lengths, 32, tiering=Tiering(overflow=NEVER, most=2))
    assert {batch.layout for batch in epoch} == {tight, roomier}
    ahead = batches.one_of_each_layout(epoch)
    assert {batch.layout for batch in ahead} == {tight, roomier}
    assert len(ahead) == 2
    never = Tiering(overflow=NEVER)

    def first_alone():
        yield epoch[0]
        pytest.fail("more batches were made than the first")

    assert batches.one_of_each_layout(first_alone(), never) == epoch[:1]
    assert sorted(examples_of(epoch, examples)) == expected(sessions)


@pytest.mark.parametrize(
    ("shards", "max_length", "max_positions"),
    [(1, 0, 10_000), (1, 3, 40), (3, 0, 40), (8, 3, 10_000)],
)
def test_evaluation_covers_everything_once(shards, max_length, max_positions):
    sessions = draw_sessions()
    examples = sessions.examples(max_length)
    epoch = list(eval_batches(examples, 28, shards, max_positions, max_rows=10))
    assert sorted(examples_of(epoch, examples)) == expected(sessions, max_length)
    assert len({shapes(batch) for batch in epoch}) == 1
    parts, rows = epoch[0].start.shape
    assert rows <= 10
    assert parts % shards == 0
    # Whole parts for each shard, and no more than the batch size needs.
    assert parts * rows < 28 + rows * shards


@pytest.mark.parametrize(("batch_size", "shards"), [(1, 1), (28, 3), (10_000, 8)])
def test_an_example_is_evaluated_beside_the_same_others(batch_size, shards):
    examples = draw_sessions().examples()

    def parts(batch_size, shards):
        epoch = eval_batches(examples, batch_size, shards, 60, max_rows=10)
        joined = [
            np.concatenate([batch.length, batch.example], axis=1) for batch in epoch
        ]
        return [part for part in np.concatenate(joined).tolist() if any(part)]

    assert parts(batch_size, shards) == parts(50, 1)


@pytest.mark.parametrize(
    ("examples", "size", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)]
)
def test_steps_per_epoch(examples, size, steps):
    assert steps_per_epoch(examples, size) == steps


def test_a_tier_must_be_worth_its_cost():
    lengths = draw_sessions(count=2_000, longest=60).examples().lengths
    positions, tiers = [], []
    for cost in (0, 20, 200, 2_000, 10**6):
        layout = tier_layout(lengths, 256, tiering=Tiering(tier=cost))
        tiers.append(len(layout))
        positions.append(num_positions(layout) + cost * len(layout))
        others = (Tiering(tier=other) for other in (0, 20, 200, 2_000, 10**6))
        for other in others:
            found = tier_layout(lengths, 256, tiering=other)
            assert positions[-1] <= num_positions(found) + cost * len(found)
    assert tiers == sorted(tiers, reverse=True)
    assert tiers[0] > tiers[2] > tiers[-1] == 1


def test_a_batch_overflows_as_seldom_as_was_asked():
    """Exact: the number of long examples in a batch is hypergeometric."""
    lengths = np.minimum(np.random.default_rng(0).geometric(0.25, 20_000), 60)
    for overflow in (1e-2, 1e-9):
        layout = tier_layout(lengths, 100, tiering=Tiering(overflow=overflow))
        room, chance = 100, 0.0
        for rows, length in layout[:-1]:
            room -= rows
            long_ones = int(np.sum(lengths > length))
            chance += stats.hypergeom.sf(room, len(lengths), long_ones, 100)
        assert 0 < chance <= overflow


def test_calls_join_what_has_one_layout_and_is_not_cut():
    examples = draw_sessions().examples()
    epoch = list(train_batches(examples, 28, 1, 0))
    other = dataclasses.replace(epoch[2], layout=((28, 99),))
    several = [*epoch[:2], other, *epoch[3:8]]
    room = iter([5, 5, 2, 9])
    calls = list(batches.in_calls(several, lambda: next(room)))
    assert [len(call) for call in calls] == [2, 1, 2, 3]
    assert [batch for call in calls for batch in call] == several
    stacked = batches.stack(calls[0], 4)
    assert stacked.count == 2
    assert stacked.start.shape == (4, *epoch[0].start.shape)
    assert (stacked.start[1] == epoch[1].start).all()
