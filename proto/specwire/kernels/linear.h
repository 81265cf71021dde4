// Products of bf16 rows with packed bf16 weights, at the speed of reading the weights.
//
// oneDNN's kernels read weights at about half of that for the few rows of a decoding step. Here
// they lie in the order in which tiles and vectors take them. For many rows, several columns of
// tiles are read side by side and ahead.
#pragma once
#include <omp.h>

#include <algorithm>

#include "lane_products.h"
#include "tile_products.h"

namespace {

// This thread's share of `linear_all`.
inline void linear_own(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                       int64_t count, int64_t outputs, int64_t width) {
  const auto* from = static_cast<const uint16_t*>(rows);
  const int64_t team = omp_get_num_threads(), own = omp_get_thread_num(), tiles = outputs / SIDE;
  const int64_t end = tiles * (own + 1) / team;
  const int64_t parts = (count + Products::ROWS - 1) / Products::ROWS;
  alignas(64) float results[4][TILE / 2];
  Products products;
  for (int64_t n = tiles * own / team, columns; n < end; n += columns) {
    columns = std::min(Products::columns(count), end - n);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t m = count * part / parts, here = count * (part + 1) / parts - m;
      products.run(from + m * width, int(here), width, weights + n * SIDE * width, columns, part,
                   parts, results);
      for (int i = 0; i < here; ++i)
        for (int64_t s = 0; s < columns; s += 2) {
          const float* result = results[i < SIDE ? s : 2 + s] + i % SIDE * LANES;
          const int64_t column = (n + s) * SIDE;
          Floats first = load(result), second = load(result + TILE / 2);
          if (bias) first += load(bias + column);
          if (bias && s + 1 < columns) second += load(bias + column + SIDE);
          bf16* to = out + (m + i) * outputs + column;
          s + 1 < columns ? store(to, first, second) : store(to, first);
        }
    }
  }
}

// rows [count, width] times weights [outputs / 16, width / 32, 16, 16, 2], to out
// [count, outputs], by the team of the enclosing parallel region. `bias` is fp32 or null.
inline void linear_all(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                       int64_t count, int64_t outputs, int64_t width) {
  linear_own(rows, weights, bias, out, count, outputs, width);
#pragma omp barrier
}

}  // namespace
