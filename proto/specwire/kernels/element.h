// Sixteen elements at a time: what all kernels share. All arithmetic is in fp32.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline Floats load(const float* from) {
  Floats out;
  std::memcpy(&out, from, sizeof out);
  return out;
}
inline Floats load(const bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return Floats(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void store(bf16* to, Floats values) {  // to nearest, ties to even
#if defined(__AVX512BF16__)
  const auto halves = _mm512_cvtneps_pbh(__m512(values));
#else
  const Words bits = Words(values);
  const Halves halves =
      __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

// Thirty-two elements at once.
inline void store(bf16* to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  const auto halves = _mm512_cvtne2ps_pbh(__m512(second), __m512(first));
  std::memcpy(to, &halves, sizeof halves);
#else
  store(to, first);
  store(to + LANES, second);
#endif
}

// The first `count` elements, `rest` behind them.
template <class T>
inline Floats load_some(const T* from, int count, float rest) {
  Floats out;
  for (int j = 0; j < LANES; j++) out[j] = j < count ? load(from[j]) : rest;
  return out;
}

inline float sum(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(values));
#else
  float out = 0;
  for (int j = 0; j < LANES; j++) out += values[j];
  return out;
#endif
}

inline float largest(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(__m512(values));
#else
  float out = values[0];
  for (int j = 1; j < LANES; j++) out = values[j] > out ? values[j] : out;
  return out;
#endif
}

inline bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#else
  int32_t out = 0;
  for (int j = 0; j < LANES; j++) out |= mask[j];
  return out != 0;
#endif
}

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
