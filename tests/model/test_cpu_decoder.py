"""The CPU decoder against a plain float64 decoder, and against itself: the same bits in any batch."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from llvmlite import binding
from torch import Tensor

from tokenspeed.model.batch import Batch
from tokenspeed.model.cpu.decoder import CpuDecoder
from tokenspeed.model.spec import ModelSpec, RopeSpec
from tokenspeed.model.weights import LayerWeights, Weights

HAS_DOT = bool(binding.get_host_cpu_features().get("avx512bf16"))
FORMATS = [("float32", "generic"), ("bfloat16", "generic")] + [("bfloat16", "avx512bf16")] * HAS_DOT
THREADS = 3  # more than this host's cores: a team must not depend on all of it running

# Root mean square error of the logits as a share of their standard deviation. bfloat16 keeps 8 bits of each
# operand, which leaves 0.7% to 1.9% with these weights; float32 leaves 1e-6.
TOLERANCE = {"float32": 5e-6, "bfloat16": 3e-2}


def rope(pairs: int, scaling: float = 1.0) -> RopeSpec:
    return RopeSpec(tuple(float(np.float32(1000.0 ** (-i / pairs))) for i in range(pairs)), scaling)


PLAIN = ModelSpec(
    family="test",
    vocab_size=128,
    hidden_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    norm_eps=1e-5,
    rope=rope(8),
    windows=(None, None),
    max_context=1024,
    dtype="float32",
    tied_embeddings=True,
)
ODD = dataclasses.replace(
    PLAIN,
    vocab_size=101,
    hidden_size=50,
    heads=3,
    kv_heads=1,
    head_dim=20,
    intermediate_size=37,
    rope=rope(5, 1.25),
    windows=(None, 7),
    tied_embeddings=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
NORMED = dataclasses.replace(PLAIN, heads=4, kv_heads=4, head_dim=80, rope=rope(40), qk_norm=True)
WINDOWED = dataclasses.replace(PLAIN, heads=8, kv_heads=1, head_dim=32, rope=rope(16), windows=(70, 33))
UNEVEN = dataclasses.replace(
    PLAIN, hidden_size=33, heads=5, kv_heads=5, head_dim=7, rope=rope(3), qkv_bias=True
)
SPECS = {"plain": PLAIN, "odd": ODD, "normed": NORMED, "windowed": WINDOWED, "uneven": UNEVEN}


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        """Values that bfloat16 holds exactly, so that every format starts from the same network."""
        fan_in = shape[-1] if len(shape) > 1 else 16
        return (torch.randn(shape, generator=generator) * fan_in**-0.5).bfloat16().float()

    def norm(size: int) -> Tensor:
        return (1 + random(size)).bfloat16().float()

    def bias(wanted: bool, size: int) -> Tensor | None:
        return random(size) if wanted else None

    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=norm(hidden),
            query=2 * random(queries, hidden),
            key=2 * random(keys, hidden),
            value=random(keys, hidden),
            output=random(hidden, queries),
            mlp_norm=norm(hidden),
            gate=random(inner, hidden),
            up=random(inner, hidden),
            down=random(hidden, inner),
            query_bias=bias(spec.qkv_bias, queries),
            key_bias=bias(spec.qkv_bias, keys),
            value_bias=bias(spec.qkv_bias, keys),
            output_bias=bias(spec.output_bias, hidden),
            gate_bias=bias(spec.mlp_bias, inner),
            up_bias=bias(spec.mlp_bias, inner),
            down_bias=bias(spec.mlp_bias, hidden),
            query_norm=norm(spec.head_dim) if spec.qk_norm else None,
            key_norm=norm(spec.head_dim) if spec.qk_norm else None,
        )
        for _ in range(spec.layers)
    )
    embedding = random(spec.vocab_size, hidden)
    head = embedding if spec.tied_embeddings else random(spec.vocab_size, hidden)
    return Weights(embedding, layers, norm(hidden), head)


def reference_logits(spec: ModelSpec, weights: Weights, tokens: list[int]) -> Tensor:
    """Every token's logits, float64 [tokens, vocab], by the plainest means."""
    return reference_states(spec, weights, tokens) @ weights.head.double().T


def reference_states(spec: ModelSpec, weights: Weights, tokens: list[int]) -> Tensor:
    """Every token's hidden state after the final norm, float64 [tokens, hidden], by the plainest means."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x @ weight.double().T + (0 if bias is None else bias.double())

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * weight.double()

    count = len(tokens)
    positions = torch.arange(count, dtype=torch.float64)
    frequencies = torch.tensor(spec.rope.inverse_frequencies, dtype=torch.float32)
    angles = (positions.float()[:, None, None] * frequencies).double()  # float32, as models are trained
    cosines, sines = angles.cos() * spec.rope.attention_scaling, angles.sin() * spec.rope.attention_scaling

    def rotate(x: Tensor) -> Tensor:
        first, second, rest = x.tensor_split([spec.rope.rotary_dim // 2, spec.rope.rotary_dim], dim=-1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], dim=-1)

    x = weights.embedding.double()[tokens]
    for layer, window in zip(weights.layers, spec.windows, strict=True):
        h = norm(x, layer.input_norm)
        q = linear(h, layer.query, layer.query_bias).view(count, spec.heads, spec.head_dim)
        k = linear(h, layer.key, layer.key_bias).view(count, spec.kv_heads, spec.head_dim)
        v = linear(h, layer.value, layer.value_bias).view(count, spec.kv_heads, spec.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = norm(q, layer.query_norm), norm(k, layer.key_norm)
        q, k = rotate(q), rotate(k)
        group = spec.heads // spec.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * spec.head_dim**-0.5
        distance = positions[:, None] - positions
        hidden = (distance < 0) | (distance >= (window or count))
        attended = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        x = x + linear(attended.reshape(count, -1), layer.output, layer.output_bias)
        h = norm(x, layer.mlp_norm)
        gate, up = linear(h, layer.gate, layer.gate_bias), linear(h, layer.up, layer.up_bias)
        x = x + linear(gate / (1 + (-gate).exp()) * up, layer.down, layer.down_bias)
    return norm(x, weights.norm)


@dataclass
class Text:
    """A sequence with its tokens all known, computed piece by piece."""

    tokens: list[int]
    blocks: list[int]
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


class Host:
    """A decoder over a poisoned pool, and sequences whose blocks lie anywhere in it."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, form: tuple[str, str], block_size: int = 16
    ) -> None:
        self.spec, self.block_size = spec, block_size
        self.decoder = CpuDecoder(
            spec,
            weights,
            dtype=form[0],  # type: ignore[arg-type]
            instructions=form[1],  # type: ignore[arg-type]
            block_size=block_size,
            threads=THREADS,
        )
        self.free = np.random.default_rng(1).permutation(1 + 1024 // block_size * 4).tolist()
        self.decoder.allocate(len(self.free))
        pool = self.decoder._pool
        assert pool is not None
        pool._bytes[:] = 0xFF  # NaN in both formats

    def text(self, tokens: list[int]) -> Text:
        needed = -(-len(tokens) // self.block_size)
        taken, self.free = self.free[:needed], self.free[needed:]
        return Text(tokens, taken)

    def step(self, pieces: list[tuple[Text, int]]) -> None:
        """Compute the next tokens of some texts together, and keep all their logits and hidden states."""
        parts = [np.arange(text.computed, text.computed + count, dtype=np.int32) for text, count in pieces]
        width = max(len(text.blocks) for text, _ in pieces)
        tables = np.zeros((len(pieces), width), np.int32)
        for row, (text, _) in enumerate(pieces):
            tables[row, : len(text.blocks)] = text.blocks
        slots = [
            np.array(text.blocks, np.int32)[p // self.block_size] * self.block_size + p % self.block_size
            for (text, _), p in zip(pieces, parts, strict=True)
        ]
        starts = np.cumsum([0, *(len(p) for p in parts)]).astype(np.int32)
        batch = Batch(
            tokens=np.concatenate(
                [np.array(t.tokens, np.int32)[p] for (t, _), p in zip(pieces, parts, strict=True)]
            ),
            positions=np.concatenate(parts),
            slots=np.concatenate(slots).astype(np.int32),
            row_starts=starts,
            contexts=np.array([p[-1] + 1 for p in parts], np.int32),
            block_tables=tables,
            logit_rows=np.arange(starts[-1], dtype=np.int32),
        )
        logits, states = self.decoder.forward_states(batch, batch.logit_rows)
        for (text, count), first in zip(pieces, starts.tolist(), strict=False):
            text.logits.append(logits[first : first + count].clone())
            text.states.append(states[first : first + count].clone())
            text.computed += count


@pytest.fixture(params=FORMATS, ids=lambda form: "-".join(form))
def form(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make_host(form: tuple[str, str]) -> Iterator[object]:
    hosts: list[Host] = []

    def make(spec: ModelSpec, weights: Weights | None = None, block_size: int = 16) -> Host:
        hosts.append(Host(spec, weights or random_weights(spec), form, block_size))
        return hosts[-1]

    yield make
    for host in hosts:
        host.decoder.close()


def random_tokens(spec: ModelSpec, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("block_size", [16, 32])
def test_logits_are_those_of_a_plain_decoder(make_host, form, name, block_size):
    spec = SPECS[name]
    weights = random_weights(spec)
    host = make_host(spec, weights, block_size)
    text = host.text(random_tokens(spec, 201))
    host.step([(text, 150)])
    for count in (1, 1, 30, 1, 18):
        host.step([(text, count)])
    wanted = reference_logits(spec, weights, text.tokens)
    error = (torch.cat(text.logits).double() - wanted).square().mean(-1).sqrt() / wanted.std()
    assert error.mean() < TOLERANCE[form[0]]
    states = reference_states(spec, weights, text.tokens)
    error = (torch.cat(text.states).double() - states).square().mean(-1).sqrt() / states.std()
    assert error.mean() < TOLERANCE[form[0]]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_gets_the_same_bits_in_any_company_and_any_chunks(make_host, name, seed):
    spec = SPECS[name]
    chance = np.random.default_rng(seed)
    lengths = [1, 2, 17, 64, 65, 128, 131, 200]
    prompts = [random_tokens(spec, length, length) for length in lengths]
    host = make_host(spec, None, 16 * int(chance.integers(1, 4)))
    alone = [host.text(prompt) for prompt in prompts]
    for text in alone:
        host.step([(text, len(text.tokens))])
    mixed = [host.text(prompt) for prompt in prompts]
    while pending := [text for text in mixed if text.computed < len(text.tokens)]:
        some = [pending[i] for i in chance.permutation(len(pending))[: chance.integers(1, 7)]]
        most = int(chance.choice([1, 2, 9, 50]))
        host.step([(t, int(min(chance.integers(1, most + 1), len(t.tokens) - t.computed))) for t in some])
    for one, other in zip(alone, mixed, strict=True):
        assert torch.equal(torch.cat(one.logits), torch.cat(other.logits))
        assert torch.equal(torch.cat(one.states), torch.cat(other.states))


def test_a_batch_larger_than_a_pass_is_the_same_as_its_parts(make_host):
    host = make_host(PLAIN)
    tokens = random_tokens(PLAIN, 1000)
    whole, parts, other = host.text(tokens), host.text(tokens), host.text(tokens[:300])
    host.step([(other, 300), (whole, 1000)])
    for count in (400, 600):
        host.step([(parts, count)])
    assert torch.equal(torch.cat(whole.logits), torch.cat(parts.logits))
    assert torch.equal(torch.cat(whole.states), torch.cat(parts.states))
    assert torch.equal(torch.cat(whole.logits)[:300], torch.cat(other.logits))


def test_a_row_that_is_not_finite_spoils_no_other_row(make_host):
    weights = random_weights(PLAIN)
    weights.embedding[7] = torch.nan
    host = make_host(PLAIN, dataclasses.replace(weights, head=weights.embedding.nan_to_num()))
    healthy, sick = host.text([1, 2, 3] * 20), host.text([7] * 33)
    host.step([(sick, 33), (healthy, 59)])
    host.step([(healthy, 1)])
    assert sick.logits[0].isnan().all()
    assert torch.cat(healthy.logits).isfinite().all()
    host.free = sick.blocks + host.free  # a block with stale NaN is given to another sequence
    heir = host.text(healthy.tokens)
    host.step([(heir, 47)])
    for _ in range(13):
        host.step([(heir, 1)])
    assert torch.equal(torch.cat(heir.logits), torch.cat(healthy.logits))


def test_only_the_wanted_logits_come_in_the_order_they_were_asked_for(make_host):
    host = make_host(PLAIN)
    text = host.text(random_tokens(PLAIN, 20))
    host.step([(text, 20)])
    batch = Batch(
        tokens=np.array(text.tokens, np.int32),
        positions=np.arange(20, dtype=np.int32),
        slots=np.array([text.blocks[i // 16] * 16 + i % 16 for i in range(20)], np.int32),
        row_starts=np.array([0, 20], np.int32),
        contexts=np.array([20], np.int32),
        block_tables=np.array([text.blocks], np.int32),
        logit_rows=np.array([19, 3], np.int32),
    )
    logits = host.decoder.forward(batch)
    assert logits.shape == (2, PLAIN.vocab_size)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, text.logits[0][[19, 3]])
    often = dataclasses.replace(batch, logit_rows=np.array([19, 3] * 300, np.int32))
    assert torch.equal(host.decoder.forward(often), logits.repeat(300, 1))
    logits_again, states = host.decoder.forward_states(batch, np.array([7, 0, 19], np.int32))
    assert torch.equal(logits_again, logits)
    assert states.dtype == torch.float32
    assert torch.equal(states, text.states[0][[7, 0, 19]])


def test_weights_may_be_stored_in_any_type(make_host):
    weights = random_weights(PLAIN)

    def stored(kind: torch.dtype) -> Weights:
        layers = tuple(
            LayerWeights(*(t if t is None else t.to(kind) for t in dataclasses.astuple(layer)))
            for layer in weights.layers
        )
        embedding = weights.embedding.to(kind)
        return Weights(embedding, layers, weights.norm.to(kind), embedding)

    results = []
    for kind in (torch.float32, torch.bfloat16):
        host = make_host(PLAIN, stored(kind))
        text = host.text(random_tokens(PLAIN, 40))
        host.step([(text, 40)])
        results.append(text.logits[0])
    assert torch.equal(results[0], results[1])


def test_closing_ends_the_threads_and_may_be_repeated(make_host):
    before = threading.active_count()
    host = make_host(PLAIN)
    host.decoder.warm_up()
    assert threading.active_count() == before + THREADS - 1
    host.decoder.close()
    host.decoder.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        host.decoder.warm_up()


def test_a_decoder_that_never_ran_closes():
    host = Host(PLAIN, random_weights(PLAIN), ("float32", "generic"))
    host.decoder.close()


def test_a_block_size_that_the_tiles_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        CpuDecoder(PLAIN, random_weights(PLAIN), dtype="float32", block_size=24, threads=1)


def test_block_bytes_are_what_keys_and_values_of_a_block_take():
    host = Host(PLAIN, random_weights(PLAIN), ("float32", "generic"))
    assert host.decoder.block_bytes == 16 * PLAIN.layers * 2 * PLAIN.kv_heads * PLAIN.head_dim * 4
    host.decoder.close()
