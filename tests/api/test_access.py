"""From where the server may be used: by which pages, under which names; and other names of the model."""

from __future__ import annotations

import pytest

from tokenspeed.api.options import KeyOptions, ServerOptions

BODY = {"prompt": "hi", "max_tokens": 1}
LOOPBACK = ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "tokens.localhost:80", "LOCALHOST"]


@pytest.mark.parametrize("host", LOOPBACK)
async def test_a_loopback_address_answers_to_its_own_names(server, host):
    assert (await server.post("/v1/completions", BODY, host=host)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "10.0.0.1", "[", "", "a b"])
async def test_a_loopback_address_does_not_answer_to_other_names(server, host):
    answer = await server.post("/v1/completions", BODY, host=host)
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    assert "allowed_hosts" in answer.error["message"]


async def test_other_names_can_be_allowed(serving):
    async with serving(options=ServerOptions(allowed_hosts=["Host.Docker.Internal"])) as server:
        assert (await server.post("/v1/completions", BODY, host="host.docker.internal:8000")).status == 200
        assert (await server.post("/v1/completions", BODY, host="other.internal")).status == 403


async def test_a_server_that_listens_everywhere_answers_to_any_name(serving):
    async with serving(options=ServerOptions(host="0.0.0.0")) as server:
        assert (await server.post("/v1/completions", BODY, host="gpu.example:8000")).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://evil.example:8000", "null", "http://["])
async def test_pages_of_other_sites_are_refused(server, origin):
    answer = await server.post("/v1/completions", BODY, origin=origin)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert server.idle()


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "vscode-webview://abc", "app://x"]
)
async def test_pages_of_this_machine_and_of_programs_are_not(server, origin):
    answer = await server.post("/v1/completions", BODY, origin=origin)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers  # that is for who asked for it


async def test_a_page_of_the_servers_own_name_is_its_own(serving):
    async with serving(options=ServerOptions(host="0.0.0.0")) as server:
        same = {"host": "gpu.example:8000", "origin": "http://gpu.example:8000"}
        assert (await server.post("/v1/completions", BODY, **same)).status == 200


async def test_configured_pages_may_send_and_read_and_browsers_are_told_so_without_a_key(serving):
    options = ServerOptions(cors_origins=["https://chat.example"])
    keys = {"page": KeyOptions(secret="secret-of-page")}
    async with serving(options=options, keys=keys) as server:
        origin = {"origin": "https://chat.example"}
        wanted = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        asked = await server.get("/v1/chat/completions", method="OPTIONS", **origin, **wanted)
        assert asked.status == 200
        assert asked.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
        refused = await server.post("/v1/completions", BODY, **origin)
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"
        answer = await server.post("/v1/completions", BODY, **origin, authorization="Bearer secret-of-page")
        assert answer.status == 200
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_any_page_may_if_all_are_configured(serving):
    async with serving(options=ServerOptions(cors_origins=["*"])) as server:
        answer = await server.post("/v1/completions", BODY, origin="https://any.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


async def test_the_model_answers_to_its_aliases_and_is_listed_under_them(serving):
    async with serving(aliases=("gpt-4o-mini", "claude/sonnet")) as server:
        listed = [card["id"] for card in (await server.get("/v1/models")).json()["data"]]
        assert listed == ["org/tiny", "gpt-4o-mini", "claude/sonnet"]
        assert (await server.get("/v1/models/claude/sonnet")).json()["id"] == "claude/sonnet"
        answer = (await server.post("/v1/completions", BODY | {"model": "gpt-4o-mini"})).json()
        assert answer["model"] == "gpt-4o-mini"
        other = await server.post("/v1/completions", BODY | {"model": "gpt-5"})
        assert (other.status, other.error["code"]) == (404, "model_not_found")


async def test_any_name_means_the_model_where_that_is_configured(serving):
    async with serving(any_name=True) as server:
        answer = (await server.post("/v1/completions", BODY | {"model": "whatever/it is"})).json()
        assert answer["model"] == "whatever/it is"
        assert len((await server.get("/v1/models")).json()["data"]) == 1


def test_nothing_is_open_to_other_sites_by_default():
    assert ServerOptions().cors_origins == ServerOptions().allowed_hosts == []
