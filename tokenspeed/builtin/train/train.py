"""Train the target and its draft to a budget of seconds, and write the two model folders.

    python -m tokenspeed.builtin.train.train --data DIR --out DIR --seconds 480 --draft-seconds 100

DIR holds train.txt and heldout.txt, or the same with .xz. With --state FILE and --span 0 0.5, then
--span 0.5 1, one schedule is trained in two goes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenspeed.builtin import MODEL
from tokenspeed.builtin.train import data, network
from tokenspeed.builtin.train.network import Network, Shape

MATRIX_RATE, VECTOR_RATE = 4e-3, 3e-3
MOMENTUM, MATRIX_DECAY = 0.95, 0.1
WARM_UP, DECAY_FROM = 0.02, 0.55  # shares of the whole schedule: rise, hold, fall to nothing
LONG_FROM = 0.92  # the last share of the schedule reads whole folders in the full context
CONTEXT, LONG_CONTEXT = 2048, 8192
HELD_OUT_ROWS = 384
STARTED = time.monotonic()


@dataclass(frozen=True)
class Feed:
    """Batches [rows, length + 1] of the ordinary and of the long context."""

    tokens: int  # of a batch
    short: Iterator[Tensor]
    long: Iterator[Tensor]


class Muon:
    """Momentum whose update of every matrix is made orthogonal; matrices of one shape go in one batch."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self.groups = list(by_shape.values())
        self.momenta = [torch.stack([torch.zeros_like(p) for p in group]) for group in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM))
            # The same size of step that AdamW would take: 0.2 a parameter.
            scale = -0.2 * max(group[0].shape) ** 0.5 * rate
            weights: list[Tensor] = list(group)
            torch._foreach_mul_(weights, 1 - rate * MATRIX_DECAY)
            torch._foreach_add_(weights, list(update.to(group[0].dtype).mul_(scale)))


def orthogonal(batch: Tensor) -> Tensor:
    """The orthogonal factor of every matrix of the batch, roughly: five Newton-Schulz steps."""
    x = batch.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return cast(Tensor, x.mT if tall else x)


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""

    def __init__(self, net: nn.Module) -> None:
        self.muon = Muon([p for n, p in net.named_parameters() if p.ndim == 2 and "embed" not in n])
        vectors = [p for n, p in net.named_parameters() if p.ndim != 2 or "embed" in n]
        fused = vectors[0].is_cuda
        self.adam = torch.optim.AdamW(
            vectors, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )

    def step(self, factor: float) -> None:
        self.muon.step(MATRIX_RATE * factor)
        for group in self.adam.param_groups:
            group["lr"] = VECTOR_RATE * factor
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.muon.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])


def elapsed() -> str:
    return f"{time.monotonic() - STARTED:.0f} s"


def rate_factor(progress: float) -> float:
    fall = (1 - progress) / (1 - DECAY_FROM)
    return max(0.0, min(1.0, progress / WARM_UP + 0.01, fall))


def cross_entropy(net: Network, ids: Tensor) -> Tensor:
    logits = net(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def distillation(draft: Network, target: Network, ids: Tensor) -> Tensor:
    """Nats that the draft's distribution loses against the target's, with a little of the text's own loss."""
    ids, labels = ids[:, :-1], ids[:, 1:].flatten()
    with torch.no_grad():
        teacher = target(ids).flatten(0, 1).float().log_softmax(-1)
    student = draft(ids).flatten(0, 1).float().log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence + 0.1 * F.nll_loss(student, labels)


def fit(
    loss_of: Callable[[Tensor], Tensor],
    net: nn.Module,
    optimizers: Optimizers,
    feed: Feed,
    seconds: float,
    span: tuple[float, float],
) -> None:
    """Take steps until the seconds are over; the schedule goes from span[0] to span[1] meanwhile."""
    device = next(net.parameters()).device
    first, last = span
    compiled = torch.compile(loss_of, dynamic=False) if device.type == "cuda" else loss_of

    def backward(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = compiled(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    # Compile outside of the budget.
    contexts = [CONTEXT, LONG_CONTEXT] if last > LONG_FROM and feed.long is not feed.short else [CONTEXT]
    for context in contexts:
        backward(torch.randint(16, (feed.tokens // context, context + 1), device=device))
    net.zero_grad(set_to_none=True)
    print(f"{elapsed()} after the start: compiled", flush=True)
    began = time.monotonic()
    step, seen, shown, progress = 0, 0, began, first
    while progress < last:
        ids = next(feed.long if progress >= LONG_FROM else feed.short)
        loss = backward(ids)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizers.step(rate_factor(progress))
        net.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + ids.numel()
        if step % 10 == 0:
            value = loss.item()  # waits for the device: the clock below counts work that is done
            now = time.monotonic()
            progress = first + (last - first) * min(1.0, (now - began) / seconds)
            if now - shown > 10 or progress >= last:
                shown = now
                print(
                    f"{now - began:5.0f} s  step {step:5d}  {seen / 1e6:7.1f} M tokens  loss {value:.4f}",
                    flush=True,
                )


@torch.no_grad()
def held_out_loss(net: Network, rows: Tensor) -> float:
    """Mean nats a token over rows [n, length + 1]."""
    device = rows.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        losses = [cross_entropy(net, part).item() * len(part) for part in torch.split(rows, 16)]
    return sum(losses) / len(rows)


@torch.no_grad()
def agreement(draft: Network, target: Network, rows: Tensor) -> float:
    """Share of positions where the draft's best id is the target's."""
    device = rows.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        same = [
            (draft(r[:, :-1]).argmax(-1) == target(r[:, :-1]).argmax(-1)).float().mean()
            for r in torch.split(rows, 16)
        ]
    return torch.stack(same).mean().item()


def write(net: Network, shape: Shape, folder: Path) -> None:
    """The checkpoint folder, but for the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in net.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(network.config(shape), indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 6}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def read_text(folder: Path, name: str) -> str:
    packed = folder / f"{name}.txt.xz"
    return (
        lzma.decompress(packed.read_bytes()).decode()
        if packed.exists()
        else (folder / f"{name}.txt").read_text()
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, help="where training stands between two goes")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--draft-seconds", type=float, default=0)
    parser.add_argument("--rows", type=int, default=96, help="rows of a step, in the ordinary context")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 5))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def feed_of(corpus: data.Corpus, pool: Pool, args: argparse.Namespace, device: torch.device) -> Feed:
    count = len(corpus.documents)
    tokens = args.rows * CONTEXT
    short = data.batches(data.stream(pool, data.shuffled(count, args.seed)), args.rows, CONTEXT)
    ordered = data.stream(pool, data.in_order(count, args.seed))
    long = data.batches(ordered, tokens // LONG_CONTEXT, LONG_CONTEXT)

    def tensors(source: Iterator[data.Ids]) -> Iterator[Tensor]:
        for ids in source:
            batch = torch.from_numpy(ids.astype("int64"))
            yield batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch

    return Feed(tokens, tensors(short), tensors(long))


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = data.read(read_text(args.data, "train"), (MODEL / "tokenizer.json").read_text())
    with data.workers(corpus, args.workers) as pool:
        train(corpus, feed_of(corpus, pool, args, device), args, device)


def train(corpus: data.Corpus, feed: Feed, args: argparse.Namespace, device: torch.device) -> None:
    held_text = read_text(args.data, "heldout")
    held = corpus.tokenizer.encode(held_text.replace("\0", "<|endoftext|>")).ids
    count = min(HELD_OUT_ROWS, len(held) // (CONTEXT + 1))
    rows = torch.tensor(held[: count * (CONTEXT + 1)]).view(count, CONTEXT + 1).to(device)
    bits_per_byte = len(held) / len(held_text.encode()) / math.log(2)

    target, draft = Network(network.TARGET).to(device), Network(network.DRAFT).to(device)
    for name, net in (("target", target), ("draft", draft)):
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    optimizers, draft_optimizers = Optimizers(target), Optimizers(draft)
    standing: dict[str, Any] = {
        "target": target,
        "draft": draft,
        "optimizers": optimizers,
        "draft_optimizers": draft_optimizers,
    }
    if args.state and args.state.exists():
        state = torch.load(args.state, map_location=device)
        for name, part in standing.items():
            part.load_state_dict(state[name])
    print(f"{len(corpus.documents)} documents, {len(held)} held-out tokens, {elapsed()} to start")

    span = tuple(args.span)
    fit(lambda ids: cross_entropy(target, ids), target, optimizers, feed, args.seconds, span)
    write(target, network.TARGET, args.out / "model")
    loss = held_out_loss(target, rows)
    print(
        f"target: held-out loss {loss:.4f} nats a token, {loss * bits_per_byte:.4f} bits a byte", flush=True
    )

    if args.draft_seconds:
        target.requires_grad_(False)
        short = Feed(feed.tokens, feed.short, feed.short)
        fit(
            lambda ids: distillation(draft, target, ids),
            draft,
            draft_optimizers,
            short,
            args.draft_seconds,
            span,
        )
        write(draft, network.DRAFT, args.out / "draft")
        loss = held_out_loss(draft, rows)
        print(f"draft: held-out loss {loss:.4f} nats a token, {loss * bits_per_byte:.4f} bits a byte")
        print(f"draft: agrees with the target's best id at {agreement(draft, target, rows):.2%}", flush=True)
    if args.state:
        torch.save({name: part.state_dict() for name, part in standing.items()}, args.state)


if __name__ == "__main__":
    main()
