// The words of keyed noise: Philox4x32-10, as specwire.philox writes it over arrays.
#pragma once
#include "simd.h"

constexpr uint32_t TOKEN_DOMAIN = 0x746F6B65;

struct Key {
  uint32_t position, choice, low, high;
};

// Both halves of the products of 32-bit words.
inline void multiply(Words a, uint32_t b, Words& high, Words& low) {
#if defined(__AVX512F__)
  const __m512i factor = _mm512_set1_epi32(int(b));
  const __m512i even = _mm512_mul_epu32(__m512i(a), factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(__m512i(a), 32), factor);
  high = Words(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
  low = Words(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
#elif defined(__AVX2__)
  const __m256i factor = _mm256_set1_epi32(int(b));
  const __m256i even = _mm256_mul_epu32(__m256i(a), factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(__m256i(a), 32), factor);
  high = Words(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  low = Words(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  const Longs even = (Longs(a) & 0xFFFFFFFF) * b, odd = (Longs(a) >> 32) * b;
  high = Words((even >> 32) | (odd & 0xFFFFFFFF00000000));
  low = a * b;
#endif
}

// Four words of each of as many blocks as there are lanes.
inline void philox(Words block, const Key& key, Words (&words)[4]) {
  Words c0 = Words{} + key.position, c1 = block;
  Words c2 = Words{} + key.choice, c3 = Words{} + TOKEN_DOMAIN;
  uint32_t k0 = key.low, k1 = key.high;
  for (int round = 0; round < 10; round++) {
    Words high0, low0, high1, low1;
    multiply(c0, 0xD2511F53u, high0, low0);
    multiply(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}
