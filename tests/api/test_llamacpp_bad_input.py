"""A wrong request gets an error in llama.cpp's shape, and nothing else notices."""

from __future__ import annotations

import pytest

from tests.api.llamacpp_asking import INFILL, TEXT, posted

BAD_BOTH = [
    {"n_predict": "many"},
    {"n_predict": 1.5},
    {"n_cmpl": 0},
    {"n_cmpl": 99},
    {"temperature": 9},
    {"top_p": "x"},
    {"stop": [""]},
    {"stop": 3},
    {"samplers": ["magic"]},
    {"samplers": "z"},
    {"samplers": [3]},
    {"n_probs": 99},
    {"n_probs": -1},
    {"typical_p": 0.3},
    {"mirostat": 2},
    {"dry_multiplier": 0.8},
    {"repeat_penalty": 1.1, "repeat_last_n": 64},
    {"lora": [{"id": 0, "scale": 1.0}]},
    {"return_tokens": True},
    {"grammar": "root ::= ("},
    {"grammar": "root ::= other"},
    {"grammar": 'root ::= "a"', "json_schema": {"type": "object"}},
    {"json_schema": []},
    {"json_schema": "x"},
    {"json_schema": {"type": "object", "not": {}}},
    {"logit_bias": 3},
    {"logit_bias": "x"},
    {"logit_bias": [[1]]},
    {"logit_bias": [[1, "x"]]},
    {"logit_bias": [["fox", 1.0]]},
    {"logit_bias": {"1": True}},
    {"logit_bias": [[99999, 1]]},
    {"logit_bias": [[1, 101]]},
    {"response_fields": "content"},
    {"n_indent": "deep"},
    {"t_max_predict_ms": "soon"},
    {"stream": 1},
    {"model": 3},
]
BAD = [
    *(("/completion", TEXT | fields) for fields in BAD_BOTH),
    *(("/infill", INFILL | fields) for fields in BAD_BOTH),
    ("/completion", {}),
    *(
        ("/completion", {"prompt": prompt})
        for prompt in (
            [],
            ["a", "b"],
            [[1], [2]],
            {},
            3,
            [1.5],
            [True],
            [-1],
            [99999],
            [10**30, "a"],
            ["a", [1]],
        )
    ),
    ("/completion", {"prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}}),
    ("/infill", {"input_prefix": 3}),
    ("/infill", {"input_extra": [{}]}),
    ("/infill", {"input_extra": ["a"]}),
    ("/infill", {"prompt": [1]}),
    ("/tokenize", {}),
    ("/tokenize", {"content": 3}),
    ("/tokenize", {"content": [-1]}),
    ("/tokenize", {"content": ["a", 10**25]}),
    ("/detokenize", {"tokens": ["a"]}),
    ("/detokenize", {"tokens": [99999]}),
    ("/detokenize", {"tokens": [-1]}),
    ("/apply-template", {}),
    ("/apply-template", {"messages": []}),
    ("/apply-template", {"messages": [{"role": "user", "content": "raise"}]}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_what_is_wrong_is_told_in_llama_cpps_shape(server, path, body):
    answer = await server.post(path, body)
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "type"}
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert server.idle()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"[" * 9999])
@pytest.mark.parametrize("path", ["/completion", "/infill", "/tokenize", "/detokenize", "/apply-template"])
async def test_what_is_not_json_is_told(server, path, raw):
    answer = await server.post(path, raw)
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": [5] * 600}),
        ("/infill", {"input_prefix": "fox " * 900, "input_suffix": ""}),
    ],
)
async def test_a_prompt_that_is_too_long_is_told_both_numbers(server, path, body):
    answer = await server.post(path, body)
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 512)
    assert error["n_prompt_tokens"] > 512


async def test_biases_are_taken_in_every_spelling(server):
    first = server.continuation(server.tokenizer.encode("The quick", add_special=True), 1)[0]
    for biases in ([[first, False]], [[first, -100]], {str(first): -100.0}, [], {}):
        await posted(server, "/completion", TEXT | {"logit_bias": biases})


async def test_another_model_is_not_found(server):
    answer = await server.post("/completion", TEXT | {"model": "llama9"})
    assert (answer.status, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_model_without_fill_in_the_middle_says_so(serving):
    async with serving(special=["<s>", "</s>"]) as server:
        answer = await server.post("/infill", INFILL)
    assert answer.status == 400
    assert "fill in the middle" in answer.json()["error"]["message"]
