// Steps across the lanes of vectors.
#pragma once
#include "element.h"

namespace {

template <int Width>
inline Floats rotated(Floats v) {
  Ints from;
  for (int i = 0; i < LANES; ++i) from[i] = (i + Width) % LANES;
  return __builtin_shuffle(v, from);
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The largest lane, and the sum of all lanes, in every lane.
inline Floats max_of(Floats v) {
  v = larger(v, rotated<8>(v));
  v = larger(v, rotated<4>(v));
  v = larger(v, rotated<2>(v));
  return larger(v, rotated<1>(v));
}

inline Floats sum_of(Floats v) {
  v += rotated<8>(v);
  v += rotated<4>(v);
  v += rotated<2>(v);
  return v + rotated<1>(v);
}

// Halves the partial sums in each run of 2 * Width lanes: a's runs, then b's.
template <int Width>
inline Floats fold(Floats a, Floats b) {
  Ints low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = i / Width * 2 * Width + i % Width;
    high[i] = low[i] + Width;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane j of the result is the sum of all lanes of v[j].
inline Floats sums_of(const Floats (&v)[LANES]) {
  Floats a[8], b[4];
  for (int i = 0; i < 8; ++i) a[i] = fold<8>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 4; ++i) b[i] = fold<4>(a[2 * i], a[2 * i + 1]);
  return fold<1>(fold<2>(b[0], b[1]), fold<2>(b[2], b[3]));
}

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

template <class Vector>
inline void transpose(Vector (&v)[LANES]) {
  swap_lanes<8>(v);
  swap_lanes<4>(v);
  swap_lanes<2>(v);
  swap_lanes<1>(v);
}

}  // namespace
