// Generates token ids from an ONNX export in Node.js:  npm install onnxruntime-node
//     node examples/onnx_generate.mjs out/onnx-cpu 40 0,123,456
// Prints the ids that follow. Models without sinks only. Unlike Python and C++, JavaScript has no binding of one buffer to an input
// and an output, so every step returns new cache tensors; that costs a copy of the cache per token and nothing else.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";

const [folder, limit, prompt] = process.argv.slice(2);
const host = JSON.parse(readFileSync(`${folder}/host.json`, "utf8"));
const session = await ort.InferenceSession.create(`${folder}/model.onnx`, { logSeverityLevel: 3 });
const int64 = (values, shape = [values.length]) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
const arrays = { int8: Int8Array, uint8: Uint8Array, float16: Uint16Array, float32: Float32Array };

const rings = Object.fromEntries(Object.entries(host.rings).map(([name, ring]) => [name, ring.slots]));
const nothing = 2n ** 63n - 1n; // a slot that holds no position yet
const held = Object.fromEntries(Object.entries(rings).map(([name, slots]) => [name, new BigInt64Array(slots).fill(nothing)]));
let caches = {}; // and the states of recurrent layers
for (const item of session.inputMetadata.filter((item) => /^(past|state)\./.test(item.name))) {
  const shape = item.shape.map((size) => (typeof size === "string" ? rings[size.slice("slots.".length)] : size));
  const count = shape.reduce((product, size) => product * size, 1);
  caches[item.name] = new ort.Tensor(item.type, new arrays[item.type](count), shape);
}

async function step(tokens, start) {
  const positions = tokens.map((_, index) => start + index);
  const feeds = { ...caches, input_ids: int64(tokens, [1, tokens.length]), positions: int64(positions, [1, tokens.length]) };
  feeds.logit_rows = int64([tokens.length - 1]);
  for (const [name, slots] of Object.entries(rings)) {
    for (const position of positions) held[name][position % slots] = BigInt(position);
    feeds[`held.${name}`] = new ort.Tensor("int64", held[name], [slots]);
    feeds[`write_slot.${name}`] = int64([start % slots]);
  }
  const wanted = ([name]) => session.inputNames.includes(name); // with onnx.attention=gqa, neither `held` nor `write_slot`
  const found = await session.run(Object.fromEntries(Object.entries(feeds).filter(wanted)));
  const next = (name) => name.replace(/^past\./, "present.").replace(/^state\./, "next_state.");
  caches = Object.fromEntries(Object.keys(caches).map((name) => [name, found[next(name)]]));
  return found.logits.data.reduce((best, value, index, all) => (value > all[best] ? index : best), 0);
}

const tokens = prompt.split(",").map(Number);
let following;
for (let at = 0; at < tokens.length; at += host.chunk) following = await step(tokens.slice(at, at + host.chunk), at);
for (let count = 0; count < Number(limit); count += 1) {
  process.stdout.write(`${following} `);
  tokens.push(following);
  following = await step([following], tokens.length - 1);
}
process.stdout.write("\n");
