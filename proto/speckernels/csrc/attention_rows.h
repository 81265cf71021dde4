// Attention of single rows in fp32.
#pragma once
#include "query_segment.h"
#include "online_softmax.h"

namespace {

// Reads `here` rows in whole runs of lanes; beyond the end the last row stands in, to be masked.
// Rows so far behind are fetched meanwhile.
template <class T, int Chunks>
inline void read_block(Floats (&block)[BLOCK][Chunks], const T* from, int64_t stride, int here,
                       int runs, int64_t behind) {
  constexpr int LINE = 64 / sizeof(T);
  for (int j = 0; j < runs * LANES; ++j) {
    const T* row = from + (j < here ? j : here - 1) * stride;
    for (int c = 0; c < Chunks; ++c) block[j][c] = load(row + c * LANES);
    for (int d = 0; d < Chunks * LANES; d += LINE) __builtin_prefetch(row + behind + d, 0, 2);
  }
}

// Rows [first, first + rows) of a segment, for the query heads that share key head `head`.
// Every query takes the same steps whatever runs beside it. `next` is where the keys and values of
// a later task begin.
template <class T, int Chunks>
void attend_head(const T* query, const T* keys, const T* values, T* out, const Segment& segment,
                 int first, int rows, int head, const Shape& shape, int64_t next) {
  // Few sums would wait for themselves, and many do not fit into the registers.
  constexpr int D = Chunks * LANES, CHAINS = Chunks > 4 ? 1 : 2;
  const int group = int(shape.heads / shape.kv_heads);
  const int64_t slot_stride = shape.slot_stride;
  const int queries = rows * group;
  Floats q[MAX_QUERIES][Chunks], acc[MAX_QUERIES][Chunks];
  Floats norm[MAX_QUERIES], most[MAX_QUERIES];
  for (int m = 0; m < queries; ++m) {
    const int64_t row = segment.row + first + m / group;
    const T* from = query + row * shape.query_stride + (head * group + m % group) * D;
    for (int c = 0; c < Chunks; ++c) {
      q[m][c] = load(from + c * LANES) * shape.scale;
      acc[m][c] = Floats{};
    }
    start(most[m], norm[m], shape, head * group + m % group);
  }
  const int64_t origin = segment.start * slot_stride + head * D;
  keys += origin, values += origin;
  const int64_t base = segment.length + first;  // keys that the first row sees
  const int64_t length = base + rows - 1;
  Floats block[BLOCK][Chunks], weights[MAX_QUERIES][RUNS];
  for (int64_t at = shape.first(base) / BLOCK * BLOCK; at < length; at += BLOCK) {
    const int here = length - at < BLOCK ? int(length - at) : BLOCK;
    const int runs = (here + LANES - 1) / LANES;
    const int64_t behind =
        at + BLOCK < length ? BLOCK * slot_stride : next - origin - at * slot_stride;
    read_block<T, Chunks>(block, keys + at * slot_stride, slot_stride, here, runs, behind);
    for (int m = 0; m < queries; ++m) {
      const int64_t end = base + m / group, begin = shape.first(end);
      for (int r = 0; r < runs; ++r) {
        Floats dots[LANES];
        for (int j = 0; j < LANES; ++j) {
          const Floats* k = block[r * LANES + j];
          dots[j] = q[m][0] * k[0];
          for (int c = 1; c < Chunks; ++c) dots[j] += q[m][c] * k[c];
        }
        weights[m][r] = visible(capped(sums_of(dots), shape), r, begin - at, end - at);
      }
      weigh(weights[m], runs, most[m], norm[m], acc[m]);
    }
    read_block<T, Chunks>(block, values + at * slot_stride, slot_stride, here, runs, behind);
    for (int m = 0; m < queries; ++m) {
      const float* w = reinterpret_cast<const float*>(weights[m]);
      Floats sums[CHAINS][Chunks] = {};
      for (int c = 0; c < Chunks; ++c) sums[0][c] = acc[m][c];
      for (int j = 0; j < runs * LANES; j += CHAINS)
        for (int i = 0; i < CHAINS; ++i)
          for (int c = 0; c < Chunks; ++c) sums[i][c] += w[j + i] * block[j + i][c];
      for (int c = 0; c < Chunks; ++c)
        acc[m][c] = CHAINS > 1 ? sums[0][c] + sums[CHAINS - 1][c] : sums[0][c];
    }
  }
  for (int m = 0; m < queries; ++m) {
    const int64_t row = segment.row + first + m / group;
    T* to = out + (row * shape.heads + head * group + m % group) * D;
    const Floats inverse = 1.0f / sum_of(norm[m]);
    for (int c = 0; c < Chunks; ++c) store(to + c * LANES, acc[m][c] * inverse);
  }
}

}  // namespace
