"""From a checkpoint's files to a `Model`: its shape, its weights (memory-mapped) and its defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenspeed.errors import ModelError
from tokenspeed.model.checkpoint import Checkpoint, Progress
from tokenspeed.model.families import describe
from tokenspeed.model.families.common import Family
from tokenspeed.model.fields import read_json
from tokenspeed.model.generation_config import GenerationDefaults, generation_defaults
from tokenspeed.model.spec import ModelSpec
from tokenspeed.model.weights import LayerWeights, Weights

LISTED = 10  # names that an error spells out of each kind
DTYPES: Mapping[str, str] = MappingProxyType({"BF16": "bfloat16", "F16": "float16", "F32": "float32"})
# Derived buffers that older checkpoints saved along; the frequencies come from the configuration.
HARMLESS_SUFFIXES = ("rotary_emb.inv_freq",)
PAGE = 4096  # bytes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, read: everything but the decoder that computes with it."""

    spec: ModelSpec
    weights: Weights
    defaults: GenerationDefaults


def load(
    checkpoint: Checkpoint, *, max_context: int | None = None, progress: Progress | None = None
) -> Model:
    """`mapped`, and every page read once; `progress` hears of the bytes read."""
    model = mapped(checkpoint, max_context=max_context)
    read_pages(model.weights, progress)
    return model


def mapped(checkpoint: Checkpoint, *, max_context: int | None = None) -> Model:
    """A checkpoint whose tensors stay in the dtype and the memory-mapped pages they are stored in.

    `max_context` is the longest sequence to serve in tokens, None for the checkpoint's own. Raises
    `ModelError` for a family, a value, a file or a tensor that cannot be served.
    """
    outline = described(checkpoint, max_context=max_context)
    weights = read_weights(checkpoint.weights, outline.family)
    stored = str(weights.embedding.dtype).removeprefix("torch.")
    return Model(dataclasses.replace(outline.family.spec, dtype=stored), weights, outline.defaults)


@dataclass(frozen=True, slots=True)
class Outline:
    """What the small files of a checkpoint say."""

    family: Family
    defaults: GenerationDefaults


def described(checkpoint: Checkpoint, *, max_context: int | None = None) -> Outline:
    """A checkpoint without its weights. Raises `ModelError`."""
    config = read_json(checkpoint.config)
    family = describe(config, max_context)
    generation = read_json(checkpoint.generation_config) if checkpoint.generation_config else None
    return Outline(family, generation_defaults(config, generation, family.spec.vocab_size))


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Weights of that shape with random numbers, in the dtype that the configuration states.

    Products keep the size of what they are given, so that logits are of order one.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)

    def drawn(role: str, shape: Shape) -> Tensor:
        if role.endswith("norm"):
            return torch.ones(shape, dtype=dtype)
        spread: float = shape[-1] ** -0.5
        return (spread * torch.randn(shape, generator=generator)).to(dtype)

    roles = _layer_shapes(spec)
    embedding = drawn("embedding", (spec.vocab_size, spec.hidden_size))
    return Weights(
        embedding=embedding,
        layers=tuple(
            LayerWeights(**{role: drawn(role, shape) for role, shape in roles.items()})
            for _ in range(spec.layers)
        ),
        norm=drawn("norm", (spec.hidden_size,)),
        head=embedding if spec.tied_embeddings else drawn("head", embedding.shape),
    )


def read_weights(files: Iterable[Path], family: Family) -> Weights:
    """The tensors of `family` in `files`; one `ModelError` lists all that are missing, unexpected, wrong."""
    with ExitStack() as stack:
        opened = [(path, stack.enter_context(_open(path))) for path in files]
        places: dict[str, Any] = {}  # tensor name -> the open file that holds it
        for path, file in opened:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                if name in places:
                    raise ModelError(f"{path}: holds {name}, which another file of the checkpoint holds too")
                places[name] = file
        expected = expected_shapes(family)
        _check(expected, places, family, opened[0][0].parent if opened else Path())
        return _assemble({name: places[name].get_tensor(name) for name in expected}, family)


def expected_shapes(family: Family) -> dict[str, Shape]:
    """The shape of every tensor that a checkpoint of `family` must have, by the checkpoint's names."""
    spec, names = family.spec, family.names
    shapes: dict[str, Shape] = {
        names.embedding: (spec.vocab_size, spec.hidden_size),
        names.norm: (spec.hidden_size,),
    }
    if not spec.tied_embeddings:
        shapes[names.head] = (spec.vocab_size, spec.hidden_size)
    of_layer = _layer_shapes(spec)
    for layer in range(spec.layers):
        prefix = names.layer_prefix.format(layer=layer)
        shapes |= {prefix + names.layer[role]: shape for role, shape in of_layer.items()}
    return shapes


def _layer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The shape of each role that a layer of `spec` has, by its field in `LayerWeights`."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, Shape] = {
        "input_norm": (hidden,),
        "query": (queries, hidden),
        "key": (keys, hidden),
        "value": (keys, hidden),
        "output": (hidden, queries),
        "mlp_norm": (hidden,),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    if spec.qkv_bias:
        shapes |= {"query_bias": (queries,), "key_bias": (keys,), "value_bias": (keys,)}
    if spec.output_bias:
        shapes["output_bias"] = (hidden,)
    if spec.mlp_bias:
        shapes |= {"gate_bias": (inner,), "up_bias": (inner,), "down_bias": (hidden,)}
    if spec.qk_norm:
        shapes |= {"query_norm": (spec.head_dim,), "key_norm": (spec.head_dim,)}
    return shapes


def _check(expected: Mapping[str, Shape], places: Mapping[str, Any], family: Family, folder: Path) -> None:
    """Compare the headers of all files with what the family expects; nothing is read yet."""
    ignored = {family.names.head} if family.spec.tied_embeddings else set()
    missing = [name for name in expected if name not in places]
    unexpected = [
        name
        for name in places
        if name not in expected and name not in ignored and not name.endswith(HARMLESS_SUFFIXES)
    ]
    wrong = []
    for name in expected:
        if name not in places:
            continue
        header = places[name].get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if shape != expected[name]:
            wrong.append(f"{name} is {list(shape)}, not {list(expected[name])}")
        elif dtype not in DTYPES:
            wrong.append(f"{name} is stored as {dtype}, not as one of {', '.join(DTYPES)}")
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrong", wrong))
    if told := [_listed(kind, items) for kind, items in kinds if items]:
        raise ModelError(
            f"{folder}: its tensors are not those that config.json describes: {'; '.join(told)}; "
            "fetch the folder again, all files of one revision"
        )


def _listed(kind: str, items: list[str]) -> str:
    more = ", ..." if len(items) > LISTED else ""
    return f"{len(items)} {kind} ({', '.join(items[:LISTED])}{more})"


def read_pages(weights: Weights, progress: Progress | None = None) -> None:
    """Read one byte of every page, so that reading from the disk happens here, seen by `progress`, and not
    in the first steps."""
    total = weights.nbytes
    done = 0
    for tensor in weights.tensors():
        tensor.view(-1).view(torch.uint8)[::PAGE].sum()
        done += tensor.nbytes
        if progress:
            progress(done, total)


def _assemble(tensors: Mapping[str, Tensor], family: Family) -> Weights:
    spec, names = family.spec, family.names
    roles = _layer_shapes(spec)
    layers = []
    for layer in range(spec.layers):
        prefix = names.layer_prefix.format(layer=layer)
        layers.append(LayerWeights(**{role: tensors[prefix + names.layer[role]] for role in roles}))
    embedding = tensors[names.embedding]
    head = embedding if spec.tied_embeddings else tensors[names.head]
    return Weights(embedding=embedding, layers=tuple(layers), norm=tensors[names.norm], head=head)


def _open(path: Path) -> Any:
    """The opened file, a context manager. A broken one is a `ModelError` that says why."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ModelError(f"{path}: {_why_broken(path) or error}; fetch the file again") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _why_broken(path: Path) -> str:
    """What is wrong with a file that does not open, in words; empty where its header tells nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            return "is a Git LFS pointer, not the file it stands for"
        header_size = int.from_bytes(start, "little")
        if len(start) < 8:
            return f"is truncated: it has {size} bytes, not even a header"
        if header_size > size - 8:
            return f"is truncated or no safetensors file: a header of {header_size} bytes in a file of {size}"
        try:
            header = json.loads(file.read(header_size))
            wanted = (
                8
                + header_size
                + max(tensor["data_offsets"][1] for tensor in header.values() if "dtype" in tensor)
            )
        except (ValueError, LookupError, TypeError):
            return "has a broken header"
    if size < wanted:
        return f"is truncated: it has {size} bytes of the {wanted} that its header states"
    return f"has {size - wanted} bytes more than its header states" if size > wanted else ""
