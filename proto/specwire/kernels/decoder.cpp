// Decoder layers of Llama's form in one parallel region: no thread waits for Python in between.
#include "attend.h"
#include "linear.h"
#include "rows.h"

namespace {

// As `_Layer` in decoder.py. Weights of products are tiled; norms of heads and biases may be null.
// Sizes are in elements.
struct Layer {
  const bf16 *input_norm, *post_norm, *query_norm, *key_norm;
  const uint16_t *qkv, *out, *gate_up, *down;
  const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
  int64_t hidden, heads, kv_heads, dim, inner;
  float eps, head_eps, scale;
};

// Keys and values of all slots of a layer [slots, kv_heads, dim], and where its input [rows, hidden]
// is kept, or null.
struct Memory {
  bf16 *keys, *values, *input;
};

// As `_Batch` in decoder.py. `cosines` and `sines` are [rows, dim]; `scratch` has room for what the
// rows leave between the steps of a layer.
struct Batch {
  int64_t rows, segments;
  const bf16 *cosines, *sines;
  const int64_t *slots, *table;
  bf16* scratch;
};

#ifdef __AMX_BF16__

// Turns a row's queries and keys, and keeps its keys and values.
void place_row(const Layer& layer, const Batch& batch, int64_t row, bf16* qkv, bf16* keys,
               bf16* values) {
  const int64_t dim = layer.dim, heads = layer.heads, kv = layer.kv_heads;
  if (layer.query_norm)
    for (int64_t h = 0; h < heads + kv; h++) {
      bf16* head = qkv + h * dim;
      add_norm_row<bf16>(head, nullptr, h < heads ? layer.query_norm : layer.key_norm, dim,
                         layer.head_eps, nullptr, head);
    }
  rotate_row(qkv, batch.cosines + row * dim, batch.sines + row * dim, heads + kv, dim);
  const int64_t slot = batch.slots[row] * kv * dim, bytes = kv * dim * int64_t(sizeof(bf16));
  std::memcpy(keys + slot, qkv + heads * dim, bytes);
  std::memcpy(values + slot, qkv + (heads + kv) * dim, bytes);
}

// Runs a layer by the team of the enclosing parallel region. What it adds to the states stays in
// the scratch memory's second part, for the next layer; `pending` says whether one left it there.
void run_layer(const Layer& layer, const Memory& memory, const Batch& batch, bf16* states,
               bool pending) {
  const int64_t rows = batch.rows, width = layer.hidden, inner = layer.inner;
  const int64_t own = layer.heads * layer.dim, wide = own + 2 * layer.kv_heads * layer.dim;
  const Shape shape{layer.heads, layer.kv_heads, wide, layer.kv_heads * layer.dim, layer.scale};
  const auto* table = reinterpret_cast<const Segment*>(batch.table);
  bf16 *normed = batch.scratch, *delta = normed + rows * width, *qkv = delta + rows * width;
  bf16 *attended = qkv + rows * wide, *both = attended + rows * own;
  bf16* gated = both + rows * 2 * inner;
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = r * width;
    add_norm_row<bf16>(states + at, pending ? delta + at : nullptr, layer.input_norm, width,
                       layer.eps, states + at, normed + at);
    if (memory.input) std::memcpy(memory.input + at, states + at, width * sizeof(bf16));
  }
  linear_all(normed, layer.qkv, layer.qkv_bias, qkv, rows, wide, width);
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    place_row(layer, batch, r, qkv + r * wide, memory.keys, memory.values);
  attend_for<bf16>(layer.dim, layer.heads / layer.kv_heads)(
      qkv, memory.keys, memory.values, table, batch.segments, shape, attended);
  linear_all(attended, layer.out, layer.out_bias, delta, rows, width, own);
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = r * width;
    add_norm_row<bf16>(states + at, delta + at, layer.post_norm, width, layer.eps, states + at,
                       normed + at);
  }
  linear_all(normed, layer.gate_up, layer.gate_up_bias, both, rows, 2 * inner, width);
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++) gate_row(both + 2 * r * inner, inner, gated + r * inner);
  linear_all(gated, layer.down, layer.down_bias, delta, rows, width, inner);
}

#endif

}  // namespace

// Maps states [rows, hidden] in place, through `count` layers. Returns 0 where this machine, or the
// shape, is not served.
extern "C" int hc_decode(const Layer* layers, const Memory* memories, int64_t count,
                         const Batch* given, bf16* states, int threads) {
#ifdef __AMX_BF16__
  const Batch& batch = *given;
  for (int64_t i = 0; i < count; i++)
    if (!attend_for<bf16>(layers[i].dim, layers[i].heads / layers[i].kv_heads)) return 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    for (int64_t i = 0; i < count; i++) run_layer(layers[i], memories[i], batch, states, i > 0);
    const int64_t elements = batch.rows * layers[0].hidden;
    const bf16* delta = batch.scratch + elements;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < elements; i += LANES)
      store(states + i, load(states + i) + load(delta + i));
  }
  return 1;
#else
  return 0;
#endif
}
