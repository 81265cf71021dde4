// Attention of packed rows over contiguous slabs of keys and values.
#pragma once
#include <omp.h>

#include "attend_pairs.h"
#include "attend_tiles.h"

namespace {

constexpr int64_t PARALLEL = 1 << 12;  // scores from which threads pay

// Reads `here` rows in whole runs of lanes; beyond the end the last row stands in, to be masked.
template <class T, int Chunks>
inline void read_block(Floats (&block)[BLOCK][Chunks], const T* from, int64_t stride, int here,
                       int runs) {
  for (int j = 0; j < runs * LANES; ++j) {
    const T* row = from + (j < here ? j : here - 1) * stride;
    for (int c = 0; c < Chunks; ++c) block[j][c] = load(row + c * LANES);
  }
}

// Rows [first, first + rows) of a segment, for the query heads that share key head `head`.
// Every query takes the same steps whatever runs beside it.
template <class T, int Chunks>
void attend_head(const T* query, const T* keys, const T* values, T* out, const Segment& segment,
                 int first, int rows, int head, const Shape& shape) {
  constexpr int D = Chunks * LANES;
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
    norm[m] = Floats{};
    most[m] = Floats{} - INFINITY;
  }
  keys += segment.start * slot_stride + head * D;
  values += segment.start * slot_stride + head * D;
  const int64_t base = segment.length + first;  // keys that the first row sees
  const int64_t length = base + rows - 1;
  Floats block[BLOCK][Chunks], weights[MAX_QUERIES][RUNS];
  for (int64_t at = 0; at < length; at += BLOCK) {
    const int here = length - at < BLOCK ? int(length - at) : BLOCK;
    const int runs = (here + LANES - 1) / LANES;
    read_block<T, Chunks>(block, keys + at * slot_stride, slot_stride, here, runs);
    for (int m = 0; m < queries; ++m) {
      const int64_t seen = base + m / group - at;
      for (int r = 0; r < runs; ++r) {
        Floats dots[LANES];
        for (int j = 0; j < LANES; ++j) {
          const Floats* k = block[r * LANES + j];
          dots[j] = q[m][0] * k[0];
          for (int c = 1; c < Chunks; ++c) dots[j] += q[m][c] * k[c];
        }
        weights[m][r] = visible(sums_of(dots), r, seen);
      }
      weigh(weights[m], runs, most[m], norm[m], acc[m]);
    }
    read_block<T, Chunks>(block, values + at * slot_stride, slot_stride, here, runs);
    for (int m = 0; m < queries; ++m) {
      const float* w = reinterpret_cast<const float*>(weights[m]);
      Floats even[Chunks], odd[Chunks];
      for (int c = 0; c < Chunks; ++c) even[c] = acc[m][c], odd[c] = Floats{};
      for (int j = 0; j < runs * LANES; j += 2) {
        for (int c = 0; c < Chunks; ++c) even[c] += w[j] * block[j][c];
        for (int c = 0; c < Chunks; ++c) odd[c] += w[j + 1] * block[j + 1][c];
      }
      for (int c = 0; c < Chunks; ++c) acc[m][c] = even[c] + odd[c];
    }
  }
  for (int m = 0; m < queries; ++m) {
    const int64_t row = segment.row + first + m / group;
    T* to = out + (row * shape.heads + head * group + m % group) * D;
    const Floats inverse = 1.0f / sum_of(norm[m]);
    for (int c = 0; c < Chunks; ++c) store(to + c * LANES, acc[m][c] * inverse);
  }
}

// Rows [first, first + rows) of segment `s`, for the query heads that share key head `head`.
struct Task {
  int64_t s;
  int first, rows, head;
};

// What a team does for a batch, of whose segments the first are `prompts`. Longest come first, as
// they end last.
class Tasks {
 public:
  Tasks(const Segment* segments, int64_t count, int64_t prompts, const Shape& shape, int team)
      : segments(segments), prompts(prompts), heads(shape.kv_heads),
        group(int(shape.heads / shape.kv_heads)) {
    int64_t tasks = 0;
    for (int64_t s = 0; s < count; s++) tasks += parts(s) * heads;
    // The last ones, if they are fewer than the team, are cut so that nobody waits for them.
    const int64_t last = tasks % team;
    whole = tasks - last;
    pieces = last ? team / last : 1;
    total = whole + last * pieces;
  }

  Task operator[](int64_t i) const {
    const int64_t piece = i < whole ? 0 : (i - whole) % pieces, cut = i < whole ? 1 : pieces;
    const int64_t task = i < whole ? i : whole + (i - whole) / pieces;
    int64_t s = 0, part = task / heads;
    for (; part >= parts(s); s++) part -= parts(s);
    const int64_t first = part * step(s), left = segments[s].count - first;
    const int64_t rows = left < step(s) ? left : step(s);
    const int64_t from = rows * piece / cut, to = rows * (piece + 1) / cut;
    return {s, int(first + from), int(to - from), int(task % heads)};
  }

  int64_t total;

 private:
  int64_t step(int64_t s) const { return (s < prompts ? FOLDED : MAX_QUERIES) / group; }
  int64_t parts(int64_t s) const { return (segments[s].count + step(s) - 1) / step(s); }

  const Segment* segments;
  int64_t prompts, heads, whole, pieces;
  int group;
};

// All tasks of a batch, by the team of the enclosing parallel region: those of the first
// segments, `prompts` of them, by tiles.
template <class T, int D>
void attend_all(const T* query, const T* keys, const T* values, const Segment* segments,
                int64_t count, int64_t prompts, const Shape& shape, T* out) {
  const int team = omp_get_num_threads();
  const Tasks tasks(segments, count, prompts, shape, team);
#pragma omp for schedule(dynamic)
  for (int64_t i = 0; i < tasks.total; i++) {
    const auto [s, first, rows, head] = tasks[i];
    if (!rows) continue;
    if constexpr (TILED<T>)
      if (s < prompts) {
        attend_by_tiles<D>(query, keys, values, out, segments[s], first, rows, head, shape);
        continue;
      }
    if constexpr (PAIRED<T, D>) {
      const Task later = tasks[i + team < tasks.total ? i + team : i];
      attend_by_pairs<D>(query, keys, values, out, segments[s], first, rows, head, shape,
                         segments[later.s].start * shape.slot_stride + later.head * D);
    } else {
      attend_head<T, D / LANES>(query, keys, values, out, segments[s], first, rows, head, shape);
    }
  }
}

// `attend_all` for heads of this width; null where it, or groups of this size, are not built.
template <class T>
decltype(&attend_all<T, 16>) attend_for(int64_t dim, int64_t group) {
  if (group > MAX_QUERIES) return nullptr;
  switch (dim) {
    case 16: return attend_all<T, 16>;
    case 32: return attend_all<T, 32>;
    case 64: return attend_all<T, 64>;
    case 80: return attend_all<T, 80>;
    case 96: return attend_all<T, 96>;
    case 128: return attend_all<T, 128>;
    case 256: return attend_all<T, 256>;
    default: return nullptr;
  }
}

}  // namespace
