// Steps across the lanes of vectors.
#pragma once
#include "simd.h"

namespace {

// Halves the partial sums in each run of 2 * Width lanes: a's runs, then b's.
template <int Width>
inline Floats fold(Floats a, Floats b) {
  Ints low = lanes() / Width * 2 * Width + lanes() % Width;
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + Width);
}

template <int Count>
inline Floats fold_all(const Floats (&v)[Count]) {
  if constexpr (Count == 1) {
    return v[0];
  } else {
    Floats half[Count / 2];
    for (int i = 0; i < Count / 2; ++i) half[i] = fold<Count / 2>(v[2 * i], v[2 * i + 1]);
    return fold_all(half);
  }
}

// Lane j of the result is the sum of all lanes of v[j].
inline Floats sums_of(const Floats (&v)[LANES]) { return fold_all(v); }

// Lane i of vector j becomes lane j of vector i, for those whose numbers differ by Width.
template <int Width, class Vector>
inline void swap_lanes(Vector (&v)[LANES]) {
  Ints low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = i & Width ? LANES + i - Width : i;
    high[i] = i & Width ? LANES + i : i + Width;
  }
  for (int i = 0; i < LANES; ++i) {
    if (i & Width) continue;
    const Vector a = v[i], b = v[i + Width];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + Width] = __builtin_shuffle(a, b, high);
  }
}

// Lane i of vector j becomes lane j of vector i.
template <class Vector>
inline void transpose(Vector (&v)[LANES]) {
  if constexpr (LANES > 8) swap_lanes<8 % LANES>(v);
  if constexpr (LANES > 4) swap_lanes<4 % LANES>(v);
  swap_lanes<2>(v);
  swap_lanes<1>(v);
}

}  // namespace
