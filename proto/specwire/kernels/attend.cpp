// Attention of rows over contiguous runs of cache slots, for rows too few to fill matrix tiles.
#include <vector>

#include "element.h"

namespace {

template <class T>
struct Cache {
  const T *keys, *values;
  int64_t stride;  // from slot to slot
};

// One key head for one row: its G queries, D wide, over `length` keys.
template <class T, int D, int G>
void attend_group(const T* query, const Cache<T>& cache, int64_t at, int64_t length, float scale,
                  T* out, float* weights) {
  constexpr int PARTS = D / LANES;
  const int64_t padded = (length + LANES - 1) / LANES * LANES;
  Floats q[G][PARTS];
  for (int h = 0; h < G; h++)
    for (int d = 0; d < PARTS; d++) q[h][d] = load(query + h * D + d * LANES) * scale;
  const T* key = cache.keys + at;
  for (int64_t k = 0; k < length; k++, key += cache.stride) {
    Floats dots[G]{};
    for (int d = 0; d < PARTS; d++) {
      const Floats part = load(key + d * LANES);
      for (int h = 0; h < G; h++) dots[h] += q[h][d] * part;
    }
    for (int h = 0; h < G; h++) weights[h * padded + k] = sum(dots[h]);
  }
  for (int h = 0; h < G; h++) {
    float* w = weights + h * padded;
    for (int64_t k = length; k < padded; k++) w[k] = -INFINITY;
    Floats top = load(w), total{};
    for (int64_t k = LANES; k < padded; k += LANES) top = load(w + k) > top ? load(w + k) : top;
    const float best = largest(top);
    for (int64_t k = 0; k < padded; k += LANES) {
      const Floats grown = exp_of_negative(load(w + k) - best);
      store(w + k, grown);
      total += grown;
    }
    const float inverse = 1.0f / sum(total);
    for (int64_t k = 0; k < padded; k += LANES) store(w + k, load(w + k) * inverse);
  }
  Floats sums[G][PARTS]{};
  const T* value = cache.values + at;
  for (int64_t k = 0; k < length; k++, value += cache.stride) {
    for (int d = 0; d < PARTS; d++) {
      const Floats part = load(value + d * LANES);
      for (int h = 0; h < G; h++) sums[h][d] += part * weights[h * padded + k];
    }
  }
  for (int h = 0; h < G; h++)
    for (int d = 0; d < PARTS; d++) store(out + h * D + d * LANES, sums[h][d]);
}

// A group of any size, in pieces whose queries and sums stay in registers.
template <class T, int D>
void attend_head(const T* query, const Cache<T>& cache, int64_t at, int64_t length, int64_t group,
                 float scale, T* out) {
  static thread_local std::vector<float> weights;
  weights.resize(3 * (length + LANES));
  int64_t h = 0;
  for (; h + 3 <= group; h += 3)
    attend_group<T, D, 3>(query + h * D, cache, at, length, scale, out + h * D, weights.data());
  for (; h + 2 <= group; h += 2)
    attend_group<T, D, 2>(query + h * D, cache, at, length, scale, out + h * D, weights.data());
  for (; h < group; h++)
    attend_group<T, D, 1>(query + h * D, cache, at, length, scale, out + h * D, weights.data());
}

template <class T, int D>
void attend_rows(const void* query, int64_t query_stride, const void* keys, const void* values,
                 int64_t slot_stride, const int64_t* starts, const int64_t* lengths, int64_t rows,
                 int64_t heads, int64_t kv_heads, float scale, void* out, int threads) {
  const Cache<T> cache{static_cast<const T*>(keys), static_cast<const T*>(values), slot_stride};
  const int64_t group = heads / kv_heads;
#pragma omp parallel for num_threads(threads) if (threads > 1) collapse(2) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < kv_heads; head++)
      attend_head<T, D>(static_cast<const T*>(query) + row * query_stride + head * group * D,
                        cache, starts[row] * slot_stride + head * D, lengths[row], group, scale,
                        static_cast<T*>(out) + (row * heads + head * group) * D);
}

}  // namespace

// Row r attends to slots [starts[r], starts[r] + lengths[r]). Strides are in elements; `out` is
// contiguous [rows, heads, dim]. Returns 0 if heads of this width are not built.
extern "C" int hc_attend(int is_bf16, int64_t dim, const void* query, int64_t query_stride,
                         const void* keys, const void* values, int64_t slot_stride,
                         const int64_t* starts, const int64_t* lengths, int64_t rows,
                         int64_t heads, int64_t kv_heads, float scale, void* out, int threads) {
  auto run = dim == 64    ? (is_bf16 ? attend_rows<bf16, 64> : attend_rows<float, 64>)
             : dim == 128 ? (is_bf16 ? attend_rows<bf16, 128> : attend_rows<float, 128>)
             : dim == 16  ? (is_bf16 ? attend_rows<bf16, 16> : attend_rows<float, 16>)
                          : nullptr;
  if (!run) return 0;
  run(query, query_stride, keys, values, slot_stride, starts, lengths, rows, heads, kv_heads,
      scale, out, threads);
  return 1;
}
