// Products of bf16 rows with packed bf16 weights on AMX tiles, at the speed of reading the weights.
//
// oneDNN's kernels read weights at about half of that for the few rows of a decoding step: here
// they lie in the order in which tiles take them, and are fetched ahead.
#pragma once
#include <algorithm>

#include "element.h"

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int SIDE = 16;             // rows of a tile; 32 bf16 or 16 fp32 in each
constexpr int PAIR = 2 * SIDE;      // results side by side, inner elements of a tile
constexpr int TILE = SIDE * PAIR;  // elements
constexpr int AHEAD = 4096;          // bytes

// Tiles 0 to 3 hold results, 4 and 5 rows, 6 and 7 weights.
void configure(int upper, int lower) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const int rows[8] = {upper, upper, lower, lower, upper, lower, SIDE, SIDE};
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = std::max(1, rows[i]);
  _tile_loadconfig(&config);
}

// Results [rows up to 32, 32] of rows that lie `width` elements apart, for one column of weights.
// At each step `lines` cache lines are fetched from `ahead` on.
template <bool Lower>
void column(const uint16_t* rows, int64_t width, const uint16_t* weights, const char* ahead,
            int lines, float* results) {
  _tile_zero(0);
  _tile_zero(1);
  if (Lower) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < width; k += PAIR, weights += 2 * TILE) {
    for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T0);
    _tile_loadd(4, rows + k, width * 2);
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (Lower) {
      _tile_loadd(5, rows + SIDE * width + k, width * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, results, PAIR * 4);
  _tile_stored(1, results + SIDE, PAIR * 4);
  if (Lower) {
    _tile_stored(2, results + SIDE * PAIR, PAIR * 4);
    _tile_stored(3, results + SIDE * PAIR + SIDE, PAIR * 4);
  }
}

// rows [count, width] times weights [outputs / 32, width / 32, 2, 16, 16, 2], to out
// [count, outputs], by the team of the enclosing parallel region. `bias` is fp32 or null.
inline void linear_all(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                       int64_t count, int64_t outputs, int64_t width) {
  const auto* from = static_cast<const uint16_t*>(rows);
  const int64_t passes = (count + PAIR - 1) / PAIR;
  const int lines = int((2 * TILE / 32 + passes - 1) / passes);
  alignas(64) float results[PAIR * PAIR];
  int upper = 0, lower = 0;
#pragma omp for schedule(static)
  for (int64_t n = 0; n < outputs; n += PAIR) {
    const uint16_t* read = weights + n * width;
    // One pass reads what it fetched a moment ago; several share the fetching of the next column.
    const auto* ahead = reinterpret_cast<const char*>(read) + (passes > 1 ? width * 64 : AHEAD);
    for (int64_t m = 0; m < count; m += PAIR, ahead += width / PAIR * lines * 64) {
      const int above = int(std::min<int64_t>(SIDE, count - m));
      const int below = int(std::clamp<int64_t>(count - m - SIDE, 0, SIDE));
      if (above != upper || below != lower) configure(upper = above, lower = below);
      (below ? column<true> : column<false>)(from + m * width, width, read, ahead, lines, results);
      for (int i = 0; i < above + below; ++i)
        for (int j = 0; j < PAIR; j += LANES) {
          Floats value = load(results + i * PAIR + j);
          if (bias) value += load(bias + n + j);
          store(out + (m + i) * outputs + n + j, value);
        }
    }
  }
  _tile_release();
}

}  // namespace

#endif
