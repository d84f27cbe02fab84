// Thinking reaches each client as its own kind of part. The server takes <think> for it, and the prompt opens one.
import assert from "node:assert/strict";
import test from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";
import { MODEL, collect, messages, v1 } from "./server.mjs";

const settings = { baseURL: v1, apiKey: "none" };
const opened = [...messages, { role: "assistant", content: "<think>" }];
const models = {
  chat: createOpenAICompatible({ ...settings, name: "tokenspeed" })(MODEL),
  messages: createAnthropic(settings)(MODEL),
};
const providerOptions = { tokenspeed: { continue_final_message: true } };

for (const [name, model] of Object.entries(models)) {
  const asked = { model, messages: opened, maxOutputTokens: 16, temperature: 0, maxRetries: 0, providerOptions };

  test(`${name}: thinking is no text of the AI SDK's answer`, async () => {
    const answer = await generateText(asked);
    assert.ok(answer.reasoningText.length > 0);
    assert.equal(answer.text, "");
  });

  test(`${name}: thinking comes in the AI SDK's stream as it does in whole`, async () => {
    const whole = await generateText(asked);
    const { fullStream } = streamText({ ...asked, onError: ({ error }) => assert.fail(error) });
    const deltas = (await collect(fullStream)).filter((part) => part.type === "reasoning-delta");
    assert.equal(deltas.map((part) => part.text).join(""), whole.reasoningText);
  });
}

test("OpenAI's client has it as reasoning_content", async () => {
  const client = new OpenAI({ ...settings, maxRetries: 0 });
  const asked = { model: MODEL, messages: opened, continue_final_message: true, max_tokens: 16, temperature: 0 };
  const [choice] = (await client.chat.completions.create(asked)).choices;
  const chunks = await collect(await client.chat.completions.create({ ...asked, stream: true }));
  const pieces = chunks.map((chunk) => chunk.choices[0].delta.reasoning_content ?? "");
  assert.ok(choice.message.reasoning_content.length > 0);
  assert.equal(pieces.join(""), choice.message.reasoning_content);
});
