#include "attention.h"

#include <omp.h>

#include "attention_pairs.h"
#include "attention_rows.h"
#include "attention_tasks.h"

namespace {

constexpr int64_t PARALLEL = 1 << 12;  // scores from which threads pay

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
    if constexpr (BLOCKED<T>)
      if (s < prompts) {
        attend_prompt<D>(query, keys, values, out, segments[s], first, rows, head, shape);
        continue;
      }
    const Task later = tasks[i + team < tasks.total ? i + team : i];
    const int64_t next = segments[later.s].start * shape.slot_stride + later.head * D;
    if constexpr (PAIRED<T, D>) {
      attend_by_pairs<D>(query, keys, values, out, segments[s], first, rows, head, shape, next);
    } else {
      attend_head<T, D / LANES>(query, keys, values, out, segments[s], first, rows, head, shape,
                                next);
    }
  }
}

}  // namespace

template <class T>
Attend<T> attend_for(int64_t dim, int64_t group) {
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

template Attend<bf16> attend_for<bf16>(int64_t, int64_t);

namespace {

template <class T>
int attend(const void* query, const void* keys, const void* values, const Segment* segments,
           int64_t count, int64_t prompts, int64_t dim, const Shape& shape, void* out, int threads) {
  const auto run = attend_for<T>(dim, shape.heads / shape.kv_heads);
  if (!run) return 0;
  const bool tiled = BLOCKED<T> && prompts;
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
                         int64_t kv_heads, float scale, int64_t window, float softcap,
                         const float* sinks, void* out, int threads) {
  return (is_bf16 ? attend<bf16> : attend<float>)(
      query, keys, values, reinterpret_cast<const Segment*>(segments), count, prompts, dim,
      Shape{heads, kv_heads, query_stride, slot_stride, scale, window, softcap, sinks}, out,
      threads);
}
