"""The only place that constructs: from a configuration to a server's parts, each handed what it needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from starlette.applications import Starlette

from tokenspeed import builtin
from tokenspeed.api.app import create_app
from tokenspeed.api.models import ServedModel
from tokenspeed.backend.cpu import CpuBackend, plan_memory
from tokenspeed.backend.prior import cpu_costs
from tokenspeed.config import Config
from tokenspeed.core.accounts import Account
from tokenspeed.core.plan import Capacity
from tokenspeed.core.request import Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.observer import Observer
from tokenspeed.engine.recorder import Recorder
from tokenspeed.engine.timeline import Timelines
from tokenspeed.errors import ModelError
from tokenspeed.generation.generator import Generator
from tokenspeed.model.checkpoint import Checkpoint, resolve
from tokenspeed.model.generation_config import GenerationDefaults
from tokenspeed.model.kernels import choose_decoder
from tokenspeed.model.loading import load
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Stage = Callable[[str], Progress]  # the name of what begins -> where its progress goes
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Server:
    """Everything that serves, not started yet: `engine.start()` in the loop, then `app` on a socket."""

    engine: Engine
    generator: Generator
    app: Starlette
    model_name: str
    recorder: Recorder | None


def build(config: Config, *, stage: Stage, say: Say, record: Path | None = None) -> Server:
    """Load the model that `config` names and put the server together around it.

    `stage` is told what takes time and gives where its progress goes; `say` gets one line for each decision
    taken here. Arrivals and plans go to the file `record`. Raises `ConfigError` or `ModelError`, one line
    each, before anything listens.
    """
    checkpoint = find_checkpoint(config, stage)
    name = config.model.name or model_name(config)
    model = load(checkpoint, max_context=config.model.max_context or None, progress=stage(f"reading {name}"))
    tokenizer = Tokenizer.load(checkpoint.folder)
    template = ChatTemplate.load(checkpoint.folder)
    threads = config.device.threads or usable_cores()
    spec = model.spec
    packing, total = stage("packing weights"), model.weights.nbytes
    prior = cpu_costs(spec, weight_bytes=total, threads=threads)
    chosen = choose_decoder(
        spec,
        model.weights,
        pin=config.kernels.decoder,
        dtype=config.model.dtype,
        block_size=config.cache.block_size,
        threads=threads,
        progress=lambda done: packing(done, total),
    )
    say(chosen.description)
    capacity = plan_memory(
        spec, chosen.decoder.block_bytes, config.cache.memory_mib * 2**20, config.cache.block_size
    )
    say(
        f"KV cache: {capacity.blocks} blocks of {capacity.block_size} tokens in "
        f"{config.cache.memory_mib} MiB, sequences up to {capacity.max_context} tokens"
    )
    stage("compiling kernels (cached for the next start)")
    defaults = model.defaults
    del model  # the packed weights are what is served; the mapped pages may go
    backend = CpuBackend(chosen.decoder, capacity, vocab_size=spec.vocab_size, threads=threads)
    scheduler = Scheduler(
        capacity,
        config.scheduler,
        prefix_cache=config.cache.prefix,
        accounts=accounts_of(config),
        prior=prior,
    )
    # uvloop's own clock counts whole milliseconds, too coarse for gaps between tokens.
    metrics, timelines = EngineMetrics(scheduler, clock=time.monotonic), Timelines()
    recorder = None if record is None else recorder_for(config, record, capacity)
    observers: list[Observer] = [metrics, timelines, *([] if recorder is None else [recorder])]
    engine = Engine(scheduler, backend, observers, clock=time.monotonic)
    generator = Generator(
        engine,
        tokenizer,
        template,
        eos_ids=defaults.eos_ids or tokenizer.eos_ids,
        defaults=default_sampling(defaults),
        limits=config.limits,
        model_max_context=spec.max_context,
        vocab_size=spec.vocab_size,
    )
    app = create_app(
        generator,
        model=ServedModel(name, checkpoint.name, generator.max_context, int(time.time())),
        options=config.server,
        registry=registry_for(metrics),
        ready=lambda: engine.ready,
        keys=config.keys,
        timeline=timelines.get,
    )
    return Server(engine, generator, app, name, recorder)


def accounts_of(config: Config) -> dict[str, Account]:
    """What each API key may use, by its name."""
    return {
        name: Account(options.share, options.max_running, options.max_waiting)
        for name, options in config.keys.items()
    }


def recorder_for(config: Config, path: Path, capacity: Capacity) -> Recorder:
    """Raises `ConfigError` where the file cannot be made, or is there already."""
    return Recorder(
        path,
        capacity=capacity,
        options=config.scheduler,
        accounts=accounts_of(config),
        prefix_cache=config.cache.prefix,
    )


def usable_cores() -> int:
    """Cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_checkpoint(config: Config, stage: Stage) -> Checkpoint:
    """The files to serve, with those that the configuration pins checked."""
    options = config.model
    path = options.path or str(builtin.MODEL)
    return resolve(
        path,
        revision=options.revision or None,
        sha256=options.sha256,
        progress=stage(f"finding {options.path or 'the built-in model'}"),
    )


def model_name(config: Config) -> str:
    """What clients call the model if the configuration does not say: the end of its path or hub id."""
    path = config.model.path
    if not path:
        return "tokenspeed-builtin"
    name = Path(path).expanduser().resolve().name if Path(path).expanduser().is_dir() else path
    if not name:
        raise ModelError(f"{path}: gives the model no name; set [model] name")
    return name


def default_sampling(defaults: GenerationDefaults) -> Sampling:
    """What a request gets that says nothing about sampling: the checkpoint's wishes, else OpenAI's."""
    fallback = Sampling()
    return Sampling(
        temperature=_either(defaults.temperature, fallback.temperature),
        top_k=int(_either(defaults.top_k, fallback.top_k)),
        top_p=_either(defaults.top_p, fallback.top_p),
        min_p=_either(defaults.min_p, fallback.min_p),
        repetition_penalty=_either(defaults.repetition_penalty, fallback.repetition_penalty),
    )


def registry_for(metrics: EngineMetrics) -> CollectorRegistry:
    """What `/metrics` shows: the engine's figures and the process's."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def _either(wished: float | None, fallback: float) -> float:
    return fallback if wished is None else wished
