"""Puts together what computes: a backend on the CPU or on a GPU, around the weights of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from gpu.paged_attention.source import most_tokens
from gpu.table import REFERENCE
from tokenspeed import builtin
from tokenspeed.backend.cpu import CpuBackend, plan_memory
from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.backend.prior import cpu_costs, gpu_costs, with_guesses
from tokenspeed.backend.stepper import DraftNetwork, Stepper, staging_bytes
from tokenspeed.config import Config
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Backend, Capacity
from tokenspeed.engine.device_metrics import DeviceFigures
from tokenspeed.errors import ConfigError, ModelError
from tokenspeed.model.checkpoint import Checkpoint, no_weights, resolve, weight_files
from tokenspeed.model.cuda.device import find_device
from tokenspeed.model.cuda.kernels import Chosen, Context, choose
from tokenspeed.model.cuda.ledger import Ledger, capacity_of, plan_ledger
from tokenspeed.model.cuda.light import read_rate
from tokenspeed.model.cuda.network import Bounds, Network, block_bytes, workspace_bytes
from tokenspeed.model.cuda.weights import PlacedWeights, empty, fill, matrix_bytes, randomise, weight_bytes
from tokenspeed.model.draft import Draft, check_draft
from tokenspeed.model.generation_config import GenerationDefaults
from tokenspeed.model.kernels import Chosen as ChosenDecoder
from tokenspeed.model.kernels import choose_decoder
from tokenspeed.model.loading import Model, described, load, mapped, random_weights
from tokenspeed.model.spec import ModelSpec

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Stage = Callable[[str], Progress]  # the name of what begins -> where its progress goes
Say = Callable[[str], None]

CPU_MEMORY_MIB = 1024  # of KV memory, where nothing is said
LEAST_LOGITS = 64
BUILT_IN = "builtin"  # names the built-in draft model, which the built-in model has unasked
# Reading a step's result, planning and launching the next took 3 to 6 ms with 256 rows beside an H200.
LEAD_SECONDS = 0.006
# Settings that only one kind of device reads.
CPU_ONLY = (("kernels", "decoder"), ("device", "threads"))
GPU_ONLY = (
    ("device", "memory_fraction"),
    ("device", "graphs_mib"),
    *(
        ("kernels", name)
        for name in (
            *("paged_attention", "decode_attention", "prefill_attention", "products", "batch_products"),
            *("gated_linear", "rms_norm", "rope_write_kv", "silu_mul", "embed", "sample", "adjust_logits"),
            *("verify_attention", "follow_drafts"),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Computing:
    """What computes, ready to serve.

    `figures` say what its steps could take at best, where that is known; `lead` is how many seconds before
    the end of a step the next one is to be planned, so that the device need not wait for it. `guess_context`:
    it has a draft model, which rows of up to so many tokens may ask for drafts; 0: it has none.
    `guesses_penalised`: also for draws that look at the tokens before them.
    """

    backend: Backend
    capacity: Capacity
    spec: ModelSpec
    defaults: GenerationDefaults
    prior: Costs
    figures: DeviceFigures | None
    lead: float
    guess_context: int
    guesses_penalised: bool


def build_computing(
    config: Config, checkpoint: Checkpoint, name: str, *, stage: Stage, say: Say
) -> Computing:
    """Load the checkpoint onto the device that `config` names. Raises `ConfigError` or `ModelError`."""
    found = find_device(config.device.name)
    say(found.told)
    if found.device.type == "cpu":
        _refuse(config, GPU_ONLY, "the CPU")
        return _on_cpu(config, checkpoint, name, stage=stage, say=say)
    _refuse(config, CPU_ONLY, "a GPU")
    torch.cuda.set_device(found.device)
    return _on_gpu(config, checkpoint, name, found.device, stage=stage, say=say)


def usable_cores() -> int:
    """Cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _on_cpu(config: Config, checkpoint: Checkpoint, name: str, *, stage: Stage, say: Say) -> Computing:
    found = _find_draft(config, checkpoint, stage)
    model = _model_of(config, checkpoint, config.model.max_context, stage(f"reading {name}"))
    spec, defaults = model.spec, model.defaults
    prior = cpu_costs(spec, weight_bytes=model.weights.nbytes, threads=_threads(config))
    chosen = _decoder_of(config, model, stage("packing weights"))
    say(chosen.description)
    del model  # the packed weights are what is served; the mapped pages may go
    draft: Draft | None = None
    if found is not None:
        draft, own = _draft_of(config, found, stage=stage, say=say)
        prior = with_guesses(prior, own)
    mib = config.cache.memory_mib or CPU_MEMORY_MIB
    capacity = plan_memory(
        spec,
        chosen.decoder.block_bytes,
        mib * 2**20,
        config.cache.block_size,
        draft_block_bytes=draft.decoder.block_bytes if draft else 0,
    )
    say(
        f"KV cache: {capacity.blocks} blocks of {capacity.block_size} tokens in "
        f"{mib} MiB, sequences up to {capacity.max_context} tokens"
    )
    stage("compiling kernels (cached for the next start)")
    backend = CpuBackend(
        chosen.decoder, capacity, vocab_size=spec.vocab_size, threads=_threads(config), draft=draft
    )
    return Computing(
        backend,
        capacity,
        spec,
        defaults,
        prior,
        None,
        lead=0.0,
        guess_context=draft.max_context if draft else 0,
        guesses_penalised=True,
    )


def _threads(config: Config) -> int:
    return config.device.threads or usable_cores()


def _model_of(config: Config, checkpoint: Checkpoint, max_context: int, progress: Progress) -> Model:
    """`max_context` 0: the checkpoint's own."""
    context = max_context or None
    if config.model.weights == "random":
        outline = described(checkpoint, max_context=context)
        spec = outline.family.spec
        return Model(spec, random_weights(spec), outline.defaults)
    return load(checkpoint, max_context=context, progress=progress)


def _decoder_of(config: Config, model: Model, packing: Progress) -> ChosenDecoder:
    total = model.weights.nbytes
    return choose_decoder(
        model.spec,
        model.weights,
        pin=config.kernels.decoder,
        dtype=config.model.dtype,
        block_size=config.cache.block_size,
        threads=_threads(config),
        progress=lambda done: packing(done, total),
    )


def _find_draft(config: Config, checkpoint: Checkpoint, stage: Stage) -> Checkpoint | None:
    """The files of the draft model that the configuration asks for, which suits the one to serve.

    Raises `ConfigError` or `ModelError`.
    """
    options = config.speculation
    if options.drafter not in ("auto", "model"):
        return None
    path = options.draft or ("" if config.model.path else BUILT_IN)
    if not path:
        if options.drafter == "model":
            raise ConfigError(
                "[speculation] drafter = 'model' needs a draft model; name its folder or hub id as draft"
            )
        return None
    stage(f"finding the draft model {path}")
    weights = no_weights if config.model.weights == "random" else weight_files
    found = resolve(str(builtin.DRAFT) if path == BUILT_IN else path, weights=weights)
    spec = described(checkpoint, max_context=config.model.max_context or None).family.spec
    check_draft(found, checkpoint, spec)
    return found


def _draft_of(config: Config, found: Checkpoint, *, stage: Stage, say: Say) -> tuple[Draft, Costs]:
    """It serves up to its own context; longer sequences go without drafts of it. With its own costs."""
    model = _model_of(config, found, 0, stage("reading the draft model"))
    chosen = _decoder_of(config, model, stage("packing the draft model's weights"))
    context = model.spec.max_context
    costs = cpu_costs(model.spec, weight_bytes=model.weights.nbytes, threads=_threads(config))
    say(f"draft model {found.name}: for sequences up to {context} tokens; {chosen.description}")
    return Draft(chosen.decoder, model.spec.vocab_size, context), costs


class _Placed(NamedTuple):
    """A model on its way to a GPU."""

    name: str
    spec: ModelSpec
    model: Model | None  # None: its weights are made up
    dtype: torch.dtype
    bounds: Bounds


def _on_gpu(
    config: Config, checkpoint: Checkpoint, name: str, device: torch.device, *, stage: Stage, say: Say
) -> Computing:
    found = _find_draft(config, checkpoint, stage)
    context = config.model.max_context or None
    placed, defaults = _placed(config, checkpoint, name, context)
    draft = None if found is None else _placed(config, found, f"the draft model {found.name}", None)[0]
    both = [placed] if draft is None else [placed, draft]
    ledger = _ledger(config, both, device)
    say(ledger.told())
    # Compiling and sending use different parts of the machine.
    with ThreadPoolExecutor(max_workers=1) as pool:
        choosing = [pool.submit(_chosen, config, each, device) for each in both]
        weights = [_sent(each, device, stage) for each in both]
        stage("compiling kernels (cached for the next start)")
        chosen = [future.result() for future in choosing]
    capacity = capacity_of(ledger, placed.spec.max_context)
    networks = [
        _network(config, each, own, one, capacity, placed.spec.vocab_size)
        for each, own, one in zip(both, weights, chosen, strict=True)
    ]
    say(chosen[0].told)
    if draft is not None:
        say(f"{draft.name}: for sequences up to {networks[1].bounds.context} tokens; {chosen[1].told}")
    for line in dict.fromkeys(line for one in chosen for line in one.warnings):
        say(line)
    spec, dtype = placed.spec, placed.dtype
    figures = _figures(spec, dtype, networks[0], ledger)
    say(f"memory reads at {figures.bytes_a_second / 1e12:.2f} TB/s; one stream is bound by {figures.told()}")
    prior = _gpu_costs(placed)
    drafting: DraftNetwork | None = None
    if draft is not None:
        prior = with_guesses(prior, _gpu_costs(draft))
        most = config.speculation.most_drafts
        drafting = DraftNetwork(networks[1], chosen[1].ops, networks[1].bounds.context, most)
    backend = CudaBackend(_stepper(config, networks[0], chosen, drafting), capacity)
    return Computing(
        backend,
        capacity,
        spec,
        defaults,
        prior,
        figures,
        lead=LEAD_SECONDS,
        guess_context=drafting.max_context if drafting else 0,
        guesses_penalised=False,  # it has no drafts on the host, to count them
    )


def _placed(
    config: Config, checkpoint: Checkpoint, name: str, context: int | None
) -> tuple[_Placed, GenerationDefaults]:
    model: Model | None = None
    if config.model.weights == "random":
        outline = described(checkpoint, max_context=context)
        spec, defaults = outline.family.spec, outline.defaults
    else:
        model = mapped(checkpoint, max_context=context)
        spec, defaults = model.spec, model.defaults
    return _Placed(name, spec, model, gpu_dtype(config.model.dtype, spec), bounds_of(config, spec)), defaults


def _chosen(config: Config, placed: _Placed, device: torch.device) -> Chosen:
    context = Context(placed.spec, placed.dtype, placed.bounds, config.cache.block_size)
    return choose(context, device, config.kernels)


def _sent(placed: _Placed, device: torch.device, stage: Stage) -> PlacedWeights:
    weights = empty(placed.spec, placed.dtype, device)
    _write(weights, placed.model, stage(f"sending {placed.name} to the GPU"))
    return weights


def _network(
    config: Config, placed: _Placed, weights: PlacedWeights, chosen: Chosen, capacity: Capacity, vocab: int
) -> Network:
    """With its KV memory. What it draws is below `vocab`."""
    spec, size = placed.spec, config.cache.block_size
    bounds = replace(placed.bounds, context=min(spec.max_context, capacity.max_context))
    drawable = vocab if spec.vocab_size > vocab else None
    network = Network(spec, weights, chosen.ops, chosen.products, bounds, block_size=size, drawable=drawable)
    network.allocate(capacity.blocks)
    return network


def _gpu_costs(placed: _Placed) -> Costs:
    size = matrix_bytes(placed.spec, placed.dtype)
    return gpu_costs(placed.spec, weight_bytes=size, value_bytes=placed.dtype.itemsize)


def _stepper(
    config: Config, network: Network, chosen: Sequence[Chosen], draft: DraftNetwork | None
) -> Stepper:
    """Ready to serve: every kind of step has run once."""
    captures = all(one.captures_decode for one in chosen)
    stepper = Stepper(
        network,
        chosen[0].ops,
        graph_bytes=config.device.graphs_mib * 2**20 if captures else 0,
        graph_tokens=network.bounds.tokens if chosen[0].captures_prefill else 0,
        captures_draw=chosen[0].ops.sample is not REFERENCE.sample,  # which takes a lot of memory
        draft=draft,
    )
    stepper.warm_up()
    return stepper


def _write(weights: PlacedWeights, model: Model | None, progress: Progress) -> None:
    if model is None:
        randomise(weights)
        return
    total = model.weights.nbytes
    fill(weights, model.weights, lambda done: progress(done, total))


def bounds_of(config: Config, spec: ModelSpec) -> Bounds:
    """The largest step that the scheduler may plan: `step_tokens` of prompts beside all rows that decode."""
    rows, few = config.scheduler.max_running, 1
    if config.speculation.drafter != "off":
        few = min(1 + config.speculation.most_drafts, most_tokens(spec.heads // spec.kv_heads))
    tokens, logits = config.scheduler.step_tokens + rows, max(rows, LEAST_LOGITS)
    return Bounds(tokens, rows, logits, spec.max_context, few)


def _ledger(config: Config, placed: Sequence[_Placed], device: torch.device) -> Ledger:
    """Of all models; each has the same blocks."""
    free, total = torch.cuda.mem_get_info(device)
    size = config.cache.block_size
    return plan_ledger(
        total=total,
        free=free,
        fraction=config.device.memory_fraction,
        weights=sum(weight_bytes(each.spec, each.dtype) for each in placed),
        workspace=sum(
            workspace_bytes(each.spec, each.bounds, size, each.dtype) + staging_bytes(each.bounds, size)
            for each in placed
        ),
        graphs=config.device.graphs_mib * 2**20,
        block=sum(block_bytes(each.spec, size, each.dtype) for each in placed),
        block_size=size,
        wanted=config.cache.memory_mib * 2**20,
    )


def _figures(spec: ModelSpec, dtype: torch.dtype, network: Network, ledger: Ledger) -> DeviceFigures:
    key = block_bytes(spec, 1, dtype)
    return DeviceFigures(read_rate(network.device), matrix_bytes(spec, dtype), key, ledger.uses)


def gpu_dtype(asked: str, spec: ModelSpec) -> torch.dtype:
    """auto is the checkpoint's own where tensor cores have it, else bfloat16."""
    if asked == "auto":
        return torch.float16 if spec.dtype == "float16" else torch.bfloat16
    if asked == "float32":
        raise ModelError("[model] dtype = 'float32' is not served on a GPU; use 'bfloat16' or 'float16'")
    dtype: torch.dtype = getattr(torch, asked)
    return dtype


def _refuse(config: Config, settings: Iterable[tuple[str, str]], device: str) -> None:
    """A setting that nothing reads on this device is a mistake."""
    for table, key in settings:
        options: Any = getattr(config, table)
        default = next(field.default for field in fields(options) if field.name == key)
        if default is not MISSING and getattr(options, key) != default:
            raise ConfigError(f"[{table}] {key} has no effect on {device}, which serves; leave it out")
