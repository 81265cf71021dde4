#include "attend.h"

extern "C" int hc_start_tiles();

namespace {

template <class T>
int attend(const void* query, const void* keys, const void* values, const Segment* segments,
           int64_t count, int64_t prompts, int64_t dim, const Shape& shape, void* out, int threads) {
  const auto run = attend_for<T>(dim, shape.heads / shape.kv_heads);
  if (!run) return 0;
  const bool tiled = TILED<T> && prompts && hc_start_tiles() == 0;
  if (!tiled) segments += prompts, count -= prompts, prompts = 0;
  int64_t scores = 0;
  for (int64_t s = 0; s < count; s++)
    scores += segments[s].count * (segments[s].length + segments[s].count) * shape.heads;
#pragma omp parallel num_threads(threads) if (threads > 1 && scores > PARALLEL)
  run(static_cast<const T*>(query), static_cast<const T*>(keys), static_cast<const T*>(values),
      segments, count, prompts, shape, static_cast<T*>(out));
  return tiled ? 2 : 1;
}

}  // namespace

// Strides are in elements; `out` is contiguous [rows, heads, dim], rows of no segment stay as they
// are. The first `prompts` segments take tiles. Returns 0 if heads of this width, or groups of
// this size, are not built; 1 if prompts are left; else 2.
extern "C" int hc_attend(int is_bf16, int64_t dim, const void* query, int64_t query_stride,
                         const void* keys, const void* values, int64_t slot_stride,
                         const int64_t* segments, int64_t count, int64_t prompts, int64_t heads,
                         int64_t kv_heads, float scale, void* out, int threads) {
  return (is_bf16 ? attend<bf16> : attend<float>)(
      query, keys, values, reinterpret_cast<const Segment*>(segments), count, prompts, dim,
      Shape{heads, kv_heads, query_stride, slot_stride, scale}, out, threads);
}
