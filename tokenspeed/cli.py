"""The command line: serve, generate, check-config."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenspeed import __version__, config, serving
from tokenspeed.build import Server, build
from tokenspeed.config import Config
from tokenspeed.console import configure_logging, stages
from tokenspeed.environment import environment
from tokenspeed.errors import TokenSpeedError
from tokenspeed.generation.outputs import Delta
from tokenspeed.generation.request import GenerationRequest, SamplingFields, TextPrompt

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)

Model = Annotated[
    str | None, typer.Argument(help="A checkpoint's folder or a hub id; without it, the built-in model.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="A TOML file; see config/default.toml.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: table.key=value.")]

CURL = """curl -N http://{address}/v1/chat/completions -d '{{"model": "local", "stream": true, \
"messages": [{{"role": "user", "content": "Write a function that adds two numbers."}}]}}'"""


@app.command()
def serve(
    model: Model = None,
    config_file: ConfigFile = None,
    set_: Set = None,
    host: Annotated[str | None, typer.Option(help="Same as --set server.host=...")] = None,
    port: Annotated[int | None, typer.Option(help="Same as --set server.port=...")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Log arrivals and plans, no text, to a new file for bench simulate.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Same as --set model.weights=random; for benches.")
    ] = False,
) -> None:
    """Serve a model on an OpenAI-compatible endpoint."""
    shorthands = {
        "model.path": model,
        "model.weights": "random" if random_weights else None,
        "server.host": host,
        "server.port": port,
    }
    settings = load_config(config_file, set_, shorthands)
    bound = serving.bind(settings.server)
    server = load_model(settings, record)
    name, taken = bound.getsockname()[:2]
    address = f"[{name}]:{taken}" if ":" in name else f"{name}:{taken}"

    def announce() -> None:
        console.print(f"Serving [bold]{server.model_name}[/bold] on http://{address}/v1 . Try:\n")
        sys.stdout.write(CURL.format(address=address) + "\n")
        sys.stdout.flush()

    with asyncio.Runner(loop_factory=serving.new_loop) as runner:
        status = runner.run(serving.serve(server, bound, settings.server, announce))
    raise typer.Exit(status)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="As for serve.")] = None,
    config_file: ConfigFile = None,
    set_: Set = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="For temperatures above 0.")] = None,
    speculation: Annotated[
        str | None, typer.Option(help="Same as --set speculation.drafter=...: auto, ngram, model or off.")
    ] = None,
) -> None:
    """Continue a prompt in the terminal, as a stream; what came as accepted drafts is green."""
    settings = load_config(config_file, set_, {"model.path": model, "speculation.drafter": speculation})
    text = sys.stdin.read() if prompt == "-" else prompt
    server = load_model(settings)
    request = GenerationRequest(
        id="terminal",
        prompts=(TextPrompt(text),),
        max_tokens=max_tokens,
        sampling=SamplingFields(temperature=temperature, seed=seed),
    )
    with asyncio.Runner(loop_factory=serving.new_loop) as runner:
        runner.run(stream_to_terminal(server, request))


@app.command()
def env(
    model: Model = None,
    config_file: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Tell what would compute here: the device, versions, and the kernels chosen for a model."""
    settings = load_config(config_file, set_, {"model.path": model})
    configure_logging(console, "warning")
    for line in environment(settings):
        sys.stdout.write(line + "\n")


@app.command("check-config")
def check_config(file: Annotated[Path, typer.Argument(help="The TOML file to check.")]) -> None:
    """Say what is wrong with a TOML file, or that it is fine."""
    problems = config.check(file)
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print(f"{file}: fine", markup=False)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(__version__ + "\n")


async def stream_to_terminal(server: Server, request: GenerationRequest) -> None:
    """Write a completion to standard output as it comes."""
    server.engine.start()
    try:
        generation = await server.generator.start(request)
        async for outputs in generation:
            sys.stdout.write("".join(_shown(output) for output in outputs if isinstance(output, Delta)))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        await server.engine.stop()
    counts = server.engine.scheduler.speculation.counts
    if drafted := counts.drafted.total():
        tokens, held = generation.usage.completion, counts.accepted.total()
        console.print(f"{tokens} tokens, {held} of them drafts; {drafted} drafts were verified")


def _shown(delta: Delta) -> str:
    """In a terminal, green where it came as drafts and the token after them."""
    return typer.style(delta.text, fg="green") if delta.held and sys.stdout.isatty() else delta.text


def load_config(
    file: Path | None, overrides: list[str] | None, shorthands: Mapping[str, str | int | None]
) -> Config:
    """The file, then `--set`, then the options that are short for a `--set`."""
    short = [f"{key}={json.dumps(value)}" for key, value in shorthands.items() if value is not None]
    return config.load(file, [*(overrides or ()), *short])


def load_model(settings: Config, record: Path | None = None) -> Server:
    """Build the server, showing what takes time."""
    configure_logging(console, settings.server.log_level)
    with stages(console) as stage:
        return build(settings, stage=stage, say=logging.getLogger("tokenspeed").info, record=record)


def main() -> None:
    """Run a command; what goes wrong on purpose is one line and exit status 1."""
    try:
        app()
    except TokenSpeedError as error:
        console.print("[bold red]error:[/bold red] ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        sys.exit(1)
