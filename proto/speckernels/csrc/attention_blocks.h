// What a prompt's attention keeps where vectors do not multiply pairs of bf16: all of it in fp32.
#pragma once
#include "gemm_simd.h"
#include "online_softmax.h"

#ifndef __AVX512BF16__

namespace {

constexpr int BLOCK_KEYS = 64;  // read at a time
constexpr int FOLDED = 128;     // queries of a task: rows times the heads of a group

// `Rows` rows [k] times columns [k, 16], to out [rows, 16], whose numbers are added where `Added`.
// Elements of `rows` are so many apart along a row's k, and from row to row.
template <bool Added>
inline void multiply(float (*out)[SIDE], int rows, const float* from, int row_step, int step,
                     const float (*columns)[SIDE], int depth) {
  constexpr int ROWS = LANES == 16 ? 8 : 16 / SPLIT / 2;  // whose sums fit into the registers
  for (int first = 0; first < rows; first += ROWS, from += ROWS * row_step) {
    Floats sums[ROWS][SPLIT] = {};
    if (Added) std::memcpy(sums, out[first], sizeof sums);
    for (int k = 0; k < depth; ++k)
      for (int v = 0; v < SPLIT; ++v) {
        const Floats column = load(columns[k] + v * LANES);
        for (int r = 0; r < ROWS; ++r) sums[r][v] += column * from[r * row_step + k * step];
      }
    std::memcpy(out[first], sums, sizeof sums);
  }
}

// As in attend_tiles.h; sixteen queries are a set.
template <int D>
struct Attended {
  static constexpr int SETS = FOLDED / SIDE;
  alignas(64) float queries[SETS][D][SIDE] = {};  // [d, query]
  alignas(64) float keys[BLOCK_KEYS][D], values[BLOCK_KEYS][D];
  alignas(64) float scores[BLOCK_KEYS][SIDE];   // [key, query]
  alignas(64) float sums[SETS][D][SIDE] = {};   // [d, query]
  Floats most[SETS][SPLIT], norm[SETS][SPLIT];

  void read_query(int m, const bf16* row) {
    for (int d = 0; d < D; ++d) queries[m / SIDE][d][m % SIDE] = load(row[d]);
  }

  void start(int set, const float (&most_of)[SIDE], const float (&norm_of)[SIDE]) {
    for (int v = 0; v < SPLIT; ++v) {
      most[set][v] = load(most_of + v * LANES);
      norm[set][v] = load(norm_of + v * LANES);
    }
  }

  // Reads `here` keys and values; beyond the end the last stand in, to be masked. The block behind
  // is fetched meanwhile: memory is read while products keep the core busy.
  void read_block(const bf16* key, const bf16* value, int64_t stride, int here) {
    const int64_t behind = BLOCK_KEYS * stride;
    for (int j = 0; j < BLOCK_KEYS && j / SIDE * SIDE < here; ++j) {
      const int64_t at = (j < here ? j : here - 1) * stride;
      for (int d = 0; d < D; d += LANES) {
        store(keys[j] + d, load(key + at + d));
        store(values[j] + d, load(value + at + d));
      }
      for (int d = 0; d < D; d += DEEP) {
        __builtin_prefetch(key + at + behind + d, 0, 2);
        __builtin_prefetch(value + at + behind + d, 0, 2);
      }
    }
  }

  // Adds what a set's queries attend to among the first `count` keys of the block.
  void attend(int set, int count, const Sight& sight, float unit, const Shape& shape) {
    count = (count + SIDE - 1) / SIDE * SIDE;
    multiply<false>(scores, count, keys[0], D, 1, queries[set], D);
    for (int v = 0; v < SPLIT; ++v) {
      show(scores[0] + v * LANES, SIDE, count, sight.first + v * LANES, sight.end + v * LANES,
           sight.partial(count), shape);
      weigh(set, v, count, unit * 1.44269504f);
    }
    multiply<true>(sums[set], D, values[0], 1, D, scores, count);
  }

  // Scores of a vector of queries become weights, and what was summed up shrinks if they are
  // larger than any before.
  void weigh(int set, int v, int count, float scale) {
    const auto at = [&](int j) { return scores[j] + v * LANES; };
    Floats top = most[set][v];
    for (int j = 0; j < count; ++j) top = larger(top, load(at(j)));
    const Floats shrink = power_of_two((most[set][v] - top) * scale), shift = top * scale;
    Floats sum[2] = {};
    for (int j = 0; j < count; ++j) {
      const Floats weight = power_of_two(load(at(j)) * scale - shift);
      sum[j % 2] += weight;
      store(at(j), weight);
    }
    most[set][v] = top;
    norm[set][v] = norm[set][v] * shrink + (sum[0] + sum[1]);
    if (any(shrink != 1.0f))
      for (int d = 0; d < D; ++d) {
        float* own = sums[set][d] + v * LANES;
        store(own, load(own) * shrink);
      }
  }

  // Writes what query `m` attended to.
  void write(int m, bf16* to) const {
    const int set = m / SIDE, i = m % SIDE;
    float row[D];
    const float inverse = 1.0f / reinterpret_cast<const float*>(norm[set])[i];
    for (int d = 0; d < D; ++d) row[d] = sums[set][d][i] * inverse;
    for (int d = 0; d < D; d += LANES) store(to + d, load(row + d));
  }
};

}  // namespace

#endif
