// Tiles of bf16 elements, the order in which products take them, and AMX's way to name them.
#pragma once
#include <cstdint>

#include "simd.h"

namespace {

constexpr int SIDE = 16;           // rows of a tile; 32 bf16 or 16 fp32 in each
constexpr int DEEP = 2 * SIDE;     // inner elements of a tile
constexpr int TILE = SIDE * DEEP;  // elements

#ifdef __AMX_BF16__

// Tiles 0 to 3 hold results, 4 and 5 rows, 6 and 7 weights. Without `lower` rows all results are
// of the upper ones.
inline void configure(int upper, int lower) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const int below = lower ? lower : upper;
  const int rows[8] = {upper, upper, below, below, upper, below, SIDE, SIDE};
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = rows[i];
  // GCC's intrinsic says that it reads eight bytes; the others would be optimized away.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}
inline void release() { _tile_release(); }

#else

inline void configure(int, int) {}
inline void release() {}

#endif

}  // namespace
