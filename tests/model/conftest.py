"""Tiny random checkpoints, saved by transformers as it publishes them, and a way to run a decoder on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from gpu.table import REFERENCE
from tokenspeed.model.batch import Batch, Decoder
from tokenspeed.model.cpu.decoder import CpuDecoder
from tokenspeed.model.cuda.network import Bounds, Network, Shape, block_bytes
from tokenspeed.model.cuda.products import many_rows
from tokenspeed.model.cuda.staging import StepTensors
from tokenspeed.model.cuda.weights import empty, fill
from tokenspeed.model.loading import Model
from tokenspeed.model.torch_decoder import TorchDecoder

BLOCK_SIZE = 16
BLOCKS = 40

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk, and the model that wrote it."""

    folder: Path
    reference: PreTrainedModel

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """What the reference says after each of `tokens`, in one pass: float32 [tokens, vocab]."""
        with torch.inference_mode():
            return self.reference(torch.tensor([list(tokens)]), use_cache=False).logits[0]


Save = Callable[..., Saved]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> Iterator[None]:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Write a tiny random checkpoint of a family, in several files; the rest are its configuration's keys."""

    def save(family: str, **keys: Any) -> Saved:
        config_type, model_type = FAMILIES[family]
        torch.manual_seed(7)
        reference = model_type(config_type(**SMALL | keys)).eval()
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.ndim == 1:  # biases start as 0 and norms as 1, which would hide mistakes
                    parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(family)
        reference.save_pretrained(folder, max_shard_size="60KB")
        return Saved(folder, reference)

    return save


@pytest.fixture(scope="session")
def llama(save: Save) -> Saved:
    return save("llama")


class NetworkDecoder:
    """The network for GPUs as a decoder, on the CPU with the plain operations, one step after the other."""

    def __init__(self, model: Model) -> None:
        spec = model.spec
        weights = empty(spec, torch.float32, torch.device("cpu"))
        fill(weights, model.weights)
        bounds = Bounds(BLOCKS * BLOCK_SIZE, 4, BLOCKS * BLOCK_SIZE, BLOCKS * BLOCK_SIZE)
        products = many_rows(
            REFERENCE,
            tokens=bounds.tokens,
            hidden=spec.hidden_size,
            inner=spec.intermediate_size,
            eps=spec.norm_eps,
            like=weights.norm,
        )
        self.network = Network(spec, weights, REFERENCE, products, bounds, block_size=BLOCK_SIZE)
        self.block_bytes = block_bytes(spec, BLOCK_SIZE, torch.float32)

    def allocate(self, blocks: int) -> None:
        self.network.allocate(blocks)

    def warm_up(self) -> None:
        """Nothing is compiled."""

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        names = ("tokens", "positions", "slots", "row_starts", "contexts", "logit_rows")
        sent = {name: torch.from_numpy(getattr(batch, name)) for name in names}
        draws = dict.fromkeys(
            ("draw_positions", "top_k", "temperature", "top_p", "min_p", "seeds"), torch.empty(0)
        )
        step = StepTensors(**sent, **draws, sources=torch.full_like(sent["tokens"], -1))
        rows = len(batch.contexts)
        self.network.set_tables(0, torch.from_numpy(batch.block_tables))
        singles = rows if len(batch.tokens) == rows else 0
        row_of = {end - 1: row for row, end in enumerate(batch.row_starts[1:].tolist())}
        every = any(token not in row_of for token in batch.logit_rows.tolist())
        shape = Shape(len(batch.tokens), singles, rows, every=every)
        self.network.embed(step, shape, torch.zeros(1, dtype=torch.int32))
        self.network.forward(step, shape)
        wanted = step.logit_rows
        if shape.narrow:
            wanted = torch.tensor([row_of[token] for token in wanted.tolist()], dtype=torch.int32)
        return self.network.compute_logits(wanted, len(wanted), shape).clone()

    def close(self) -> None:
        """Nothing runs."""


DECODERS: dict[str, Callable[[Model], Decoder]] = {
    "reference": lambda model: TorchDecoder(model.spec, model.weights, block_size=BLOCK_SIZE),
    "network": NetworkDecoder,
    "numba": lambda model: CpuDecoder(
        model.spec, model.weights, dtype="float32", block_size=BLOCK_SIZE, threads=2
    ),
}


class Run:
    """One sequence through a decoder, its blocks scattered over the pool."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.blocks = np.random.default_rng(3).permutation(BLOCKS).astype(np.int32)
        self.length = 0
        decoder.allocate(BLOCKS)

    def feed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Compute the next tokens in one step: float32 logits [tokens, vocab] after each of them."""
        count = len(tokens)
        positions = np.arange(self.length, self.length + count, dtype=np.int32)
        self.length += count
        batch = Batch(
            tokens=np.array(tokens, dtype=np.int32),
            positions=positions,
            slots=self.blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
            row_starts=np.array([0, count], dtype=np.int32),
            contexts=np.array([self.length], dtype=np.int32),
            block_tables=self.blocks[None, : -(-self.length // BLOCK_SIZE)].copy(),
            logit_rows=np.arange(count, dtype=np.int32),
        )
        return self.decoder.forward(batch)


@pytest.fixture(scope="session")
def run_on() -> type[Run]:
    """Make a `Run` on a decoder of one's own."""
    return Run


@pytest.fixture(params=list(DECODERS))
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Model], Run]]:
    """Make a `Run` of a model on each of the decoders."""
    runs: list[Run] = []

    def make(model: Model) -> Run:
        runs.append(Run(DECODERS[request.param](model)))
        return runs[-1]

    yield make
    for made in runs:
        made.decoder.close()
