#include "linear.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

// Asks the system for tiles, once in a process; 0 where they may be used.
extern "C" int hc_start_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) != 0; }

// See `linear_all`.
extern "C" void hc_linear(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                          int64_t count, int64_t outputs, int64_t width, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  linear_all(rows, weights, bias, out, count, outputs, width);
}

#else

extern "C" int hc_start_tiles() { return 1; }
extern "C" void hc_linear(const void*, const uint16_t*, const float*, bf16*, int64_t, int64_t,
                          int64_t, int) {}

#endif
