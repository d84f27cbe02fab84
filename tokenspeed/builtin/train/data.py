"""Turn documents into token streams: plain files, holes to fill and chats, freshly cut every pass."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tokenspeed.builtin.train.pairs import Pair, from_docstrings, talk, tasks

Ids = npt.NDArray[np.uint16]

FIM_SHARE = 0.42  # of the documents; the others are read left to right
PAIRS_PER_DOCUMENT = 2
HAND_WRITTEN_SHARE = 0.04  # of the items of a shard
WINDOW_CHARACTERS = (400, 7000)  # what an editor sends around its cursor
LONG_WINDOW_CHARACTERS = (4000, 30_000)
SHARD_DOCUMENTS = 96


@dataclass(frozen=True)
class Shard:
    documents: tuple[int, ...]
    seed: int
    window: tuple[int, int] | None  # None keeps the order of the files and cuts the longest windows


@dataclass(frozen=True)
class Corpus:
    documents: list[str]
    tokenizer: Tokenizer
    written_by_hand: list[Pair]


def read(text: str, tokenizer_json: str) -> Corpus:
    documents = [
        d for d in text.split("\0") if "<|im_" not in d and "<|fim_" not in d and "<|endoftext" not in d
    ]
    return Corpus(documents, Tokenizer.from_str(tokenizer_json), talk() + tasks())


def shuffled(count: int, seed: int) -> Iterator[list[Shard]]:
    """Pass after pass over all documents, without end."""
    rng = random.Random(seed)
    order = list(range(count))
    while True:
        rng.shuffle(order)
        yield [
            Shard(tuple(order[start : start + SHARD_DOCUMENTS]), rng.getrandbits(32), WINDOW_CHARACTERS)
            for start in range(0, count, SHARD_DOCUMENTS)
        ]


def in_order(count: int, seed: int) -> Iterator[list[Shard]]:
    """The same in shards of neighbouring files, for long contexts."""
    rng = random.Random(seed)
    starts = list(range(0, count, SHARD_DOCUMENTS))
    while True:
        rng.shuffle(starts)
        yield [
            Shard(tuple(range(start, min(start + SHARD_DOCUMENTS, count))), rng.getrandbits(32), None)
            for start in starts
        ]


def tokens(corpus: Corpus, shard: Shard) -> Ids:
    rng = random.Random(shard.seed)
    window = shard.window or LONG_WINDOW_CHARACTERS
    items: list[str] = []
    for index in shard.documents:
        document = corpus.documents[index]
        items += holes(document, window, rng) if rng.random() < FIM_SHARE else [document + "<|endoftext|>"]
        if rng.random() < 0.75:
            items += map(chat, from_docstrings(document, rng, PAIRS_PER_DOCUMENT))
    items += map(chat, rng.sample(corpus.written_by_hand, int(HAND_WRITTEN_SHARE * len(items))))
    if shard.window:
        rng.shuffle(items)
    encoded = corpus.tokenizer.encode_batch_fast(items)
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encoded])


def chat(pair: Pair) -> str:
    question, answer = pair
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n<|endoftext|>"


def holes(document: str, window: tuple[int, int], rng: random.Random) -> list[str]:
    """The document cut into windows, each with its middle last."""
    low, high = map(math.log, window)
    items = []
    start = 0
    while start < len(document):
        end = start + int(math.exp(rng.uniform(low, high)))
        if end < len(document):
            end = document.find("\n", end) + 1 or len(document)
        piece = document[start:end]
        first, last = _middle(piece, rng)
        prefix, middle, suffix = piece[:first], piece[first:last], piece[last:]
        items.append(f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|endoftext|>")
        start = end
    return items


def _middle(piece: str, rng: random.Random) -> tuple[int, int]:
    """Where the missing middle begins and ends: any characters, the rest of a line, or whole lines."""
    kind = rng.random()
    first = rng.randrange(len(piece))
    if kind < 0.35:
        last = first + int(math.exp(rng.uniform(0, math.log(1000))))
    elif kind < 0.65:
        last = piece.find("\n", first)
    else:
        line = piece.rfind("\n", 0, first) + 1
        body = piece[line:]
        # An editor's cursor stands behind the indentation.
        first = line + (len(body) - len(body.lstrip(" \t")) if rng.random() < 0.7 else 0)
        last = first
        for _ in range(int(math.exp(rng.uniform(0, math.log(16))))):
            last = piece.find("\n", last + 1)
            if last < 0:
                break
    last = len(piece) if last < 0 else min(last, len(piece))
    if rng.random() < 0.08:  # the cursor at the end of the file
        last = len(piece)
    return first, last


_corpus: Corpus | None = None  # a worker's own: inherited by fork instead of sent with every shard


def workers(corpus: Corpus, count: int) -> Pool:
    return multiprocessing.get_context("fork").Pool(count, _begin, (corpus,))


def _begin(corpus: Corpus) -> None:
    global _corpus
    _corpus = corpus
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread
    os.nice(10)  # the process that feeds the device goes first


def _worker_tokens(shard: Shard) -> Ids:
    assert _corpus is not None
    return tokens(_corpus, shard)


def stream(pool: Pool, passes: Iterator[list[Shard]]) -> Iterator[Ids]:
    """The shards' tokens in order; the workers begin at once and stay up to two passes ahead."""
    ahead = pool.imap(_worker_tokens, next(passes))

    def pieces(ahead: Iterator[Ids]) -> Iterator[Ids]:
        for shards in passes:
            current, ahead = ahead, pool.imap(_worker_tokens, shards)
            yield from current

    return pieces(ahead)


def batches(pieces: Iterator[Ids], rows: int, length: int) -> Iterator[Ids]:
    """Batches [rows, length + 1]; each row begins with the id that its predecessor ends with."""
    size = rows * length
    held: list[Ids] = []
    have = 0
    for piece in pieces:
        held.append(piece)
        have += len(piece)
        if have <= size:
            continue
        joined = np.concatenate(held)
        while len(joined) > size:
            index = np.arange(rows)[:, None] * length + np.arange(length + 1)
            yield joined[index]
            joined = joined[size:]
        held, have = [joined], len(joined)
