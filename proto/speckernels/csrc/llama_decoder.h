// A decoder layer of Llama's form for the team of a parallel region: targets and drafters share it.
#pragma once
#include "attention.h"
#include "linear.h"
#include "row_ops.h"

namespace {

// As `Layer` in decoder.py. Weights of products are tiled; norms of heads, biases and sinks may be
// null. Sizes are in elements; `inputs` are those of the first product. See `Shape` for the rest.
struct Layer {
  const bf16 *input_norm, *post_norm, *query_norm, *key_norm;
  const uint16_t *qkv, *out, *gate_up, *down;
  const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
  int64_t inputs, hidden, heads, kv_heads, dim, inner;
  float eps, head_eps, scale, softcap;
  int64_t window;
  const float* sinks;

  int64_t own() const { return heads * dim; }
  int64_t wide() const { return (heads + 2 * kv_heads) * dim; }
};

// Where rows of a batch are: `cosines` and `sines` [positions, dim] are read at `positions`; keys
// and values [slots, kv_heads, dim] are written at `slots`, and read as the segments say, the first
// `prompts` of which are of prompts.
struct Places {
  int64_t rows, segments, prompts;
  const bf16 *cosines, *sines;
  const int64_t *positions, *slots;
  const Segment* table;
};

// What rows leave between the steps of a layer.
struct Scratch {
  bf16 *normed, *delta, *qkv, *attended, *both, *gated;

  Scratch(bf16* room, const Layer& layer, int64_t rows)
      : normed(room),
        delta(normed + rows * layer.hidden),
        qkv(delta + rows * layer.hidden),
        attended(qkv + rows * layer.wide()),
        both(attended + rows * layer.own()),
        gated(both + rows * 2 * layer.inner) {}
};

// Turns a row's queries and keys, and keeps its keys and values.
inline void place_row(const Layer& layer, const Places& places, int64_t row, bf16* qkv, bf16* keys,
                      bf16* values) {
  const int64_t dim = layer.dim, heads = layer.heads, kv = layer.kv_heads;
  if (layer.query_norm)
    for (int64_t h = 0; h < heads + kv; h++) {
      bf16* head = qkv + h * dim;
      add_norm_row<bf16>(head, nullptr, h < heads ? layer.query_norm : layer.key_norm, dim,
                         layer.head_eps, nullptr, head);
    }
  const int64_t turn = places.positions[row] * dim;
  rotate_row(qkv, places.cosines + turn, places.sines + turn, heads + kv, dim);
  const int64_t slot = places.slots[row] * kv * dim, bytes = kv * dim * int64_t(sizeof(bf16));
  std::memcpy(keys + slot, qkv + heads * dim, bytes);
  std::memcpy(values + slot, qkv + (heads + kv) * dim, bytes);
}

// The first steps of a layer on its normed `input` [rows, inputs]: queries, and keys and values kept.
inline void place_rows(const Layer& layer, const Places& places, const bf16* input, bf16* keys,
                       bf16* values, const Scratch& scratch) {
  const int64_t rows = places.rows, wide = layer.wide();
  linear_all(input, layer.qkv, layer.qkv_bias, scratch.qkv, rows, wide, layer.inputs);
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    place_row(layer, places, r, scratch.qkv + r * wide, keys, values);
}

// Runs a layer from its normed `input` [rows, inputs] on: states [rows, hidden] become `residual`
// and what attention gives; what is still to be added to them is left in scratch.delta.
inline void run_layer(const Layer& layer, const Places& places, const bf16* input,
                      const bf16* residual, bf16* states, bf16* keys, bf16* values,
                      const Scratch& scratch) {
  const int64_t rows = places.rows, width = layer.hidden, wide = layer.wide();
  const Shape shape{layer.heads,   layer.kv_heads, wide,          layer.kv_heads * layer.dim,
                    layer.scale,   layer.window,   layer.softcap, layer.sinks};
  place_rows(layer, places, input, keys, values, scratch);
  attend_for<bf16>(layer.dim, layer.heads / layer.kv_heads)(
      scratch.qkv, keys, values, places.table, places.segments, places.prompts, shape,
      scratch.attended);
  linear_all(scratch.attended, layer.out, layer.out_bias, scratch.delta, rows, width, layer.own());
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = r * width;
    add_norm_row<bf16>(residual + at, scratch.delta + at, layer.post_norm, width, layer.eps,
                       states + at, scratch.normed + at);
  }
  const int64_t inner = layer.inner;
  linear_all(scratch.normed, layer.gate_up, layer.gate_up_bias, scratch.both, rows, 2 * inner,
             width);
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    gate_row(scratch.both + 2 * r * inner, inner, scratch.gated + r * inner);
  linear_all(scratch.gated, layer.down, layer.down_bias, scratch.delta, rows, width, inner);
}

}  // namespace
