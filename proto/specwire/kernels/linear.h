// Products of bf16 rows with packed bf16 weights on AMX tiles, at the speed of reading the weights.
//
// oneDNN's kernels read weights at about half of that for the few rows of a decoding step. Here
// they lie in the order in which tiles take them, and several columns of tiles are read side by
// side and ahead: memory gives more to a few streams than to one.
#pragma once
#include <algorithm>

#include "tiles.h"

#ifdef __AMX_BF16__
#include <omp.h>

namespace {

constexpr int AHEAD = 4;  // tiles of a stream

// Fetches the tiles of all columns that are read `AHEAD` steps later. Behind a column's end those
// of the columns that come next begin, as far behind the last of these.
template <int Columns>
void fetch(const uint16_t* tile, int64_t apart, bool past_end) {
  tile += AHEAD * TILE + (past_end ? (Columns - 1) * apart : 0);
  for (int s = 0; s < Columns; ++s)
    for (int i = 0; i < TILE; i += 32) _mm_prefetch(tile + s * apart + i, _MM_HINT_T0);
}

// Up to 16 rows, `width` elements apart, times up to four columns of tiles, `apart` elements apart:
// 16 results of a row for each, those of column s at results[s].
template <int Columns>
void narrow(const uint16_t* rows, int64_t width, const uint16_t* weights, bool ahead,
            float (*results)[TILE / 2]) {
  const int64_t apart = width * SIDE;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < width; k += DEEP, weights += TILE) {
    if (ahead) fetch<Columns>(weights, apart, k + AHEAD * DEEP >= width);
    _tile_loadd(4, rows + k, width * 2);
    _tile_loadd(6, weights, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (Columns > 1) {
      _tile_loadd(7, weights + apart, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (Columns > 2) {
      _tile_loadd(6, weights + 2 * apart, 64);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (Columns > 3) {
      _tile_loadd(7, weights + 3 * apart, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, results[0], 64);
  _tile_stored(1, results[1], 64);
  _tile_stored(2, results[2], 64);
  _tile_stored(3, results[3], 64);
}

// The same for 17 to 32 rows and up to two columns; those of the lower rows at results[2 + s].
template <int Columns>
void tall(const uint16_t* rows, int64_t width, const uint16_t* weights, bool ahead,
          float (*results)[TILE / 2]) {
  const int64_t apart = width * SIDE;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < width; k += DEEP, weights += TILE) {
    if (ahead) fetch<Columns>(weights, apart, k + AHEAD * DEEP >= width);
    _tile_loadd(4, rows + k, width * 2);
    _tile_loadd(5, rows + SIDE * width + k, width * 2);
    _tile_loadd(6, weights, 64);
    if (Columns > 1) _tile_loadd(7, weights + apart, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (Columns > 1) {
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, results[0], 64);
  _tile_stored(1, results[1], 64);
  _tile_stored(2, results[2], 64);
  _tile_stored(3, results[3], 64);
}

// Thirty-two results of a row at once: a row's lines lie far from the next one's.
inline void store(bf16* to, Floats first, Floats second) {
  const auto halves = _mm512_cvtne2ps_pbh(__m512(second), __m512(first));
  std::memcpy(to, &halves, sizeof halves);
}

using Column = decltype(&narrow<1>);
constexpr Column NARROW[] = {narrow<1>, narrow<2>, narrow<3>, narrow<4>};
constexpr Column TALL[] = {tall<1>, tall<2>};

// rows [count, width] times weights [outputs / 16, width / 32, 16, 16, 2], to out
// [count, outputs], by the team of the enclosing parallel region. `bias` is fp32 or null.
inline void linear_all(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                       int64_t count, int64_t outputs, int64_t width) {
  const auto* from = static_cast<const uint16_t*>(rows);
  const int64_t team = omp_get_num_threads(), own = omp_get_thread_num(), tiles = outputs / SIDE;
  const int64_t end = tiles * (own + 1) / team, most = count > SIDE ? 2 : 4;
  alignas(64) float results[4][TILE / 2];
  int upper = 0, lower = 0;
  for (int64_t n = tiles * own / team, columns; n < end; n += columns) {
    columns = std::min(most, end - n);
    for (int64_t m = 0; m < count; m += DEEP) {
      const int above = int(std::min<int64_t>(SIDE, count - m));
      const int below = int(std::clamp<int64_t>(count - m - SIDE, 0, SIDE));
      if (above != upper || below != lower) configure(upper = above, lower = below);
      const Column product = (below ? TALL : NARROW)[columns - 1];
      product(from + m * width, width, weights + n * SIDE * width, m == 0, results);
      for (int i = 0; i < above + below; ++i)
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
  _tile_release();
#pragma omp barrier
}

}  // namespace

#endif
