// Products of bf16 rows with packed weights on AMX tiles.
#pragma once
#include "amx_tiles.h"

#ifdef __AMX_BF16__

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

using Column = decltype(&narrow<1>);
constexpr Column NARROW[] = {narrow<1>, narrow<2>, narrow<3>, narrow<4>};
constexpr Column TALL[] = {tall<1>, tall<2>};

// A thread's products, one after the other.
class Products {
  int upper_ = 0, lower_ = 0;  // rows that the tiles are configured for

 public:
  static constexpr int64_t ROWS = DEEP, COLUMNS = 4;  // of a product, at most
  // Columns of tiles that run side by side.
  static int64_t columns(int64_t rows) { return rows > SIDE ? 2 : 4; }

  // Rows that are multiplied with all columns before others are.
  static int64_t group(int64_t) { return INT64_MAX; }

  // Takes rows as `run` wants them.
  const uint16_t* take(const uint16_t* rows, int64_t, int64_t) { return rows; }

  // `rows` rows times `columns` columns of tiles, as one of `parts` that read the same weights.
  void run(const uint16_t* from, int rows, int64_t width, const uint16_t* weights, int64_t columns,
           int64_t part, int64_t, float (*results)[TILE / 2]) {
    const int above = rows < SIDE ? rows : SIDE, below = rows - above;
    if (above != upper_ || below != lower_) configure(upper_ = above, lower_ = below);
    (below ? TALL : NARROW)[columns - 1](from, width, weights, part == 0, results);
  }

  ~Products() { release(); }
};

}  // namespace

#endif
