// Products of bf16 rows with packed weights on vectors, where there are no matrix tiles.
//
// Where vectors multiply pairs of bf16 elements, rows are read as they are. Elsewhere they are
// widened to fp32 before: an element of a row is then broadcast by the load that reads it.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "amx_tiles.h"

#ifndef __AMX_BF16__

namespace {

constexpr int SPLIT = SIDE / LANES;  // vectors of a tile's row
constexpr int64_t AHEAD = 16;        // tiles of a stream, if one is waited for

#ifdef __AVX512BF16__

using Element = uint16_t;
constexpr int BLOCK_ROWS = 6;

// Whether single streams are read ahead best by the core itself, as AMD's do.
const bool READS_AHEAD = (__builtin_cpu_init(), !__builtin_cpu_is("intel"));

// Rows as they are multiplied; `room` is for those that are not left as they are.
inline const Element* taken(const bf16* rows, int64_t, std::vector<Element>&) {
  return reinterpret_cast<const Element*>(rows);
}

// Adds the products of a pair of elements of each row, `width` elements apart, with columns.
template <int Rows, int Vectors>
inline void add_pairs(Floats (&sums)[Rows][Vectors], const Words (&columns)[Vectors],
                      const Element* pairs, int64_t width) {
  for (int r = 0; r < Rows; ++r) {
    const auto pair = _mm512_set1_epi32(read<int>(pairs + r * width));
    for (int v = 0; v < Vectors; ++v)
      sums[r][v] = Floats(
          _mm512_dpbf16_ps(__m512(sums[r][v]), __m512bh(__m512i(columns[v])), __m512bh(pair)));
  }
}

// Columns of tiles that are taken together, four where there is work for many registers.
inline int64_t columns_for(int64_t rows) { return rows > 4 ? 4 : READS_AHEAD ? 1 : 2; }
inline bool fetches(int64_t rows) { return rows <= 4 && !READS_AHEAD; }
inline int64_t group_for(int64_t) { return INT64_MAX; }

#else

using Element = float;
constexpr int BLOCK_ROWS = LANES == 16 ? 12 : LANES == 8 ? 6 : 4;

inline const Element* taken(const bf16* rows, int64_t count, std::vector<Element>& room) {
  room.resize(count);
  for (int64_t i = 0; i < count; i += LANES) store(&room[i], load(rows + i));
  return room.data();
}

// First all lower elements: with both at once, columns would not stay in the registers.
template <int Rows, int Vectors>
inline void add_pairs(Floats (&sums)[Rows][Vectors], const Words (&columns)[Vectors],
                      const Element* pairs, int64_t width) {
  for (int half = 0; half < 2; ++half) {
    Floats column[Vectors];
    for (int v = 0; v < Vectors; ++v)
      column[v] = Floats(half ? columns[v] & 0xFFFF0000 : columns[v] << 16);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) sums[r][v] += column[v] * pairs[r * width + half];
  }
}

// As many as leave a sum for each row in the registers, but two where a single row would wait for
// its own sums.
inline int64_t columns_for(int64_t rows) {
  if (LANES == 16) return rows > 4 && rows <= 6 ? 4 : 2;
  return rows > BLOCK_ROWS / 2 ? 1 : 2;
}
inline bool fetches(int64_t) { return true; }
// Widened rows that stay in the second-level cache.
inline int64_t group_for(int64_t width) {
  return std::max<int64_t>(8, (64 << 10) / width / BLOCK_ROWS) * BLOCK_ROWS;
}

#endif

// What is fetched beside products: lines [first, last) of the tiles so many steps ahead.
struct Fetch {
  int64_t ahead;
  int first, last;
};

// `Rows` rows, `width` elements apart, times columns of tiles, `apart` elements apart: 16 results
// of a row for each, those of column s at results[s]. Meanwhile some lines are fetched of tiles
// that come later.
template <int Rows, int Columns>
void block(const Element* rows, int64_t width, const uint16_t* weights, const Fetch& fetch,
           float (*results)[TILE / 2]) {
  constexpr int VECTORS = Columns * SPLIT;
  const int64_t apart = width * SIDE, tiles = width / DEEP, passes = fetch.ahead / tiles;
  int64_t left = tiles - fetch.ahead % tiles;
  const uint16_t* next = weights + passes * Columns * apart + fetch.ahead % tiles * TILE;
  Floats sums[Rows][VECTORS] = {};
  for (int64_t k = 0; k < width; k += DEEP, weights += TILE) {
    for (int s = 0; s < Columns; ++s)
      for (int i = fetch.first; i < fetch.last; ++i)
        __builtin_prefetch(next + s * apart + i * DEEP, 0, 2);
    next += TILE;
    if (--left == 0) next += (Columns - 1) * apart, left = tiles;
#pragma GCC unroll 4
    for (int p = 0; p < SIDE; ++p) {
      Words columns[VECTORS];
      for (int v = 0; v < VECTORS; ++v)
        columns[v] = read<Words>(weights + v / SPLIT * apart + p * DEEP + v % SPLIT * 2 * LANES);
      add_pairs(sums, columns, rows + k + 2 * p, width);
    }
  }
  for (int s = 0; s < Columns; ++s)
    for (int r = 0; r < Rows; ++r)
      std::memcpy(results[s] + r * SIDE, &sums[r][s * SPLIT], SIDE * sizeof(float));
}

using Block = decltype(&block<1, 1>);

template <int Columns, size_t... Rows>
constexpr Block block_of(int rows, std::index_sequence<Rows...>) {
  constexpr Block blocks[] = {block<Rows + 1, Columns>...};
  return blocks[rows - 1];
}

// As in tile_products.h.
class Products {
  std::vector<Element> widened_;

 public:
  static constexpr int64_t ROWS = BLOCK_ROWS, COLUMNS = 4;
  static int64_t columns(int64_t count) { return columns_for(count); }

  // Rows that are multiplied with all columns before others are.
  static int64_t group(int64_t width) { return group_for(width); }

  // Takes rows as `run` wants them.
  const Element* take(const uint16_t* rows, int64_t count, int64_t width) {
    return taken(reinterpret_cast<const bf16*>(rows), count * width, widened_);
  }

  void run(const Element* from, int rows, int64_t width, const uint16_t* weights, int64_t columns,
           int64_t part, int64_t parts, float (*results)[TILE / 2]) {
    constexpr auto few = std::make_index_sequence<BLOCK_ROWS < 6 ? BLOCK_ROWS : 6>();
    constexpr auto all = std::make_index_sequence<BLOCK_ROWS>();
    // Rows that are multiplied with the same weights share the fetching of the next columns.
    const int64_t tiles = width / DEEP;
    const int lines = parts > 1 || fetches(rows) ? SIDE : 0;
    const Fetch fetch{parts > 1 ? tiles : AHEAD, int(lines * part / parts),
                      int(lines * (part + 1) / parts)};
    const Block run = columns == 1   ? block_of<1>(rows, all)
                      : columns == 2 ? block_of<2>(rows, all)
                      : columns == 3 ? block_of<3>(rows, few)
                                     : block_of<4>(rows, few);
    run(from, width, weights, fetch, results);
  }
};

}  // namespace

#endif
