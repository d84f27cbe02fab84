"""Train the byte-level BPE tokenizer and write the tokenizer files of both model folders.

python -m tokenspeed.builtin.train.tokenizer --text DIR/train.txt
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenspeed.builtin import DRAFT, MODEL
from tokenspeed.builtin.train.pairs import talk, tasks

VOCABULARY = 12288
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD = (
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|fim_pad|>",
)
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(9))
SPECIAL = (END, IM_START, IM_END, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD, *RESERVED)  # ids 0..15

# Words with the blank or mark before them, single digits, runs of marks, line ends with the blanks before
# them, and indentation whose last blank stays with the word that follows.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools: ' ~ (tools | tojson) ~ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Unknown role: ' ~ message.role) }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- elif message.content %}
        {%- for part in message.content %}
            {%- if part.type != 'text' %}
                {{- raise_exception('Only text can be read, not ' ~ part.type) }}
            {%- endif %}
            {{- part.text }}
        {%- endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n' ~ ((call.function or call) | tojson) ~ '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    chats = [f"{question}\n{answer}" for question, answer in talk() + tasks()] * 20
    tokenizer.train_from_iterator([*text.split("\0"), *chats], trainer)
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(i): {"content": name, "special": True, "lstrip": False, "rstrip": False}
            | {"normalized": False, "single_word": False}
            for i, name in enumerate(SPECIAL)
        },
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": FIM_PAD,
        "fim_prefix_token": FIM_PREFIX,
        "fim_suffix_token": FIM_SUFFIX,
        "fim_middle_token": FIM_MIDDLE,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--every", type=int, default=5, help="train on one file of this many")
    args = parser.parse_args()
    documents = args.text.read_text().split("\0")
    tokenizer = train("\0".join(documents[:: args.every]))
    for folder in (MODEL, DRAFT):
        write(tokenizer, folder, context=8192)
    sample = "\0".join(documents[1 :: args.every * 20])
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(sample.split("\0")))
    print(f"{len(sample.encode()) / tokens:.2f} bytes a token")


if __name__ == "__main__":
    main()
