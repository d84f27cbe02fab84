"""A client that vanishes gives its blocks back at once: queued, prefilling or streaming."""

from __future__ import annotations

import pytest

from tokenspeed.core.policy import SchedulerOptions

LONG = {"prompt": "The quick", "max_tokens": 400, "ignore_eos": True}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_vanishes_while_it_queues_leaves_the_queue(serving, stream):
    async with serving(scheduler_options=SchedulerOptions(max_running=1)) as server:
        server.gate.shut()
        first = server.call("/v1/completions", LONG)
        await server.until(lambda: server.engine.scheduler.running == 1)
        queued = server.call("/v1/completions", LONG | {"stream": stream})
        await server.until(lambda: server.unfinished == 2)
        queued.disconnect()
        await queued.task
        assert (server.engine.scheduler.running, server.engine.scheduler.waiting) == (1, 0)
        server.gate.open()
        assert (await first.answer()).status == 200
        assert server.idle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"n": 4}, {"prompt": ["a", "b", "c"]}])
async def test_a_client_that_vanishes_amid_its_prefill_frees_its_blocks(server, stream, more):
    server.gate.shut()
    call = server.call("/v1/completions", LONG | more | {"stream": stream})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()


@pytest.mark.parametrize("more", [{}, {"n": 4}, {"prompt": ["a", "b", "c"]}])
async def test_a_client_that_vanishes_amid_its_stream_frees_its_blocks(server, more):
    call = server.call("/v1/completions", LONG | more | {"stream": True})
    await call.chunk()
    server.gate.shut()
    call.disconnect()
    await call.task
    assert server.idle()


async def test_a_client_that_is_gone_before_its_stream_begins_frees_its_blocks(server):
    server.gate.shut()
    call = server.call("/v1/completions", LONG | {"stream": True})
    call.disconnect()
    await call.task
    assert server.idle()


async def test_a_client_that_vanishes_amid_its_body_is_not_answered(server):
    call = server.call("/v1/completions", b"")
    call.incoming.get_nowait()
    call.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    call.disconnect()
    assert (await call.answer()).status == 499


async def test_closing_a_real_stream_early_frees_its_blocks(server, client):
    stream = await client.completions.create(
        model="local", prompt="The quick", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    server.gate.shut()
    await stream.close()
    await server.until(server.idle)


async def test_a_real_client_that_gives_up_on_a_whole_answer_frees_its_blocks(server, client):
    server.gate.shut()
    with pytest.raises(Exception, match="timed out"):
        await client.completions.create(model="local", prompt="The quick", timeout=0.2)
    await server.until(server.idle)


async def test_others_notice_nothing(server):
    alone = (await server.post("/v1/completions", LONG)).json()["choices"]
    leaving = server.call("/v1/completions", LONG | {"prompt": "Somebody else", "stream": True})
    staying = server.call("/v1/completions", LONG)
    await leaving.chunk()
    leaving.disconnect()
    assert (await staying.answer()).json()["choices"] == alone
    assert server.idle()
