// A whole decoder of Llama's form in one parallel region: no thread waits for Python in between.
#include <algorithm>

#include "llama_decoder.h"

// From tokens to the final norm: `embedding` is [vocabulary, hidden], cosines and sines are
// [positions, dim].
struct Decoder {
  const Layer* layers;
  int64_t count, vocabulary, positions;
  const bf16 *embedding, *cosines, *sines, *final_norm;
  float eps;
};

// Keys and values of all slots of a layer [slots, kv_heads, dim].
struct Memory {
  bf16 *keys, *values;
};

// A state to keep: the input of a layer, or the output of the last one, from this column on.
struct Capture {
  int64_t layer, column;
};

// `features` [*, width] take what is captured at `feature_rows`; `out` [rows, hidden] is normed;
// `room` is for what rows leave between the steps.
struct Batch {
  int64_t rows, segments, prompts, captures, width;
  const int64_t *tokens, *positions, *slots, *feature_rows;
  const Segment* table;
  const Capture* captured;
  const Memory* memories;
  bf16 *features, *out, *room;
};

namespace {

// Adds what layer `layer - 1` left to a row's state, norms the sum, and keeps it where it is wanted.
void enter(const Decoder& decoder, const Batch& batch, int64_t layer, int64_t row, bf16* states,
           const bf16* delta, bf16* normed) {
  const bool first = layer == 0, last = layer == decoder.count;
  const int64_t width = decoder.layers[0].hidden, at = row * width, bytes = width * sizeof(bf16);
  if (first) std::memcpy(states + at, decoder.embedding + batch.tokens[row] * width, bytes);
  add_norm_row<bf16>(states + at, first ? nullptr : delta + at,
                     last ? decoder.final_norm : decoder.layers[layer].input_norm, width,
                     last ? decoder.eps : decoder.layers[layer].eps, states + at, normed + at);
  for (int64_t i = 0; i < batch.captures; i++)
    if (batch.captured[i].layer == layer)
      std::memcpy(batch.features + batch.feature_rows[row] * batch.width + batch.captured[i].column,
                  states + at, bytes);
}

bool in_range(const int64_t* numbers, int64_t count, int64_t end) {
  return std::all_of(numbers, numbers + count, [=](int64_t n) { return 0 <= n && n < end; });
}

}  // namespace

// Returns 0 where this machine, or the shape, is not served, and -1 for a token or a position that
// is not there.
extern "C" int hc_decode(const Decoder* given, const Batch* rows_of, int threads) {
  const Decoder& decoder = *given;
  const Batch& batch = *rows_of;
  const int64_t rows = batch.rows, width = decoder.layers[0].hidden;
  for (int64_t i = 0; i < decoder.count; i++)
    if (!attend_for<bf16>(decoder.layers[i].dim,
                          decoder.layers[i].heads / decoder.layers[i].kv_heads))
      return 0;
  if (!in_range(batch.tokens, rows, decoder.vocabulary) ||
      !in_range(batch.positions, rows, decoder.positions))
    return -1;
  const Places places{rows,          batch.segments,  batch.prompts, decoder.cosines,
                      decoder.sines, batch.positions, batch.slots,   batch.table};
  bf16 *states = batch.room, *room = states + rows * width;
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i <= decoder.count; i++) {
    const bool last = i == decoder.count;
    const Scratch scratch(room, decoder.layers[last ? 0 : i], rows);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
      enter(decoder, batch, i, r, states, scratch.delta, last ? batch.out : scratch.normed);
    if (!last)
      run_layer(decoder.layers[i], places, scratch.normed, states, states,
                batch.memories[i].keys, batch.memories[i].values, scratch);
  }
  return 1;
}
