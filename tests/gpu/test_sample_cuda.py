"""sample in CUDA C++ against the weights of its contract in float64, on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tokenspeed.model.randomness import uniform

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from gpu.sample.cupy_kernel import Sample
from gpu.sample.reference import chances, left

pytestmark = pytest.mark.gpu

NEAR = 2e-6  # of the sum of all weights: so near to a boundary, either side is right
VOCABS = (1, 33, 2049, 32_000, 151_936)


class Settings(NamedTuple):
    """How rows are drawn, [rows] each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor

    def of(self, rows: Tensor | slice) -> Settings:
        return Settings(*(tensor[rows].contiguous() for tensor in self))


@pytest.fixture(scope="module")
def op() -> Sample:
    return Sample(700, 151_936)


def alike(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Settings:
    return Settings(
        torch.full((rows,), temperature, device="cuda"),
        torch.full((rows,), top_k, device="cuda", dtype=torch.int32),
        torch.full((rows,), top_p, device="cuda"),
        torch.full((rows,), min_p, device="cuda"),
        torch.full((rows,), 9, device="cuda"),
        torch.arange(rows, device="cuda", dtype=torch.int32),
    )


def mixed(rows: int, vocab: int) -> Settings:
    """Each row drawn in some way of its own."""

    def one_of(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,))].cuda()

    return Settings(
        one_of(0.0, 1.0, 0.3, 2.0, 1e-40),
        one_of(0, 0, 1, 3, 50, vocab // 2, vocab - 1, vocab, vocab + 5).int(),
        one_of(1.0, 1.0, 0.95, 0.3, 1e-6, 0.0, 0.999),
        one_of(0.0, 0.0, 0.1, 1.0, 1e-6),
        torch.randint(-(2**63), 2**63 - 1, (rows,)).cuda(),
        torch.randint(2**31 - 1, (rows,)).int().cuda(),
    )


def logits_of(rows: int, vocab: int, spread: float = 3.0, padding: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab + padding, device="cuda")[:, :vocab]


def poisoned(rows: int) -> tuple[Tensor, Tensor]:
    tokens, status = torch.full((2, rows), -7, device="cuda", dtype=torch.int32)
    return tokens, status


def drawn(op: Sample, logits: Tensor, settings: Settings) -> Tensor:
    tokens, status = poisoned(len(logits))
    op(logits, *settings, tokens, status)
    assert not status.any()
    return tokens


def assert_drawn_right(logits: Tensor, settings: Settings, tokens: Tensor) -> None:
    """Each token is left by its filters, and the chance falls on it, but for `NEAR`."""
    at = tokens[:, None].long()
    scaled = logits - logits.amax(1, keepdim=True)
    scaled = scaled / settings.temperature.clamp(min=1e-30)[:, None]
    weights = scaled.double().exp()
    ids = torch.arange(logits.shape[1], device="cuda")
    own = scaled.gather(1, at)
    better = (scaled > own) | ((scaled == own) & (ids < at))
    greedy = settings.temperature == 0.0
    assert not (better.any(1) & greedy).any()

    counted = settings.top_k > 0
    assert (~counted | (better.sum(1) < settings.top_k)).all()
    off = torch.ones_like(settings.top_p)
    by_count = weights * left(scaled, settings.top_k, off, 0 * off)
    share = (by_count * better).sum(1) / by_count.sum(1)
    first = ~better.any(1)
    assert (first | (settings.top_p >= 1.0) | (share < settings.top_p.double() + NEAR)).all()
    weight = weights.gather(1, at)[:, 0]
    assert (weight >= settings.min_p.double() * (1 - NEAR)).all()

    # Tokens at the very edge of a filter may be left or not, which moves the boundaries of all others.
    fewest = weights * left(scaled, settings.top_k, settings.top_p - NEAR, settings.min_p * (1 + NEAR))
    most = weights * left(scaled, settings.top_k, settings.top_p + NEAR, settings.min_p * (1 - NEAR))
    upper = most.cumsum(1).gather(1, at)[:, 0] / fewest.sum(1)
    lower = (fewest.cumsum(1) - fewest).gather(1, at)[:, 0] / most.sum(1)
    chance = chances(settings.seeds, settings.positions)
    assert (greedy | ((lower - NEAR <= chance) & (chance <= upper + NEAR))).all()
    assert (weight > 0).all()


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_rows_of_all_kinds(op: Sample, rows: int, vocab: int, padding: int) -> None:
    for spread in (3.0, 12.0, 0.003):
        logits, settings = logits_of(rows, vocab, spread, padding), mixed(rows, vocab)
        before = logits.clone()
        tokens = drawn(op, logits, settings)
        assert torch.equal(logits, before)
        assert_drawn_right(logits, settings, tokens)
        assert torch.equal(drawn(op, logits, settings), tokens)


@pytest.mark.parametrize(("rows", "vocab"), [(700, 1000), (300, 32_000), (128, 151_936)])
def test_more_rows_than_are_drawn_from_at_once(op: Sample, rows: int, vocab: int) -> None:
    logits, settings = logits_of(rows, vocab), mixed(rows, vocab)
    tokens = drawn(op, logits, settings)
    assert_drawn_right(logits, settings, tokens)
    # A row's token is its own, whatever is beside it, and however many there are.
    order = torch.randperm(rows, device="cuda")
    assert torch.equal(drawn(op, logits[order], settings.of(order)), tokens[order])
    for row in range(0, rows, rows // 7):
        alone = slice(row, row + 1)
        assert torch.equal(drawn(op, logits[alone], settings.of(alone)), tokens[alone])


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("rows", [1, 300])
def test_greedy_takes_the_lowest_id_of_the_greatest(op: Sample, rows: int, vocab: int) -> None:
    for logits in (logits_of(rows, vocab), logits_of(rows, vocab, padding=3), logits_of(rows, vocab).round()):
        ids = torch.arange(vocab, device="cuda")
        expected = torch.where(logits == logits.amax(1, keepdim=True), ids, vocab).amin(1).int()
        assert torch.equal(drawn(op, logits, alike(rows, 0.0)), expected)


def test_zeros_of_either_sign_are_equal(op: Sample) -> None:
    logits = torch.zeros(4, 5000, device="cuda")
    logits[:, ::2] = -0.0
    assert drawn(op, logits, alike(4, 0.0)).tolist() == [0] * 4
    assert drawn(op, -logits, alike(4, top_k=1)).tolist() == [0] * 4


def test_chances_are_the_bits_of_the_cpu(op: Sample) -> None:
    settings = mixed(500, 4)
    expected = [
        uniform(*each) for each in zip(settings.seeds.tolist(), settings.positions.tolist(), strict=True)
    ]
    even = alike(500)._replace(seeds=settings.seeds, positions=settings.positions)
    tokens = drawn(op, torch.zeros(500, 65_536, device="cuda"), even)
    assert tokens.tolist() == [math.floor(chance * 65_536) for chance in expected]


def test_a_graph_draws_again_from_what_its_tensors_hold(op: Sample) -> None:
    rows, vocab = 40, 32_000
    logits, settings = logits_of(rows, vocab), mixed(rows, vocab)
    tokens, status = poisoned(rows)
    op(logits, *settings, tokens, status)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(logits, *settings, tokens, status)
    for _ in range(3):
        others = mixed(rows, vocab)  # another mix of greedy and other rows, in the same graph
        for held, other in zip(settings, others, strict=True):
            held.copy_(other)
        logits.copy_(logits_of(rows, vocab))
        tokens.fill_(-7)
        status.fill_(-7)
        graph.replay()
        assert not status.any()
        assert_drawn_right(logits, others, tokens)
        once = tokens.clone()
        assert torch.equal(drawn(op, logits, others), once)


@pytest.mark.parametrize(
    "settings", [alike(5, 0.0), alike(5), alike(5, 1.0, 20, 0.9, 0.1)], ids=["greedy", "free", "kept"]
)
@pytest.mark.parametrize("vocab", [33, 151_936])
def test_rows_that_cannot_be_sampled_are_told_alone(op: Sample, vocab: int, settings: Settings) -> None:
    logits = logits_of(5, vocab)
    expected = drawn(op, logits, settings).tolist()
    for value in (math.nan, -math.nan, math.inf):
        spoilt = logits.clone()
        spoilt[1, vocab - 1], spoilt[2, 0], spoilt[3] = value, math.inf, -math.inf
        spoilt[3, 5] = -math.inf
        tokens, status = poisoned(5)
        op(spoilt, *settings, tokens, status)
        assert status.tolist() == [0, 1, 1, 2, 0]
        assert tokens.tolist() == [expected[0], 0, 0, 0, expected[4]]
    assert drawn(op, logits, settings).tolist() == expected  # and nothing of it stays behind


def test_most_of_a_row_may_be_banned(op: Sample) -> None:
    logits = torch.full((4, 151_936), -math.inf, device="cuda")
    logits[:, 77_777], logits[:, 150_000] = 1.0, 1.0
    for settings in (alike(4), alike(4, top_k=50), alike(4, top_p=0.9), alike(4, top_k=151_935, min_p=0.5)):
        assert set(drawn(op, logits, settings).tolist()) <= {77_777, 150_000}
    assert drawn(op, logits, alike(4, top_k=1)).tolist() == [77_777] * 4
    assert drawn(op, logits, alike(4, top_p=0.5)).tolist() == [77_777] * 4
    assert drawn(op, logits, alike(4, 0.0)).tolist() == [77_777] * 4


def test_strict_filters_are_greedy(op: Sample) -> None:
    logits = logits_of(50, 32_000)
    greedy = drawn(op, logits, alike(50, 0.0))
    for settings in (alike(50, top_k=1), alike(50, top_p=1e-7), alike(50, top_p=0.0), alike(50, 1e-40)):
        assert torch.equal(drawn(op, logits, settings), greedy)
    apart = logits.double().topk(2).values.diff().abs()[:, 0] > 1e-5  # the second best weighs less than 1
    assert torch.equal(drawn(op, logits, alike(50, min_p=1.0))[apart], greedy[apart])


def test_a_filter_of_the_whole_vocabulary_changes_nothing(op: Sample) -> None:
    logits = logits_of(50, 5003)
    free = drawn(op, logits, alike(50))
    assert torch.equal(drawn(op, logits, alike(50, top_k=5003)), free)
    assert torch.equal(drawn(op, logits, alike(50, top_k=9999)), free)


def test_equal_logits_are_left_by_id(op: Sample) -> None:
    logits = torch.ones(600, 40_000, device="cuda")
    assert set(drawn(op, logits, alike(600, top_k=5)).tolist()) == set(range(5))
    assert set(drawn(op, logits, alike(600, top_p=0.0001)).tolist()) <= set(range(5))
    tokens = drawn(op, logits, alike(600, top_k=20_000, top_p=0.5))  # the cut is in the middle of a part
    assert 9000 < int(tokens.max()) < 10_000
    logits[:, 30_000] = 2.0
    tokens = drawn(op, logits, alike(600, top_k=3))
    assert set(tokens.tolist()) == {30_000, 0, 1}


@pytest.mark.parametrize(
    "settings",
    [
        alike(700),
        alike(700, 1.3),
        alike(700, top_k=7),
        alike(700, top_p=0.8),
        alike(700, min_p=0.1),
        alike(700, 1.3, 20, 0.9, 0.05),
    ],
    ids=lambda settings: "-".join(f"{float(tensor[0]):.3g}" for tensor in settings[:4]),
)
def test_draws_are_distributed_as_described(op: Sample, settings: Settings) -> None:
    vocab, calls = 60, 20
    logits = logits_of(1, vocab, 2.0)
    observed = torch.zeros(vocab, dtype=torch.int64, device="cuda")
    for call in range(calls):
        apart = settings._replace(positions=settings.positions + 700 * call)
        observed += torch.bincount(drawn(op, logits.expand(700, vocab), apart), minlength=vocab)
    one = settings.of(slice(0, 1))
    scaled = (logits - logits.max()) / one.temperature
    expected = (scaled.double().exp() * left(scaled, one.top_k, one.top_p, one.min_p))[0]
    expected *= 700 * calls / expected.sum()
    assert not observed[expected == 0].any()
    frequent = expected >= 5
    terms = (observed - expected)[frequent].square() / expected[frequent]
    assert terms.sum() < len(terms) + 5 * math.sqrt(2 * len(terms))


def refused(op: Sample, logits: Tensor, settings: Settings) -> Callable[[], None]:
    return lambda: op(logits, *settings, *poisoned(len(logits)))


def test_what_does_not_fit_is_refused_before_a_launch(op: Sample) -> None:
    logits, settings = logits_of(3, 50), alike(3)
    for call, told in (
        (refused(op, logits.half(), settings), "make them torch.float32"),
        (refused(op, logits.T.contiguous().T, settings), "rows contiguous"),
        (refused(op, logits_of(2, 151_937), alike(2)), "151936 at most"),
        (refused(op, logits_of(701, 8), alike(701)), "made for 1..700 rows"),
        (refused(op, logits, alike(2)), r"temperature is torch.float32\[2\]"),
        (refused(op, logits, settings._replace(seeds=settings.seeds.int())), "seeds is torch.int32"),
        (lambda: Sample(4, 2**18 + 1), "sums up weights of"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    op(logits[:0], *settings.of(slice(0, 0)), *poisoned(0))
