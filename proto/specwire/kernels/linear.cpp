#include "linear.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

// Asks the system for tiles, once in a process; 0 where products can run.
extern "C" int hc_start_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) != 0; }

#else

extern "C" int hc_start_tiles() { return 0; }

#endif

// See `linear_all`.
extern "C" void hc_linear(const void* rows, const uint16_t* weights, const float* bias, bf16* out,
                          int64_t count, int64_t outputs, int64_t width, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  linear_all(rows, weights, bias, out, count, outputs, width);
}
