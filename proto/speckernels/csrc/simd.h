// Vectors of the machine's width: what all kernels share. All arithmetic is in fp32.
//
// A kernel is compiled once for each level of `levels.py`, with the flags of that level.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// As many as fit into a register: wider vectors would be kept in memory between two steps.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Longs = uint64_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

template <class Vector>
inline Vector read(const void* from) {
  Vector out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline float load(float value) { return value; }
inline float load(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline Floats load(const float* from) { return read<Floats>(from); }
inline Floats load(const bf16* from) {
  return Floats(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// The upper halves of numbers that are rounded to bf16: to nearest, ties to even.
inline Words rounded(Floats values) {
  const Words bits = Words(values);
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

inline void store(bf16* to, Floats values) {
#if defined(__AVX512BF16__)
  const auto halves = _mm512_cvtneps_pbh(__m512(values));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const auto words = __m256i(rounded(values));
  const auto halves =
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
  const auto halves = __builtin_convertvector(rounded(values), Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

// Two vectors at once.
inline void store(bf16* to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  const auto halves = _mm512_cvtne2ps_pbh(__m512(second), __m512(first));
  std::memcpy(to, &halves, sizeof halves);
#else
  store(to, first);
  store(to + LANES, second);
#endif
}

// 0, 1, 2, ...
inline Ints lanes() {
  Ints out;
  for (int j = 0; j < LANES; j++) out[j] = j;
  return out;
}

// The first `count` elements, if any, `rest` behind them.
template <class T>
inline Floats load_some(const T* from, int count, float rest) {
  T some[LANES] = {};
  if (count > 0) std::memcpy(some, from, count * sizeof(T));
  return lanes() < count ? load(some) : Floats{} + rest;
}

inline bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(__m256i(mask), __m256i(mask));
#else
  const Longs both = Longs(mask);
  return (both[0] | both[1]) != 0;
#endif
}

template <int Width>
inline Floats rotated(Floats v) {
  return __builtin_shuffle(v, (lanes() + Width) % LANES);
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The largest lane, and the sum of all lanes, in every lane.
inline Floats max_of(Floats v) {
  if constexpr (LANES > 8) v = larger(v, rotated<8 % LANES>(v));
  if constexpr (LANES > 4) v = larger(v, rotated<4 % LANES>(v));
  v = larger(v, rotated<2>(v));
  return larger(v, rotated<1>(v));
}

inline Floats sum_of(Floats v) {
  if constexpr (LANES > 8) v += rotated<8 % LANES>(v);
  if constexpr (LANES > 4) v += rotated<4 % LANES>(v);
  v += rotated<2>(v);
  return v + rotated<1>(v);
}

inline float sum(Floats values) { return sum_of(values)[0]; }
inline float largest(Floats values) { return max_of(values)[0]; }

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87.
inline Floats exp_of_negative(Floats x) {
  const Ints in_reach = x > -87.0f;
  x = x > -87.0f ? x : Floats{} - 87.0f;
  const Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // nearest integer
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints scale = (__builtin_convertvector(n, Ints) + 127) << 23;
  return Floats(Ints(p * Floats(scale)) & in_reach);
}

// 2 to the power of x <= 0, within 5e-5 of itself: far less than bf16 tells apart. 0 below -126.
inline Floats power_of_two(Floats x) {
  const Ints in_reach = x > -126.0f;
  const Floats shifted = x + 12582912.0f;  // the nearest integer in the lowest bits
  const Floats r = x - (shifted - 12582912.0f);
  Floats p = r * 9.6181291e-3f + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return Floats((Ints(p) + (Ints(shifted) << 23)) & in_reach);
}

// The largest logit; false if one is not a number or the largest not finite.
template <class T>
inline bool maximum(const T* logits, int64_t width, float& out) {
  Floats best = Floats{} - INFINITY;
  Ints odd{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Floats values = i + LANES <= width ? load(logits + i)
                                             : load_some(logits + i, int(width - i), -INFINITY);
    best = values > best ? values : best;
    odd |= values != values;
  }
  out = largest(best);
  return !any(odd) && out < INFINITY && out > -INFINITY;
}
