"""A whole server but for its model: all is real over the simulated device."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import tokenizers
import uvicorn
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tokenspeed.api.app import create_app
from tokenspeed.api.models import ServedModel
from tokenspeed.api.options import KeyOptions, ServerOptions
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity, Draw, StepPlan, StepResult
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Request, Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.taking import Happening
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.observer import Step
from tokenspeed.engine.timeline import Timelines
from tokenspeed.errors import RequestError
from tokenspeed.generation.embedding import Embedder, EmbeddingOptions
from tokenspeed.generation.generator import Generator
from tokenspeed.generation.request import Limits
from tokenspeed.generation.style import Style
from tokenspeed.sim.backend import HIDDEN, SimBackend, continuation
from tokenspeed.text.grammar import Grammars
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "def main(arguments):\n    return  arguments + 1\n",
    "Größe, naïve, Ærøskøbing, 你好,世界, 🙂👩‍👩‍👧",
] * 4
TEMPLATE = """
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.content == 'raise' %}{{ raise_exception('no such word') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{% endif %}"""
CONTEXT = 512
NAME = "org/tiny"


@cache
def make_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE with a BOS in front, trained on the spot."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(tokenizer.to_str().encode(), {"bos_token": "<s>", "eos_token": "</s>"})


class Noticing:
    """An observer that lets a test wait for what the engine does instead of asking again and again."""

    def __init__(self, noticed: asyncio.Event) -> None:
        self._noticed = noticed

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        self._noticed.set()

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        self._noticed.set()

    def stepped(self, step: Step) -> None:
        self._noticed.set()

    def step_failed(self, plan: StepPlan, now: float) -> None:
        self._noticed.set()

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        self._noticed.set()


class Gate:
    """A backend whose steps wait at a gate, which a test opens and shuts."""

    def __init__(self, inner: SimBackend, noticed: asyncio.Event) -> None:
        self.inner = inner
        self._noticed = noticed
        self._open = asyncio.Event()
        self._open.set()

    @property
    def capacity(self) -> Capacity:
        return self.inner.capacity

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def submit(self, plan: StepPlan) -> asyncio.Task[StepResult]:
        self._noticed.set()
        return asyncio.get_running_loop().create_task(self._step(plan))

    async def close(self) -> None:
        await self.inner.close()

    async def _step(self, plan: StepPlan) -> StepResult:
        await self._open.wait()
        return await self.inner.submit(plan)


class Script:
    """A model that says what it is told to: `texts`, one for each choice in the order in which they begin.

    A text is spelled in the tokens of its encoding, special ones included, and then the end of the text.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str] = ()) -> None:
        self.texts = list(texts)
        self._tokenizer = tokenizer
        self._choices: dict[int, tuple[int, list[int]]] = {}  # by seed: the first position, and all tokens

    def says(self, draw: Draw) -> int:
        if draw.seed not in self._choices:
            tokens = self._tokenizer.encode(self.texts.pop(0), add_special=False)
            self._choices[draw.seed] = (draw.position, tokens)
        first, tokens = self._choices[draw.seed]
        index = draw.position - first
        end = self._tokenizer.eos_id
        assert end is not None
        return tokens[index] if index < len(tokens) else end


@dataclass
class Answer:
    """What a direct call to the application gave."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must have OpenAI's four fields, figures at most beside them, and no trace
        of our code."""
        answer = self.json()
        assert answer.keys() == {"error"}
        assert answer["error"].keys() - {"n_prompt_tokens", "n_ctx"} == {"message", "type", "param", "code"}
        assert "Traceback" not in answer["error"]["message"]
        assert ".py" not in answer["error"]["message"]
        error: dict[str, Any] = answer["error"]
        return error


class Call:
    """One request driven message by message, so that the test says when its client vanishes."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        body: bytes,
        *,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        most_unread: int = 0,
    ) -> None:
        """`most_unread` messages are buffered for a client that does not read; 0 is without end."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Message] = asyncio.Queue(maxsize=most_unread)
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        await app(scope, self.incoming.get, self.outgoing.put)

    def disconnect(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def chunk(self) -> bytes:
        """The next piece of the body."""
        while (message := await self.outgoing.get())["type"] != "http.response.body":
            pass
        body: bytes = message["body"]
        return body

    async def answer_after_chunks(self) -> bytes:
        """The rest of the body, where a part was read before."""
        await self.task
        rest = b""
        while not self.outgoing.empty():
            rest += self.outgoing.get_nowait()["body"]
        return rest

    async def answer(self) -> Answer:
        """Everything, once the application is done."""
        await self.task
        start = self.outgoing.get_nowait()
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b""
        while not self.outgoing.empty():
            body += self.outgoing.get_nowait()["body"]
        return Answer(start["status"], headers, body)


@dataclass
class Server:
    """The application and what stands behind it."""

    app: ASGIApp
    engine: Engine
    gate: Gate
    noticed: asyncio.Event  # set by whatever the engine does
    generator: Generator
    tokenizer: Tokenizer
    script: Script
    failing: list[str] = field(default_factory=list)  # while it holds anything, every step fails

    def call(self, path: str, body: Any, **how: Any) -> Call:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Call(self.app, path, raw, **how)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.call(path, body, headers=headers).answer()

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return await self.call(path, b"", method=method, headers=headers).answer()

    def continuation(self, ids: list[int], count: int, sampling: Sampling | None = None) -> list[int]:
        """What the simulated model says after `ids`."""
        return continuation(tuple(ids), count, self.tokenizer.vocab_size, sampling)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the engine does."""
        async with asyncio.timeout(30.0):
            while not condition():
                self.noticed.clear()
                await self.noticed.wait()

    @property
    def unfinished(self) -> int:
        """Choices that are queued or running."""
        return self.engine.scheduler.waiting + self.engine.scheduler.running

    def idle(self) -> bool:
        """Whether nothing is queued, running or held."""
        return self.engine.held_blocks == 0 and self.unfinished == 0


@asynccontextmanager
async def serve(
    *,
    special: list[str] | None = None,
    limits: Limits | None = None,
    options: ServerOptions | None = None,
    keys: Mapping[str, KeyOptions] | None = None,
    scheduler_options: SchedulerOptions | None = None,
    defaults: Sampling | None = None,
    embeddings: EmbeddingOptions | None = None,
    tokenizer: Tokenizer | None = None,
    script: Sequence[str] | None = None,
    template: str = TEMPLATE,
    context: int = CONTEXT,
    aliases: tuple[str, ...] = (),
    any_name: bool = False,
    store: ResponseStore | None = None,
) -> AsyncIterator[Server]:
    """A running server without a socket. Where there is a `script` the model says its texts, one for each
    choice; more can be added to `Server.script.texts`."""
    tokenizer = tokenizer or make_tokenizer(tuple(special or SPECIAL + FIM))
    failing: list[str] = []
    scripted = Script(tokenizer, script or ())
    sim = SimBackend(
        Capacity(blocks=max(256, context // 4), block_size=16, max_context=context),
        vocabulary=tokenizer.vocab_size,
        costs=Costs(0.0, 0.0, 0.0, 0.0, 0.0),
        fails=lambda plan: bool(failing),
        says=None if script is None else scripted.says,
    )
    noticed = asyncio.Event()
    gate = Gate(sim, noticed)
    accounts = {
        name: Account(key.share, key.max_running, key.max_waiting) for name, key in (keys or {}).items()
    }
    scheduler = Scheduler(gate.capacity, scheduler_options or SchedulerOptions(), accounts=accounts)
    metrics, timelines = EngineMetrics(scheduler), Timelines()
    engine = Engine(scheduler, gate, [metrics, timelines, Noticing(noticed)])
    registry = CollectorRegistry()
    registry.register(metrics)
    engine.start()
    generator = Generator(
        engine,
        tokenizer,
        ChatTemplate({"default": template}),
        eos_ids=tokenizer.eos_ids,
        defaults=defaults or Sampling(temperature=0.0),
        limits=limits or Limits(max_tokens=400),
        model_max_context=context,
        vocab_size=tokenizer.vocab_size,
        style=Style.find(template, tokenizer),
        grammars=Grammars(tokenizer, vocab_size=tokenizer.vocab_size, eos_ids=sorted(tokenizer.eos_ids)),
    )
    embedder = Embedder(
        engine,
        tokenizer,
        options=embeddings or EmbeddingOptions(),
        limits=limits or Limits(),
        model_max_context=CONTEXT,
        vocab_size=tokenizer.vocab_size,
        hidden_size=HIDDEN,
    )
    app = create_app(
        generator,
        embedder,
        model=ServedModel(NAME, "somewhere/tiny", context, 1_700_000_000, aliases, any_name),
        options=options or ServerOptions(),
        registry=registry,
        ready=lambda: engine.ready,
        keys=keys or {},
        timeline=timelines.get,
        store=store,
    )
    try:
        yield Server(app, engine, gate, noticed, generator, tokenizer, scripted, failing)
    finally:
        gate.open()
        await engine.stop()


@asynccontextmanager
async def listen(app: ASGIApp) -> AsyncIterator[str]:
    """The URL of a real socket, served in this loop."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await server.startup(sockets=[sock])
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[sock])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client over a real socket."""
    async with (
        listen(server.app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made,
    ):
        yield made


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`serve`, for tests that need a server of their own."""
    return serve


@pytest.fixture(scope="session")
def listening() -> Callable[..., Any]:
    """`listen`, for tests that need a socket of their own."""
    return listen


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The tokenizer of every server here."""
    return make_tokenizer((*SPECIAL, *FIM))
