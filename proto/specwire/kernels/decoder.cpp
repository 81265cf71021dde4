// Decoder layers of Llama's form in one parallel region: no thread waits for Python in between.
#include "decoder.h"

// Keys and values of all slots of a layer [slots, kv_heads, dim], and where its input [rows, hidden]
// is kept, or null.
struct Memory {
  bf16 *keys, *values, *input;
};

// Maps states [rows, hidden] in place, through `count` layers. Returns 0 where this machine, or the
// shape, is not served. `room` is for what rows leave between the steps of a layer.
extern "C" int hc_decode(const Layer* layers, const Memory* memories, int64_t count,
                         const Places* given, bf16* states, bf16* room, int threads) {
  const Places& places = *given;
  const int64_t rows = places.rows, width = layers[0].hidden;
  for (int64_t i = 0; i < count; i++)
    if (!attend_for<bf16>(layers[i].dim, layers[i].heads / layers[i].kv_heads)) return 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    for (int64_t i = 0; i < count; i++) {
      const Layer& layer = layers[i];
      const Memory& memory = memories[i];
      const Scratch scratch(room, layer, rows);
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * width;
        add_norm_row<bf16>(states + at, i ? scratch.delta + at : nullptr, layer.input_norm, width,
                           layer.eps, states + at, scratch.normed + at);
        if (memory.input) std::memcpy(memory.input + at, states + at, width * sizeof(bf16));
      }
      run_layer(layer, places, scratch.normed, states, states, memory.keys, memory.values,
                scratch);
    }
    const bf16* delta = room + rows * width;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * width; i += LANES)
      store(states + i, load(states + i) + load(delta + i));
  }
  return 1;
}
