// What a prompt's attention keeps where tiles, or vectors, multiply pairs of bf16.
//
// Weights are left in the order in which tiles take them.
#pragma once
#include "gemm_simd.h"
#include "simd_reduce.h"
#include "online_softmax.h"

#ifdef __AVX512BF16__

namespace {

constexpr int FOLDED = 128;  // queries of a task: rows times the heads of a group
constexpr int STRIDE = SIDE * sizeof(float);  // bytes of a tile's row
constexpr int STEPS = 4;                      // of DEEP keys in a block
constexpr int BLOCK_KEYS = STEPS * DEEP;      // read at a time

#ifndef __AMX_BF16__

// Adds the products of a tile of rows with one of columns [16 pairs, 16 columns, 2] to sums
// [16 rows, 16 columns]. Rows, and the pairs of a row, are so many elements apart.
template <int Row, int Pair>
inline void add_tile(float (*sums)[LANES], const uint16_t* rows, const uint16_t* columns) {
  Floats kept[SIDE][1];
  std::memcpy(kept, sums, sizeof kept);
#pragma GCC unroll 2
  for (int p = 0; p < SIDE; ++p) {
    const Words column[1] = {read<Words>(columns + p * DEEP)};
    add_pairs(kept, column, rows + p * Pair, Row);
  }
  std::memcpy(sums, kept, sizeof kept);
}

#endif

// What a task keeps; sixteen queries are a set.
template <int D>
struct Attended {
  static constexpr int DEPTHS = (D + DEEP - 1) / DEEP, SETS = FOLDED / SIDE, BANDS = D / SIDE;
  alignas(64) uint16_t queries[SETS][DEPTHS][TILE] = {};      // [16 pairs of d, 16 queries, 2]
  uint16_t keys[2 * STEPS][DEPTHS][TILE] = {};                // [16 keys, 32 of d]
  alignas(64) uint16_t values[STEPS][BANDS][TILE];            // as `turn_values` leaves them
  alignas(64) float scores[STEPS * DEEP][LANES];              // [key, query]
  alignas(64) uint16_t weights[STEPS][TILE];                  // [16 pairs of keys, 16 queries, 2]
  alignas(64) float sums[SETS][D][LANES] = {};                // [d, query]
  Floats most[SETS], norm[SETS];

  // Elements of a row at a depth: the last may be half empty.
  static constexpr int filled(int depth) { return D - depth * DEEP < DEEP ? SIDE : DEEP; }

  void read_query(int m, const bf16* row) {
    for (int c = 0; c < DEPTHS; ++c)
      std::memcpy(queries[m / SIDE][c] + m % SIDE * DEEP, row + c * DEEP, filled(c) * sizeof *row);
  }

  // Turns the rows that were read into columns.
  void start(int set, const float (&most_of)[SIDE], const float (&norm_of)[SIDE]) {
    for (int c = 0; c < DEPTHS; ++c) {
      Words pairs[LANES];
      std::memcpy(pairs, queries[set][c], sizeof pairs);
      transpose(pairs);
      std::memcpy(queries[set][c], pairs, sizeof pairs);
    }
    most[set] = load(most_of);
    norm[set] = load(norm_of);
  }

  // Reads `here` keys and values; beyond the end the last stand in, to be masked. The block behind
  // is fetched meanwhile: memory is read while products keep the core busy.
  void read_block(const bf16* from, const bf16* value, int64_t stride, int here) {
    const auto at = [&](int j) { return (j < here ? j : here - 1) * stride; };
    const int64_t behind = STEPS * DEEP * stride;
    for (int s = 0; s * DEEP < here; ++s) {
      for (int j = s * DEEP; j < (s + 1) * DEEP; ++j)
        for (int c = 0; c < DEPTHS; ++c) {
          std::memcpy(keys[j / SIDE][c] + j % SIDE * DEEP, from + at(j) + c * DEEP,
                      filled(c) * sizeof *from);
          __builtin_prefetch(from + at(j) + behind + c * DEEP, 0, 2);
          __builtin_prefetch(value + at(j) + behind + c * DEEP, 0, 2);
        }
      for (int b = 0; b < BANDS; ++b) {
        Words pairs[LANES];
        for (int i = 0; i < LANES; ++i) {
          const int j = s * DEEP + 2 * i;
          Halves even, odd;
          std::memcpy(&even, value + at(j) + b * SIDE, sizeof even);
          std::memcpy(&odd, value + at(j + 1) + b * SIDE, sizeof odd);
          pairs[i] = __builtin_convertvector(odd, Words) << 16;
          pairs[i] |= __builtin_convertvector(even, Words);
        }
        turn_values(pairs);
        std::memcpy(values[s][b], pairs, sizeof pairs);
      }
    }
  }

  // Adds what a set's queries attend to among the first `count` keys of the block.
  void attend(int set, int count, const Sight& sight, float unit, const Shape& shape) {
    const int steps = (count + DEEP - 1) / DEEP;
    score(set, steps);
    show(scores[0], LANES, steps * DEEP, sight.first, sight.end, sight.partial(steps * DEEP), shape);
    weigh(set, steps, unit * 1.44269504f);
    add_all(set, steps);
  }

  // Scores become weights, and what was summed up shrinks if they are larger than any before.
  void weigh(int set, int steps, float scale) {
    Floats top = most[set];
    for (int j = 0; j < steps * DEEP; j += 4) {
      const Floats a = larger(load(scores[j]), load(scores[j + 1]));
      const Floats b = larger(load(scores[j + 2]), load(scores[j + 3]));
      top = larger(top, larger(a, b));
    }
    const Floats shrink = power_of_two((most[set] - top) * scale), shift = top * scale;
    Floats sum{};
    for (int j = 0; j < steps * DEEP; j += 2) {
      const Floats even = power_of_two(load(scores[j]) * scale - shift);
      const Floats odd = power_of_two(load(scores[j + 1]) * scale - shift);
      sum += even + odd;
      const Words pair = (Words(even) + 0x8000) >> 16 | ((Words(odd) + 0x8000) & 0xFFFF0000);
      std::memcpy(weights[j / DEEP] + j % DEEP * SIDE, &pair, sizeof pair);
    }
    most[set] = top;
    norm[set] = norm[set] * shrink + sum;
    if (any(shrink != 1.0f))
      for (int d = 0; d < D; ++d) store(sums[set][d], load(sums[set][d]) * shrink);
  }

#ifdef __AMX_BF16__

  // Pairs of keys [16, 16 of d] become [16 of d, 16 pairs], the rows of a tile.
  static void turn_values(Words (&pairs)[LANES]) { transpose(pairs); }

  void score(int set, int steps) {
    for (int s = 0; s < steps; ++s) {
      _tile_zero(0);
      _tile_zero(1);
      for (int c = 0; c < DEPTHS; ++c) {
        _tile_loadd(4, keys[2 * s][c], STRIDE);
        _tile_loadd(5, keys[2 * s + 1][c], STRIDE);
        _tile_loadd(6, queries[set][c], STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
      }
      _tile_stored(0, scores[s * DEEP], STRIDE);
      _tile_stored(1, scores[s * DEEP + SIDE], STRIDE);
    }
  }

  // Adds weighted values to up to four bands of sums from `band` on.
  template <int Bands>
  void add(int set, int band, int steps) {
    float(*to)[LANES] = sums[set] + band * SIDE;
    _tile_loadd(0, to, STRIDE);
    if (Bands > 1) _tile_loadd(1, to + SIDE, STRIDE);
    if (Bands > 2) _tile_loadd(2, to + 2 * SIDE, STRIDE);
    if (Bands > 3) _tile_loadd(3, to + 3 * SIDE, STRIDE);
    for (int s = 0; s < steps; ++s) {
      _tile_loadd(6, weights[s], STRIDE);
      _tile_loadd(4, values[s][band], STRIDE);
      if (Bands > 1) _tile_loadd(5, values[s][band + 1], STRIDE);
      _tile_dpbf16ps(0, 4, 6);
      if (Bands > 1) _tile_dpbf16ps(1, 5, 6);
      if (Bands > 2) _tile_loadd(4, values[s][band + 2], STRIDE);
      if (Bands > 3) _tile_loadd(5, values[s][band + 3], STRIDE);
      if (Bands > 2) _tile_dpbf16ps(2, 4, 6);
      if (Bands > 3) _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, to, STRIDE);
    if (Bands > 1) _tile_stored(1, to + SIDE, STRIDE);
    if (Bands > 2) _tile_stored(2, to + 2 * SIDE, STRIDE);
    if (Bands > 3) _tile_stored(3, to + 3 * SIDE, STRIDE);
  }

  void add_all(int set, int steps) {
    for (int band = 0; band + 4 <= BANDS; band += 4) add<4>(set, band, steps);
    if constexpr (BANDS % 4) add<BANDS % 4>(set, BANDS / 4 * 4, steps);
  }

#else

  // Pairs of keys stay [16, 16 of d]: single pairs are read as well across rows as along them.
  static void turn_values(Words (&)[LANES]) {}

  void score(int set, int steps) {
    std::memset(scores, 0, steps * sizeof(float[DEEP][LANES]));
    for (int j = 0; j < 2 * steps; ++j)
      for (int c = 0; c < DEPTHS; ++c)
        add_tile<DEEP, 2>(scores + j * SIDE, keys[j][c], queries[set][c]);
  }

  void add_all(int set, int steps) {
    for (int band = 0; band < BANDS; ++band)
      for (int s = 0; s < steps; ++s)
        add_tile<2, DEEP>(sums[set] + band * SIDE, values[s][band], weights[s]);
  }

#endif

  // Writes what query `m` attended to.
  void write(int m, bf16* to) {
    const int set = m / SIDE;
    if (m % SIDE == 0) finish(set);
    for (int band = 0; band < BANDS; ++band)
      store(to + band * SIDE, load(sums[set][band * SIDE + m % SIDE]));
  }

  // Sums become [band, query, 16 of d], divided.
  void finish(int set) {
    const Floats inverse = 1.0f / norm[set];
    for (int band = 0; band < D; band += SIDE) {
      Floats v[LANES];
      for (int i = 0; i < SIDE; ++i) v[i] = load(sums[set][band + i]) * inverse;
      transpose(v);
      for (int i = 0; i < SIDE; ++i) store(sums[set][band + i], v[i]);
    }
  }
};

}  // namespace

#endif
