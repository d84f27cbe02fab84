// OpenAI's own client: conversations, tools, formats.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { City, MODEL, Person, collect, messages, v1 } from "./server.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: "none", maxRetries: 0 });
const short = { model: MODEL, messages, max_tokens: 8, temperature: 0 };
const weather = zodFunction({ name: "weather", parameters: City, description: "The weather of a city" });
const tooled = { ...short, max_tokens: 64, tools: [weather], parallel_tool_calls: false };

test("a whole answer has a text, a finish reason and a usage that adds up", async () => {
  const answer = await client.chat.completions.create(short);
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content.length > 0);
  assert.ok(["stop", "length"].includes(choice.finish_reason));
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  assert.ok(completion_tokens >= 1 && completion_tokens <= 8);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
});

test("a stream says the same, and its usage last, without a choice", async () => {
  const whole = await client.chat.completions.create(short);
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await collect(await client.chat.completions.create({ ...short, ...options }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  const last = chunks.at(-1);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(chunks.at(-2).choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("the stream helper gathers what the chunks said", async () => {
  const stream = client.chat.completions.stream(short);
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));
  assert.equal(await stream.finalContent(), pieces.join(""));
});

test("a stream that is aborted ends quietly", async () => {
  const stream = await client.chat.completions.create({ ...short, max_tokens: 1000, ignore_eos: true, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    break;
  }
  assert.ok(stream.controller.signal.aborted);
});

test("a required call names a tool and has arguments of its schema", async () => {
  const answer = await client.chat.completions.parse({ ...tooled, tool_choice: "required" });
  const [choice] = answer.choices;
  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.tool_calls.length, 1);
  const [call] = choice.message.tool_calls;
  assert.equal(call.function.name, "weather");
  assert.deepEqual(City.parse(call.function.parsed_arguments), call.function.parsed_arguments);
});

test("a named call is the only one, and its streamed pieces make it", async () => {
  const choice = { tool_choice: { type: "function", function: { name: "weather" } }, parallel_tool_calls: true };
  const chunks = await collect(await client.chat.completions.create({ ...tooled, ...choice, stream: true }));
  const deltas = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  const [first, ...rest] = deltas;
  assert.equal(first.type, "function");
  assert.equal(first.function.name, "weather");
  assert.ok(first.id);
  assert.ok(rest.every((delta) => delta.index === 0));
  City.parse(JSON.parse(deltas.map((delta) => delta.function.arguments).join("")));
  assert.equal(chunks.at(-1).choices[0].finish_reason, "tool_calls");
});

test("runTools calls the function and sends its result back", async () => {
  const asked = [];
  const tool = zodFunction({
    name: "weather",
    parameters: City,
    function: ({ city }) => {
      asked.push(city);
      return `sunny in ${city}`;
    },
  });
  const body = { ...tooled, tools: [tool], tool_choice: "required", stream: true };
  const runner = client.chat.completions.runTools(body, { maxChatCompletions: 2 });
  await runner.done();
  assert.equal(asked.length, 2);
  const roles = runner.messages.map((message) => message.role);
  assert.deepEqual(roles, ["user", "assistant", "tool", "assistant", "tool"]);
  assert.equal(runner.messages[2].content, `sunny in ${asked[0]}`);
});

test("an answer after a tool's result is a text", async () => {
  const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } };
  const history = [
    ...messages,
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "call_1", content: "sunny" },
  ];
  const answer = await client.chat.completions.create({ ...tooled, messages: history, tool_choice: "none", max_tokens: 8 });
  assert.equal(answer.choices[0].message.tool_calls, undefined);
  assert.equal(typeof answer.choices[0].message.content, "string");
});

test("a zod schema is parsed out of the answer", async () => {
  const response_format = zodResponseFormat(Person, "person");
  const answer = await client.chat.completions.parse({ ...short, max_tokens: 64, response_format });
  const { parsed } = answer.choices[0].message;
  assert.deepEqual(Person.parse(parsed), parsed);
});

test("a zod schema is parsed out of a stream", async () => {
  const response_format = zodResponseFormat(Person, "person");
  const stream = client.chat.completions.stream({ ...short, max_tokens: 64, response_format });
  const answer = await stream.finalChatCompletion();
  Person.parse(answer.choices[0].message.parsed);
});

test("log-probabilities come with as many alternatives as were asked for", async () => {
  const answer = await client.chat.completions.create({ ...short, logprobs: true, top_logprobs: 2 });
  const { content } = answer.choices[0].logprobs;
  assert.equal(content.length, answer.usage.completion_tokens);
  for (const token of content) assert.ok(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob);
});
