"""The scripted model says what it is told to, so that tests of protocols can be exact."""

from __future__ import annotations


async def test_a_scripted_model_says_its_texts_one_for_each_choice(serving):
    async with serving(script=["Größe, 你好 🙂", "two"]) as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "n": 2}
        answer = (await server.post("/v1/chat/completions", body)).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["Größe, 你好 🙂", "two"]
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
