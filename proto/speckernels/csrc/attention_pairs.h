// Attention of single rows on products of bf16 pairs.
//
// Once for all queries, pairs of a key's elements are spread over lanes, a key in each, and values
// are paired, those of two keys in a lane.
#pragma once
#include "query_segment.h"
#include "online_softmax.h"

namespace {

template <class T, int D>
constexpr bool PAIRED = false;  // whether heads of this width run by pairs

// As `attend_head`; `next` is where the keys and values of a later task begin.
template <int D>
void attend_by_pairs(const bf16* query, const bf16* keys, const bf16* values, bf16* out,
                     const Segment& segment, int first, int rows, int head, const Shape& shape,
                     int64_t next);

#ifdef __AVX512BF16__

constexpr int WIDTH = 2 * LANES;  // elements of a vector

template <int D>
constexpr bool PAIRED<bf16, D> = D % WIDTH == 0;

inline Floats add_products(Floats sums, Ints a, Ints b) {
  return Floats(_mm512_dpbf16_ps(__m512(sums), __m512bh(__m512i(a)), __m512bh(__m512i(b))));
}

inline Ints vector_at(const bf16* from) {
  Ints out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// Scores of so many queries with runs of keys, whose pairs of elements lie as `spread_keys` leaves
// them.
template <int Queries, int Runs, int Pairs>
inline void score(const bf16* const* queries, const Ints (&spread)[RUNS][Pairs], float scale,
                  Floats (*scores)[RUNS]) {
  Floats sums[Queries][Runs] = {};
  for (int p = 0; p < Pairs; ++p)
    for (int m = 0; m < Queries; ++m) {
      int32_t pair;
      std::memcpy(&pair, queries[m] + 2 * p, sizeof pair);
      for (int r = 0; r < Runs; ++r)
        sums[m][r] = add_products(sums[m][r], spread[r][p], Ints{} + pair);
    }
  for (int m = 0; m < Queries; ++m)
    for (int r = 0; r < Runs; ++r) scores[m][r] = sums[m][r] * scale;
}

// The same for any number of queries, of one to `Runs` runs.
template <int Runs, int Pairs>
void score_all(const bf16* const* queries, int count, int runs, const Ints (&spread)[RUNS][Pairs],
               float scale, Floats (*scores)[RUNS]) {
  if constexpr (Runs > 1)
    if (runs < Runs) return score_all<Runs - 1>(queries, count, runs, spread, scale, scores);
  int m = 0;
  for (; m + 3 <= count; m += 3) score<3, Runs>(queries + m, spread, scale, scores + m);
  for (; m < count; ++m) score<1, Runs>(queries + m, spread, scale, scores + m);
}

template <int Vectors>
inline void fetch_row(const bf16* from) {
  for (int c = 0; c < Vectors; ++c) __builtin_prefetch(from + c * WIDTH, 0, 2);
}

// Pair p of a run's keys in the lanes of spread[p]. Rows so far behind are fetched meanwhile.
template <int Vectors>
inline void spread_keys(Ints (&spread)[LANES * Vectors], const bf16* const* rows, int64_t behind) {
  for (int c = 0; c < Vectors; ++c) {
    Ints lanes[LANES];
    for (int j = 0; j < LANES; ++j) lanes[j] = vector_at(rows[j] + c * WIDTH);
    transpose(lanes);
    for (int p = 0; p < LANES; ++p) spread[c * LANES + p] = lanes[p];
  }
  for (int j = 0; j < LANES; ++j) fetch_row<Vectors>(rows[j] + behind);
}

// Values of pairs of keys, a vector's elements 0 to 3 of each eight and then 4 to 7. Rows so far
// behind are fetched meanwhile.
template <int Vectors>
inline void pair_values(Ints (&pairs)[BLOCK / 2][2 * Vectors], const bf16* const (&rows)[BLOCK],
                        int keys, int64_t behind) {
  for (int j = 0; j < keys; j += 2) {
    fetch_row<Vectors>(rows[j] + behind);
    fetch_row<Vectors>(rows[j + 1] + behind);
    for (int c = 0; c < Vectors; ++c) {
      const auto even = __m512i(vector_at(rows[j] + c * WIDTH));
      const auto odd = __m512i(vector_at(rows[j + 1] + c * WIDTH));
      pairs[j / 2][2 * c] = Ints(_mm512_unpacklo_epi16(even, odd));
      pairs[j / 2][2 * c + 1] = Ints(_mm512_unpackhi_epi16(even, odd));
    }
  }
}

// Sums in the order of `pair_values`, as they leave.
inline void store_paired(bf16* to, Floats low, Floats high) {
  const Ints first{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
  store(to, __builtin_shuffle(low, high, first), __builtin_shuffle(low, high, first + 8));
}

template <int D>
void attend_by_pairs(const bf16* query, const bf16* keys, const bf16* values, bf16* out,
                     const Segment& segment, int first, int rows, int head, const Shape& shape,
                     int64_t next) {
  constexpr int VECTORS = D / WIDTH, SUMS = 2 * VECTORS;
  const int group = int(shape.heads / shape.kv_heads), queries = rows * group;
  const auto row = [&](int m) { return segment.row + first + m / group; };
  const auto place = [&](int m) { return (head * group + m % group) * D; };
  const bf16* q[MAX_QUERIES];
  Ints spread[RUNS][LANES * VECTORS], pairs[BLOCK / 2][SUMS];
  Floats acc[MAX_QUERIES][SUMS] = {}, norm[MAX_QUERIES], most[MAX_QUERIES];
  Floats weights[MAX_QUERIES][RUNS];
  for (int m = 0; m < queries; ++m) {
    q[m] = query + row(m) * shape.query_stride + place(m);
    start(most[m], norm[m], shape, head * group + m % group);
  }
  const int64_t stride = shape.slot_stride, from = segment.start * stride + head * D;
  const int64_t base = segment.length + first;  // keys that the first row sees
  const int64_t length = base + rows - 1;
  for (int64_t at = shape.first(base) / BLOCK * BLOCK; at < length; at += BLOCK) {
    const int here = length - at < BLOCK ? int(length - at) : BLOCK;
    const int runs = (here + LANES - 1) / LANES;
    // Beyond the end the last row stands in, to be masked.
    const bf16 *key[BLOCK], *value[BLOCK];
    for (int j = 0; j < runs * LANES; ++j) {
      const int64_t slot = from + (at + (j < here ? j : here - 1)) * stride;
      key[j] = keys + slot, value[j] = values + slot;
    }
    const int64_t behind = at + BLOCK < length ? BLOCK * stride : next - from - at * stride;
    for (int r = 0; r < runs; ++r) spread_keys<VECTORS>(spread[r], key + r * LANES, behind);
    score_all<RUNS>(q, queries, runs, spread, shape.scale, weights);
    for (int m = 0; m < queries; ++m) {
      const int64_t end = base + m / group, begin = shape.first(end);
      for (int r = 0; r < runs; ++r)
        weights[m][r] = visible(capped(weights[m][r], shape), r, begin - at, end - at);
      weigh(weights[m], runs, most[m], norm[m], acc[m]);
    }
    pair_values<VECTORS>(pairs, value, runs * LANES, behind);
    for (int m = 0; m < queries; ++m) {
      alignas(64) bf16 w[BLOCK];
      for (int r = 0; r < runs; ++r) store(w + r * LANES, weights[m][r]);
      Floats even[SUMS], odd[SUMS] = {};
      for (int c = 0; c < SUMS; ++c) even[c] = acc[m][c];
      for (int j = 0; j < runs * LANES; j += 4) {
        int32_t both[2];
        std::memcpy(both, w + j, sizeof both);
        for (int c = 0; c < SUMS; ++c)
          even[c] = add_products(even[c], pairs[j / 2][c], Ints{} + both[0]);
        for (int c = 0; c < SUMS; ++c)
          odd[c] = add_products(odd[c], pairs[j / 2 + 1][c], Ints{} + both[1]);
      }
      for (int c = 0; c < SUMS; ++c) acc[m][c] = even[c] + odd[c];
    }
  }
  for (int m = 0; m < queries; ++m) {
    bf16* to = out + row(m) * shape.heads * D + place(m);
    const Floats inverse = 1.0f / sum_of(norm[m]);
    for (int c = 0; c < VECTORS; ++c)
      store_paired(to + c * WIDTH, acc[m][2 * c] * inverse, acc[m][2 * c + 1] * inverse);
  }
}

#endif

}  // namespace
