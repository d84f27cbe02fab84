"""A tiny random decoder, and a plain loop to compare the backend with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from gpu.table import REFERENCE
from tokenspeed.backend.graphs import Graph, Graphs
from tokenspeed.backend.passes import Passes
from tokenspeed.backend.stepper import DraftNetwork, Stepper
from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling
from tokenspeed.model.batch import Batch
from tokenspeed.model.cuda.network import Bounds, Network, Shape
from tokenspeed.model.cuda.products import many_rows
from tokenspeed.model.cuda.weights import empty, fill
from tokenspeed.model.sampler import sample
from tokenspeed.model.spec import ModelSpec, RopeSpec
from tokenspeed.model.torch_decoder import TorchDecoder
from tokenspeed.model.weights import LayerWeights, Weights

VOCAB = 61
BLOCK_SIZE = 4
BLOCKS = 64
MOST_DRAFTS = 5

SPEC = ModelSpec(
    family="test",
    vocab_size=VOCAB,
    hidden_size=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    norm_eps=1e-6,
    rope=RopeSpec(tuple(1e-4 ** (pair / 4) for pair in range(4))),
    windows=(None, 7),
    max_context=200,
    dtype="float32",
)


def weights_of(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=1 + random(24),
            query=random(32, 24),
            key=random(16, 24),
            value=random(16, 24),
            output=random(24, 32),
            mlp_norm=1 + random(24),
            gate=random(40, 24),
            up=random(40, 24),
            down=random(24, 40),
        )

    return Weights(random(VOCAB, 24), (layer(), layer()), 1 + random(24), 3 * random(VOCAB, 24))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tiny:
    """A decoder of a few thousand random weights, and what it says of one sequence at a time."""

    vocab = VOCAB
    block_size = BLOCK_SIZE
    blocks = BLOCKS
    spec = SPEC

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def decoder(self) -> TorchDecoder:
        return TorchDecoder(SPEC, self.weights, block_size=BLOCK_SIZE)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """After each of `tokens`, computed in a pool of their own: float32 [tokens, vocab]."""
        return self._computed(tokens)[0]

    def summed(self, tokens: Sequence[int], count: int) -> list[float]:
        """The sum of the hidden states after the final norm that follow the last `count` of `tokens`."""
        states = self._computed(tokens)[1].double()
        return states[len(tokens) - count :].sum(0).tolist()  # type: ignore[no-any-return]

    def _computed(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = -(-len(tokens) // BLOCK_SIZE)
        decoder = self.decoder()
        decoder.allocate(blocks)
        everywhere = np.arange(len(tokens), dtype=np.int32)
        batch = Batch(
            tokens=np.array(tokens, dtype=np.int32),
            positions=everywhere,
            slots=everywhere,
            row_starts=np.array([0, len(tokens)], dtype=np.int32),
            contexts=np.array([len(tokens)], dtype=np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
            logit_rows=everywhere,
        )
        return decoder.forward_states(batch, everywhere)

    def continued(self, prompt: Sequence[int], sampling: Sampling, count: int) -> tuple[int, ...]:
        """The `count` tokens that follow the prompt, one after the other."""
        tokens = list(prompt)
        for _ in range(count):
            [sampled] = sample(self.logits(tokens)[-1:], [self.draw(sampling, prompt, tokens)])
            tokens.append(sampled.token)
        return tuple(tokens[len(prompt) :])

    def draw(self, sampling: Sampling, prompt: Sequence[int], tokens: Sequence[int]) -> Draw:
        """The draw of the token that follows `tokens`, which begin with the prompt."""
        seen = (tuple(prompt), tuple(tokens[len(prompt) :])) if sampling.penalised else ((), ())
        return Draw(sampling, sampling.seed, len(tokens), *seen)


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(weights_of(seed=5))


def network_of(tiny: Tiny, bounds: Bounds) -> Network:
    """On the CPU, with the plain operations."""
    spec, weights = tiny.spec, empty(tiny.spec, torch.float32, torch.device("cpu"))
    fill(weights, tiny.weights)
    products = many_rows(
        REFERENCE,
        tokens=bounds.tokens,
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        eps=spec.norm_eps,
        like=weights.norm,
    )
    network = Network(spec, weights, REFERENCE, products, bounds, block_size=tiny.block_size)
    network.allocate(tiny.blocks)
    return network


class Replayed:
    """Graphs of every shape, which run the work that a device would have captured."""

    def __init__(self, passes: Passes) -> None:
        self._captured = Graphs(
            passes.network.bounds,
            passes.network.short_keys,
            passes.work,
            lambda tokens: None,
            device=torch.device("cpu"),
            budget_bytes=1,
        )
        for shape in self._captured.shapes:
            self._captured._graphs[shape] = Graph(shape, lambda shape=shape: self._replay(passes, shape))
        captured = self._captured
        self.decode, self.verify, self.mixed = captured.decode, captured.verify, captured.mixed
        self.replayed: list[Shape] = []

    def _replay(self, passes: Passes, shape: Shape) -> None:
        self.replayed.append(shape)
        passes.work(shape)


@pytest.fixture(params=["launched", "replayed", "drawn apart"])
def make_stepper(tiny: Tiny, request: pytest.FixtureRequest) -> Callable[..., Stepper]:
    """Make a stepper for steps of some size, with a draft model or none.

    Its steps run as they are, or padded to the shapes of graphs, which hold the draw or do not.
    """

    def make(bounds: Bounds, draft: Tiny | None = None) -> Stepper:
        drafting = None
        if draft is not None:
            drafting = DraftNetwork(network_of(draft, bounds), REFERENCE, bounds.context, MOST_DRAFTS)
        network = network_of(tiny, bounds)
        stepper = Stepper(network, REFERENCE, captures_draw=request.param != "drawn apart", draft=drafting)
        stepper.warm_up()
        guesser = stepper._guesser
        for passes in (stepper.passes, *(() if guesser is None else (guesser.passes,))):
            if request.param != "launched":
                passes.graphs = Replayed(passes)  # type: ignore[assignment]
        return stepper

    return make
