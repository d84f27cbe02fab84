"""Teach the trained target how its prompts begin: short rows, each one chat or one hole to fill.

    python -m tokenspeed.builtin.train.polish --data DIR --seconds 300

Pretraining packs its rows, so a chat is never the first thing in the context; here it always is. Reads and
writes the model folder beside this package; a few minutes of a CPU are enough.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from tokenspeed.builtin import MODEL
from tokenspeed.builtin.train import data, network
from tokenspeed.builtin.train.network import Network
from tokenspeed.builtin.train.pairs import Pair, from_docstrings, talk, tasks
from tokenspeed.builtin.train.train import read_text, write

RATE, WARM_UP, LENGTH = 3e-4, 8, 160
TALK_ROWS, TASK_ROWS, DOCSTRING_ROWS, HOLE_ROWS = 6, 3, 1, 3
KEPT = 0.5  # of the change: half of it keeps the manners and a quarter of what it costs plain code
IGNORED = -100
Row = tuple[str, str]  # what is given, what is learned


def asked(pair: Pair) -> Row:
    given, answer = data.chat(pair).split("<|im_start|>assistant\n")
    return given + "<|im_start|>assistant\n", answer


def rows(documents: list[str], rng: random.Random) -> Iterator[list[Row]]:
    small_talk, short_tasks = talk(), tasks()
    while True:
        chats = rng.sample(small_talk, TALK_ROWS) + rng.sample(short_tasks, TASK_ROWS)
        chats += [p for d in rng.sample(documents, DOCSTRING_ROWS) for p in from_docstrings(d, rng, 1)]
        holes = [rng.choice(data.holes(d, (100, 450), rng)) for d in rng.sample(documents, HOLE_ROWS)]
        yield [*map(asked, chats), *(("", text) for text in holes)]


def batch(tokenizer: Tokenizer, chosen: list[Row]) -> tuple[Tensor, Tensor]:
    """Ids and labels [rows, length]; nothing is learned from what is given, nor from padding."""
    ids = torch.zeros(len(chosen), LENGTH + 1, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, (given, learned) in enumerate(chosen):
        prompt, answer = tokenizer.encode(given).ids, tokenizer.encode(learned).ids
        whole = torch.tensor((prompt + answer)[: LENGTH + 1])
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    longest = int((labels != IGNORED).any(0).nonzero().max()) + 1
    return ids[:, : longest - 1], labels[:, 1:longest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    documents = [d for d in read_text(args.data, "train").split("\0") if "<|" not in d]
    net = Network(network.TARGET)
    before = {name: tensor.float() for name, tensor in load_file(MODEL / "model.safetensors").items()}
    net.load_state_dict(before)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    began = time.monotonic()
    for step, chosen in enumerate(rows(documents, random.Random(0))):
        progress = (time.monotonic() - began) / args.seconds
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1 - progress)
        ids, labels = batch(tokenizer, chosen)
        loss = F.cross_entropy(net(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 5 == 0:
            print(f"{progress:4.0%}  step {step:4d}  {ids.numel()} ids  loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.lerp_(before[name], 1 - KEPT)
    write(net, network.TARGET, args.out)


if __name__ == "__main__":
    main()
