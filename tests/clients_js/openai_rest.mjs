// OpenAI's own client: texts, vectors, models, responses, errors.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { MODEL, Person, collect, question, v1 } from "./server.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: "none", maxRetries: 0 });
const asked = { model: MODEL, input: question, temperature: 0 };

test("a completion fills the gap in front of a suffix", async () => {
  const gap = { prompt: "def is_even(number):\n    return ", suffix: "\n\n\ndef is_odd(number):\n" };
  const answer = await client.completions.create({ model: MODEL, ...gap, max_tokens: 32, temperature: 0 });
  assert.ok(answer.choices[0].text.length > 0);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
});

test("a streamed completion says what the whole one says", async () => {
  const body = { model: MODEL, prompt: "import os\n", max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(body);
  const chunks = await collect(await client.completions.create({ ...body, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
});

test("vectors are the same as base64, which the client asks for, and as numbers", async () => {
  const input = ["def add(a, b):", "import os"];
  const packed = await client.embeddings.create({ model: MODEL, input });
  const plain = await client.embeddings.create({ model: MODEL, input, encoding_format: "float" });
  assert.equal(packed.data.length, 2);
  for (const [index, { embedding }] of packed.data.entries()) {
    assert.deepEqual([...embedding].map(Math.fround), plain.data[index].embedding.map(Math.fround));
  }
});

test("the listed model is found by its name and has a context length", async () => {
  const [model] = await collect(client.models.list());
  const found = await client.models.retrieve(model.id);
  assert.equal(found.id, model.id);
  assert.ok(found.max_model_len > 0);
});

test("an unknown model is the client's NotFoundError", async () => {
  const unknown = client.chat.completions.create({ model: "gpt-none", messages: [{ role: "user", content: "hi" }] });
  await assert.rejects(unknown, (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
});

test("a wrong value is the client's BadRequestError and names the field", async () => {
  const wrong = client.chat.completions.create({
    model: MODEL,
    messages: [{ role: "user", content: "hi" }],
    temperature: -1,
  });
  await assert.rejects(wrong, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
});

test("a response has a text and a usage that adds up", async () => {
  const response = await client.responses.create({ ...asked, max_output_tokens: 64 });
  assert.ok(response.output_text.length > 0);
  const { input_tokens, output_tokens, total_tokens } = response.usage;
  assert.equal(total_tokens, input_tokens + output_tokens);
});

test("a streamed response's deltas make its text, and it ends as a whole one", async () => {
  const events = await collect(await client.responses.create({ ...asked, max_output_tokens: 8, stream: true }));
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  const { response } = events.at(-1);
  assert.ok(["response.completed", "response.incomplete"].includes(events.at(-1).type));
  assert.equal(deltas.map((event) => event.delta).join(""), response.output[0].content[0].text);
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
});

test("a response goes on from another", async () => {
  const first = await client.responses.create({ ...asked, max_output_tokens: 16 });
  const next = await client.responses.create({ ...asked, max_output_tokens: 16, previous_response_id: first.id });
  assert.equal(next.previous_response_id, first.id);
  assert.ok(next.usage.input_tokens > first.usage.input_tokens);
});

test("a response's text is parsed by a zod schema", async () => {
  const text = { format: zodTextFormat(Person, "person") };
  const response = await client.responses.parse({ ...asked, max_output_tokens: 64, text });
  assert.deepEqual(Person.parse(response.output_parsed), response.output_parsed);
});

test("a response's call has arguments of its schema, and its result is taken back", async () => {
  const parameters = {
    type: "object",
    properties: { city: { enum: ["Paris", "Rome"] } },
    required: ["city"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", name: "weather", parameters, strict: true }];
  const body = { ...asked, tools, parallel_tool_calls: false, store: false, max_output_tokens: 64 };
  const stream = client.responses.stream({ ...body, tool_choice: "required" });
  const response = await stream.finalResponse();
  const call = response.output.find((item) => item.type === "function_call");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.arguments).city));
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const input = [{ role: "user", content: question }, call, result];
  const next = await client.responses.create({ ...body, input, tool_choice: "none" });
  assert.ok(next.output.every((item) => item.type === "message"));
});
