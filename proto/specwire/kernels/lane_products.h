// Products of bf16 rows with packed weights on vectors, where there are no matrix tiles.
#pragma once
#include <utility>

#include "tiles.h"

#ifndef __AMX_BF16__

namespace {

// Vectors as wide as the machine's: wider ones would be kept in memory between two steps. Results of
// so many rows and columns of tiles, and what makes them, fit into the registers. For so few
// rows, columns are taken one by one: one stream is read fastest, and their products take less time.
#ifdef __AVX512F__
constexpr int WIDE = 16, BLOCK_ROWS = 6, BLOCK_COLUMNS = 4, STREAM_ROWS = 4;
#else
constexpr int WIDE = 8, BLOCK_ROWS = 2, BLOCK_COLUMNS = 2, STREAM_ROWS = 0;
#endif
constexpr int SPLIT = SIDE / WIDE;  // vectors of a tile's row
using Sums = float __attribute__((vector_size(4 * WIDE)));
using Pairs = uint32_t __attribute__((vector_size(4 * WIDE)));

template <class Vector>
inline Vector read(const void* from) {
  Vector out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// Adds the products of two elements of a row with those of columns.
inline void add_pairs(Sums& sums, const Pairs& columns, const uint16_t* pair) {
#ifdef __AVX512BF16__
  const auto both = _mm512_set1_epi32(read<int>(pair));
  sums = Sums(_mm512_dpbf16_ps(__m512(sums), __m512bh(__m512i(columns)), __m512bh(both)));
#else
  sums += Sums(columns << 16) * load(bf16{pair[0]});
  sums += Sums(columns & 0xFFFF0000) * load(bf16{pair[1]});
#endif
}

// `Rows` rows, `width` elements apart, times columns of tiles, `apart` elements apart: 16 results
// of a row for each, those of column s at results[s]. Lines [first, last) of the tiles of as many
// columns behind them are fetched meanwhile.
template <int Rows, int Columns>
void block(const uint16_t* rows, int64_t width, const uint16_t* weights, int first, int last,
           float (*results)[TILE / 2]) {
  const int64_t apart = width * SIDE;
  Sums sums[Rows][Columns][SPLIT] = {};
  for (int64_t k = 0; k < width; k += DEEP, weights += TILE) {
    const uint16_t* next = weights + Columns * apart;
    for (int s = 0; s < Columns; ++s)
      for (int i = first; i < last; ++i) __builtin_prefetch(next + s * apart + i * DEEP, 0, 2);
#pragma GCC unroll 4
    for (int p = 0; p < SIDE; ++p)
      for (int s = 0; s < Columns; ++s)
        for (int h = 0; h < SPLIT; ++h) {
          const auto column = read<Pairs>(weights + s * apart + p * DEEP + 2 * h * WIDE);
          for (int r = 0; r < Rows; ++r)
            add_pairs(sums[r][s][h], column, rows + r * width + k + 2 * p);
        }
  }
  for (int s = 0; s < Columns; ++s)
    for (int r = 0; r < Rows; ++r) std::memcpy(results[s] + r * LANES, sums[r][s], LANES * 4);
}

// As in tile_products.h.
class Products {
  using Block = decltype(&block<1, 1>);

  template <size_t... Each>
  static Block find(int rows, int64_t columns, std::index_sequence<Each...>) {
    static constexpr Block BLOCKS[] = {
        block<Each / BLOCK_COLUMNS + 1, Each % BLOCK_COLUMNS + 1>...};
    return BLOCKS[(rows - 1) * BLOCK_COLUMNS + columns - 1];
  }

 public:
  static constexpr int64_t ROWS = BLOCK_ROWS;
  static int64_t columns(int64_t count) { return count > STREAM_ROWS ? BLOCK_COLUMNS : 1; }

  void run(const uint16_t* from, int rows, int64_t width, const uint16_t* weights, int64_t columns,
           int64_t part, int64_t parts, float (*results)[TILE / 2]) {
    const auto all = std::make_index_sequence<BLOCK_ROWS * BLOCK_COLUMNS>();
    // Memory is read while other rows keep the core busy. For a few rows it reads ahead by itself,
    // which is faster.
    const int lines = parts > 1 ? SIDE : 0;
    const int first = int(lines * part / parts), last = int(lines * (part + 1) / parts);
    find(rows, columns, all)(from, width, weights, first, last, results);
  }
};

// Adds the products of a tile of rows with one of columns [16 pairs, 16 columns, 2] to sums
// [16 rows, 16 columns]. Rows, and the pairs of a row, are so many elements apart.
template <int Row, int Pair>
inline void add_tile(float (*sums)[LANES], const uint16_t* rows, const uint16_t* columns) {
  constexpr int ROWS = WIDE == SIDE ? SIDE : 4;  // that fit into the registers
  for (int first = 0; first < SIDE; first += ROWS) {
    Sums kept[ROWS][SPLIT];
    std::memcpy(kept, sums[first], sizeof kept);
#pragma GCC unroll 2
    for (int p = 0; p < SIDE; ++p)
      for (int h = 0; h < SPLIT; ++h) {
        const auto column = read<Pairs>(columns + p * DEEP + 2 * h * WIDE);
        for (int r = 0; r < ROWS; ++r)
          add_pairs(kept[r][h], column, rows + (first + r) * Row + p * Pair);
      }
    std::memcpy(sums[first], kept, sizeof kept);
  }
}

}  // namespace

#endif
