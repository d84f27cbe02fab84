"""The only place that constructs: from a configuration to a server's parts, each handed what it needs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from tokenspeed import builtin
from tokenspeed.api.app import create_app
from tokenspeed.api.models import ModelFacts, ServedModel
from tokenspeed.api.options import ResponsesOptions
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.build_device import Computing, Progress, Say, Stage, build_computing
from tokenspeed.config import Config
from tokenspeed.core.accounts import Account
from tokenspeed.core.plan import Backend, Capacity
from tokenspeed.core.request import Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.speculation import Speculation
from tokenspeed.engine.device_metrics import DeviceMetrics
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.observer import Observer
from tokenspeed.engine.recorder import Recorder
from tokenspeed.engine.timeline import Timelines
from tokenspeed.errors import ConfigError, ModelError
from tokenspeed.generation.embedding import Embedder
from tokenspeed.generation.generator import Generator
from tokenspeed.generation.style import Style
from tokenspeed.model.checkpoint import Checkpoint, FindWeights, no_weights, resolve, weight_files
from tokenspeed.model.generation_config import GenerationDefaults
from tokenspeed.model.spec import ModelSpec
from tokenspeed.text.grammar import Grammars
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FINDERS: Mapping[str, FindWeights] = MappingProxyType({"checkpoint": weight_files, "random": no_weights})


__all__ = ["Progress", "Server", "Stage", "build"]


@dataclass(frozen=True, slots=True)
class Server:
    """Everything that serves, not started yet: `engine.start()` in the loop, then `app` on a socket."""

    engine: Engine
    generator: Generator
    embedder: Embedder
    app: ASGIApp
    model_name: str
    recorder: Recorder | None


def build(
    config: Config,
    *,
    stage: Stage,
    say: Say,
    record: Path | None = None,
    wrap: Callable[[Backend], Backend] = lambda backend: backend,
) -> Server:
    """Load the model that `config` names and put the server together around it.

    `stage` is told what takes time and gives where its progress goes; `say` gets one line for each decision
    taken here. Arrivals and plans go to the file `record`. The engine gets what `wrap` makes of the backend.
    Raises `ConfigError` or `ModelError`, one line each, before anything listens.
    """
    checkpoint = find_checkpoint(config, stage)
    name = config.model.name or model_name(config)
    with ThreadPoolExecutor(max_workers=1) as pool:  # the tokenizer loads meanwhile
        tokenizing = pool.submit(Tokenizer.load, checkpoint.folder)
        template = ChatTemplate.load(checkpoint.folder)
        computing = build_computing(config, checkpoint, name, stage=stage, say=say)
        tokenizer = tokenizing.result()
    spec, capacity, defaults = computing.spec, computing.capacity, computing.defaults
    scheduler = scheduler_for(config, computing)
    # uvloop's own clock counts whole milliseconds, too coarse for gaps between tokens.
    metrics, timelines = EngineMetrics(scheduler, clock=time.monotonic), Timelines()
    recorder = None if record is None else recorder_for(config, record, capacity)
    device = None if computing.figures is None else DeviceMetrics(computing.figures)
    watching: list[Observer | None] = [metrics, timelines, recorder, device]
    observers = [observer for observer in watching if observer is not None]
    engine = Engine(scheduler, wrap(computing.backend), observers, clock=time.monotonic, lead=computing.lead)
    eos_ids = defaults.eos_ids or tokenizer.eos_ids
    generator = Generator(
        engine,
        tokenizer,
        template,
        eos_ids=eos_ids,
        defaults=default_sampling(defaults),
        limits=config.limits,
        model_max_context=spec.max_context,
        vocab_size=spec.vocab_size,
        style=Style.find(template.source, tokenizer, config.parsing),
        grammars=Grammars(tokenizer, vocab_size=spec.vocab_size, eos_ids=sorted(eos_ids)),
    )
    embedder = Embedder(
        engine,
        tokenizer,
        options=config.embeddings,
        limits=config.limits,
        model_max_context=spec.max_context,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
    )
    app = create_app(
        generator,
        embedder,
        model=ServedModel(
            name,
            checkpoint.name,
            generator.max_context,
            int(time.time()),
            aliases=tuple(config.model.aliases),
            any_name=config.model.any_name,
            facts=facts_of(spec, checkpoint),
        ),
        options=config.server,
        registry=registry_for(*([metrics] if device is None else [metrics, device])),
        ready=lambda: engine.ready,
        keys=config.keys,
        timeline=timelines.get,
        store=store_for(config.responses),
    )
    return Server(engine, generator, embedder, app, name, recorder)


def scheduler_for(config: Config, computing: Computing) -> Scheduler:
    return Scheduler(
        computing.capacity,
        config.scheduler,
        prefix_cache=config.cache.prefix,
        accounts=accounts_of(config),
        prior=computing.prior,
        speculation=Speculation(
            config.speculation,
            guesses=computing.guess_context > 0,
            guesses_penalised=computing.guesses_penalised,
            guess_context=computing.guess_context,
            failed=_tell_of_a_failed_drafter,
        ),
    )


def _tell_of_a_failed_drafter(error: Exception) -> None:
    logger.warning("drafts are looked up no more: %r", error, exc_info=error)


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


def store_for(options: ResponsesOptions) -> ResponseStore | None:
    """Where responses are kept. A folder that is asked for is made at once: raises `ConfigError` where it
    cannot be. The user's own is made when it is needed, if it ever is."""
    if not options.store:
        return None
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        folder = Path(options.store_path or f"{home}/tokenspeed/responses").expanduser()
        if options.store_path:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # the latter where there is no such home
        if options.store_path:
            raise ConfigError(f"[responses] store_path cannot be a folder: {error}") from error
        logger.warning("responses are not kept: %s; name a folder by [responses] store_path", error)
        return None
    return ResponseStore(
        folder, most_bytes=options.max_stored_mib * 2**20, max_age=options.max_age_hours * 3600.0
    )


def find_checkpoint(config: Config, stage: Stage) -> Checkpoint:
    """The files to serve, with those that the configuration pins checked."""
    options = config.model
    path = options.path or str(builtin.MODEL)
    return resolve(
        path,
        revision=options.revision or None,
        sha256=options.sha256,
        progress=stage(f"finding {options.path or 'the built-in model'}"),
        weights=FINDERS[options.weights],
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


def facts_of(spec: ModelSpec, checkpoint: Checkpoint) -> ModelFacts:
    """What clients show of the model."""
    size = sum(path.stat().st_size for path in checkpoint.weights)
    return ModelFacts(spec.family, spec.parameters, spec.dtype, size, spec.hidden_size, spec.layers)


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


def registry_for(*collectors: Collector) -> CollectorRegistry:
    """What `/metrics` shows: the engine's figures, the device's and the process's."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def _either(wished: float | None, fallback: float) -> float:
    return fallback if wished is None else wished
