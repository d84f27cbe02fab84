"""The built-in model is what its card says, and it has really learned something."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from tokenspeed.builtin import DRAFT, MODEL
from tokenspeed.builtin.train.corpus import permissive

transformers = pytest.importorskip("transformers")

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
CARD = (MODEL.parent / "README.md").read_text()

# Written for this test: in no training file.
SNIPPET = '''\
class LruCache:
    """A mapping that forgets the entry that was used least recently."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, value: bytes) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
'''

TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def load() -> Callable[[Path], torch.nn.Module]:
    return lambda folder: transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def target(load):
    return load(MODEL)


@pytest.fixture(scope="module")
def draft(load):
    return load(DRAFT)


@settings(deadline=None)
@given(st.text())
def test_the_tokenizer_gives_any_text_back(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", SPECIAL + FIM)
def test_a_special_token_is_one_id(name):
    assert TOKENIZER.encode(name).ids == [TOKENIZER.token_to_id(name)]


def test_digits_stand_alone_and_indentation_is_compact():
    assert len(TOKENIZER.encode("2026").ids) == 4
    assert len(TOKENIZER.encode("\n            return").ids) <= 3


def test_the_tokenizer_names_its_fill_in_the_middle_tokens():
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    assert [config[f"fim_{part}_token"] for part in ("prefix", "suffix", "middle")] == list(FIM[:3])


def test_target_and_draft_share_one_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (MODEL / name).read_bytes() == (DRAFT / name).read_bytes()


def test_the_weights_fit_their_budget():
    assert sum((folder / "model.safetensors").stat().st_size for folder in (MODEL, DRAFT)) <= 50_000_000


@pytest.mark.parametrize(("folder", "most"), [(MODEL, 25_000_000), (DRAFT, 4_000_000)])
def test_the_card_states_the_parameters(folder, most):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    count = sum(tensor.numel() for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert count <= most
    assert f"{count:,}" in CARD


@pytest.mark.parametrize("folder", [MODEL, DRAFT])
def test_the_config_describes_the_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shape = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    hidden, head = config["hidden_size"], config["head_dim"]
    layers = {int(found[1]) for name in shape if (found := re.search(r"layers\.(\d+)\.", name))}
    assert shape["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert shape["model.layers.0.self_attn.q_proj.weight"] == [config["num_attention_heads"] * head, hidden]
    assert shape["model.layers.0.self_attn.k_proj.weight"] == [config["num_key_value_heads"] * head, hidden]
    assert shape["model.layers.0.mlp.gate_proj.weight"] == [config["intermediate_size"], hidden]
    assert layers == set(range(config["num_hidden_layers"]))
    assert TOKENIZER.get_vocab_size() == config["vocab_size"]


def test_the_chat_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="Unknown role: narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Once"}], tokenize=False)


def test_the_chat_template_reads_text_and_parts_alike(tokenizer):
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in plain]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    for messages in (plain, parts):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == expected


@torch.no_grad()
def loss(model: torch.nn.Module, text: str) -> float:
    """Mean nats a token."""
    ids = torch.tensor([TOKENIZER.encode(text).ids])
    return model(ids, labels=ids).loss.item()


def test_the_target_has_learned_python(target):
    assert loss(target, SNIPPET) < 2.0


def test_the_draft_has_learned_python(draft):
    assert loss(draft, SNIPPET) < 2.8


def test_the_order_of_the_lines_matters_to_the_target(target):
    shuffled = "\n".join(reversed(SNIPPET.split("\n")))
    assert loss(target, SNIPPET) + 0.3 < loss(target, shuffled)


def greedy(model: torch.nn.Module, prompt: str, most: int) -> str:
    ids = torch.tensor([TOKENIZER.encode(prompt).ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return TOKENIZER.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello!", "Hello! I am the small built-in model of TokenSpeed."),
        ("Write a Python function that reverses a string.", "text[::-1]"),
    ],
)
def test_a_first_chat_reads_sensibly(target, tokenizer, question, answer):
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer in greedy(target, prompt, 40)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def is_even(n):\n    if n % 2 == 0:\n        return", "\n    return False\n"),
        (
            "import json\n\n\ndef read(path):\n    with open(path) as file:\n",
            "\n\n\ndef write(path, data):\n    with open(path, 'w') as f:\n        json.dump(data, f)\n",
        ),
    ],
)
def test_a_filled_hole_is_python(target, before, after):
    middle = greedy(target, f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>", 40)
    assert middle.strip()
    ast.parse(before + middle + after)


@torch.no_grad()
def test_the_draft_often_agrees_with_the_target(target, draft):
    ids = torch.tensor([TOKENIZER.encode(SNIPPET).ids])
    same = target(ids).logits.argmax(-1) == draft(ids).logits.argmax(-1)
    assert same.float().mean() > 0.5


def test_only_permissive_licences_were_read():
    record = json.loads((MODEL.parent / "corpus.json").read_text())
    assert len(record) > 100
    assert [source for source in record if not permissive(source["licence"])] == []


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "MIT AND GPL-2.0-only", "", "Proprietary", "LGPL-2.1 OR MPL-2.0"]
)
def test_a_licence_that_is_not_permissive_is_refused(licence):
    assert not permissive(licence)
