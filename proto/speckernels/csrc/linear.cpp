// How a team shares products.
#include "linear.h"

#include <omp.h>

#include <algorithm>

#include "gemm_simd.h"
#include "gemm_amx.h"

namespace {

// The results of a row with a column of tiles, as they leave.
template <class T>
inline void store_results(T* to, const float* results, const float* bias) {
  for (int v = 0; v < SIDE; v += LANES)
    store(to + v, bias ? load(results + v) + load(bias + v) : load(results + v));
}

// This thread's share of `linear_all` for `count` rows.
template <class T>
void linear_own(Products& products, const uint16_t* rows, const uint16_t* weights,
                const float* bias, T* out, int64_t count, int64_t outputs, int64_t width) {
  const int64_t team = omp_get_num_threads(), own = omp_get_thread_num(), tiles = outputs / SIDE;
  const int64_t end = tiles * (own + 1) / team;
  const int64_t parts = (count + Products::ROWS - 1) / Products::ROWS;
  const auto* from = products.take(rows, count, width);
  alignas(64) float results[Products::COLUMNS][TILE / 2];
  for (int64_t n = tiles * own / team, columns; n < end; n += columns) {
    columns = std::min(Products::columns(count), end - n);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t m = count * part / parts, here = count * (part + 1) / parts - m;
      products.run(from + m * width, int(here), width, weights + n * SIDE * width, columns, part,
                   parts, results);
      for (int i = 0; i < here; ++i)
        for (int64_t s = 0; s < columns; ++s) {
          const int64_t column = (n + s) * SIDE;
          store_results(out + (m + i) * outputs + column,
                        results[i < SIDE ? s : 2 + s] + i % SIDE * SIDE,
                        bias ? bias + column : nullptr);
        }
    }
  }
}

}  // namespace

template <class T>
void linear_all(const void* rows, const uint16_t* weights, const float* bias, T* out,
                int64_t count, int64_t outputs, int64_t width) {
  const auto* from = static_cast<const uint16_t*>(rows);
  Products products;
  for (int64_t m = 0, here; m < count; m += here) {
    here = std::min(Products::group(width), count - m);
    linear_own(products, from + m * width, weights, bias, out + m * outputs, here, outputs, width);
  }
#pragma omp barrier
}

template void linear_all(const void*, const uint16_t*, const float*, bf16*, int64_t, int64_t,
                         int64_t);

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

// Asks the system for tiles, once in a process; 0 where products can run.
extern "C" int hc_start_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) != 0; }

#else

extern "C" int hc_start_tiles() { return 0; }

#endif

// See `linear_all`; `out` is bf16 or fp32.
extern "C" void hc_linear(int is_bf16, const void* rows, const uint16_t* weights,
                          const float* bias, void* out, int64_t count, int64_t outputs,
                          int64_t width, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  is_bf16 ? linear_all(rows, weights, bias, static_cast<bf16*>(out), count, outputs, width)
          : linear_all(rows, weights, bias, static_cast<float*>(out), count, outputs, width);
}
