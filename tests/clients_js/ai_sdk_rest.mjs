// The AI SDK's other models: completions and embeddings.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany, generateText, streamText } from "ai";
import { MODEL, collect, v1 } from "./server.mjs";

const provider = createOpenAICompatible({ baseURL: v1, name: "tokenspeed", includeUsage: true });

test("a completion model continues a text", async () => {
  const asked = { model: provider.completionModel(MODEL), prompt: "def add(a, b):", maxOutputTokens: 16, temperature: 0 };
  const whole = await generateText(asked);
  assert.ok(["stop", "length"].includes(whole.finishReason));
  const streamed = streamText({ ...asked, onError: ({ error }) => assert.fail(error) });
  assert.equal((await collect(streamed.textStream)).join(""), whole.text);
  assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
});

test("a text has the same vector alone and among others", async () => {
  const model = provider.embeddingModel(MODEL);
  const values = ["def add(a, b):", "import os"];
  const many = await embedMany({ model, values });
  assert.equal(many.embeddings.length, 2);
  assert.ok(many.usage.tokens > 0);
  const one = await embed({ model, value: values[1] });
  assert.deepEqual(one.embedding, many.embeddings[1]);
});
