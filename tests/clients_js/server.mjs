// What all scripts share: the server they judge, and inputs whose answers end soon whatever the model says.
import { z } from "zod";

export const MODEL = "local";
export const root = process.argv[2];
export const v1 = `${root}/v1`;
export const question = "Write a function that adds two numbers.";
export const messages = [{ role: "user", content: question }];

// Grammars hold answers to it, so even a model that knows nothing answers with one.
export const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(99) });
export const City = z.object({ city: z.enum(["Paris", "Rome"]) });

export async function collect(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}
