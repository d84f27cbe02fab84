// The AI SDK's usual loop through each of its providers: chat, responses, messages.
import assert from "node:assert/strict";
import test from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { City, MODEL, Person, collect, messages, question, v1 } from "./server.mjs";

const settings = { baseURL: v1, apiKey: "none" };
const compatible = createOpenAICompatible({
  ...settings,
  name: "tokenspeed",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const models = {
  chat: compatible(MODEL),
  responses: createOpenAI(settings).responses(MODEL),
  messages: createAnthropic(settings)(MODEL),
};
const unknown = {
  chat: compatible("gpt-none"),
  responses: createOpenAI(settings).responses("gpt-none"),
  messages: createAnthropic(settings)("gpt-none"),
};
const oneCall = {
  tokenspeed: { parallel_tool_calls: false },
  openai: { parallelToolCalls: false },
  anthropic: { disableParallelToolUse: true },
};
const weather = tool({
  description: "The weather of a city",
  inputSchema: City,
  execute: async ({ city }) => `sunny in ${city}`,
});

for (const [name, model] of Object.entries(models)) {
  const common = { model, temperature: 0, maxRetries: 0, providerOptions: oneCall };

  test(`${name}: a text has a finish reason and a usage`, async () => {
    const answer = await generateText({ ...common, prompt: question, maxOutputTokens: 16 });
    assert.ok(answer.text.length > 0);
    assert.ok(["stop", "length"].includes(answer.finishReason));
    assert.ok(answer.usage.inputTokens > 0);
    assert.ok(answer.usage.outputTokens > 0 && answer.usage.outputTokens <= 16);
  });

  test(`${name}: a stream says what the whole answer says`, async () => {
    const asked = { ...common, system: "Be brief.", messages, maxOutputTokens: 16 };
    const whole = await generateText(asked);
    const streamed = streamText({ ...asked, onError: ({ error }) => assert.fail(error) });
    assert.equal((await collect(streamed.textStream)).join(""), whole.text);
    assert.equal(await streamed.finishReason, whole.finishReason);
    assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: tools are called, their results sent back, and the next step begins`, async () => {
    const asked = { ...common, prompt: question, tools: { weather }, toolChoice: "required" };
    const { steps } = await generateText({ ...asked, stopWhen: stepCountIs(2), maxOutputTokens: 64 });
    assert.equal(steps.length, 2);
    for (const step of steps) {
      const { toolName, input } = step.toolCalls[0];
      assert.equal(toolName, "weather");
      assert.deepEqual(City.parse(input), input);
      assert.equal(step.toolResults[0].output, `sunny in ${input.city}`);
    }
  });

  test(`${name}: a streamed call's input is whole`, async () => {
    const toolChoice = { type: "tool", toolName: "weather" };
    const asked = { ...common, prompt: question, tools: { weather }, toolChoice, maxOutputTokens: 64 };
    const { fullStream } = streamText({ ...asked, onError: ({ error }) => assert.fail(error) });
    const parts = await collect(fullStream);
    const call = parts.find((part) => part.type === "tool-call");
    const deltas = parts.filter((part) => part.type === "tool-input-delta" && part.id === call.toolCallId);
    City.parse(call.input);
    assert.deepEqual(JSON.parse(deltas.map((part) => part.delta).join("")), call.input);
  });

  test(`${name}: an object is of its schema, whole and streamed`, async () => {
    const asked = { ...common, schema: Person, prompt: question, maxOutputTokens: 64 };
    const { object } = await generateObject(asked);
    assert.deepEqual(Person.parse(object), object);
    const streamed = streamObject({ ...asked, onError: ({ error }) => assert.fail(error) });
    await collect(streamed.partialObjectStream);
    Person.parse(await streamed.object);
  });

  test(`${name}: an output beside text is of its schema`, async () => {
    const output = Output.object({ schema: Person });
    const answer = await generateText({ ...common, prompt: question, output, maxOutputTokens: 64 });
    Person.parse(answer.output);
  });

  test(`${name}: an unknown model is an error with the server's words`, async () => {
    const asked = generateText({ model: unknown[name], prompt: "hi", maxRetries: 0 });
    await assert.rejects(asked, (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, 404);
      assert.match(error.message, /'gpt-none' does not exist/);
      return true;
    });
  });
}
