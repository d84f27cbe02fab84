"""Tokens, prompts and facts, as llama.cpp's clients ask for them."""

from __future__ import annotations

from tests.api.llamacpp_asking import TEXT, posted
from tokenspeed.core.policy import SchedulerOptions


async def test_text_becomes_tokens_and_text_again(server):
    encode = server.tokenizer.encode
    text = "Größe <|im_end|> 🙂"
    plain = await posted(server, "/tokenize", {"content": text})
    assert plain["tokens"] == encode(text, add_special=False)
    around = await posted(server, "/tokenize", {"content": text, "add_special": True})
    assert around["tokens"] == encode(text, add_special=True)
    spelled = await posted(server, "/tokenize", {"content": text, "parse_special": False})
    assert spelled["tokens"] == encode(text, add_special=False, parse_special=False)
    assert (await posted(server, "/detokenize", {"tokens": plain["tokens"]})) == {"content": text}
    assert (await posted(server, "/tokenize", {"content": ""})) == {"tokens": []}
    assert (await posted(server, "/detokenize", {"tokens": []})) == {"content": ""}
    mixed = await posted(server, "/tokenize", {"content": ["fox", 7, "dog"]})
    assert mixed["tokens"] == [*encode("fox", add_special=False), 7, *encode("dog", add_special=False)]


async def test_pieces_are_texts_or_bytes_and_together_the_text(server):
    told = (await posted(server, "/tokenize", {"content": "fox 龘", "with_pieces": True}))["tokens"]
    pieces = [each["piece"] for each in told]
    data = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert data.decode() == "fox 龘"
    assert any(isinstance(piece, list) for piece in pieces)


async def test_long_texts_are_tokenised_as_well(server):
    text = "The quick brown fox. " * 4000
    answer = await posted(server, "/tokenize", {"content": text})
    assert answer["tokens"] == server.tokenizer.encode(text, add_special=False)


async def test_the_prompt_of_a_chat_is_told(server):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert await posted(server, "/apply-template", body) == {
        "prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    }
    assert '"name": "f"' in (await posted(server, "/apply-template", body | {"tools": [tool]}))["prompt"]


async def test_the_servers_properties_are_told(server):
    props = (await server.get("/props")).json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["default_generation_settings"]["params"]["temperature"] == 0.0
    assert props["model_path"] == "somewhere/tiny"
    assert "im_start" in props["chat_template"]
    assert (props["bos_token"], props["eos_token"]) == ("<s>", "</s>")
    assert props["modalities"] == {"vision": False, "audio": False}
    assert props["build_info"].startswith("tokenspeed")


async def test_slots_show_how_much_runs(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=3)) as server:
        server.gate.shut()
        call = server.call("/completion", TEXT)
        await server.until(lambda: server.engine.scheduler.running == 1)
        slots = (await server.get("/slots")).json()
        assert [slot["is_processing"] for slot in slots] == [True, False, False]
        assert {slot["n_ctx"] for slot in slots} == {512}
        assert (await server.get("/props")).json()["total_slots"] == 3
        server.gate.open()
        await call.answer()
