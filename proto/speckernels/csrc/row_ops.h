// What a decoder layer does to one row between its matrix products. Widths are multiples of LANES.
#pragma once
#include "simd.h"

namespace {

// sum = base + delta (null: none), rounded to T; normed = RMSNorm of the sum. sum may be null.
template <class T>
void add_norm_row(const T* base, const T* delta, const T* weight, int64_t width, float eps,
                  T* sum_out, T* normed) {
  Floats squares{};
  for (int64_t d = 0; d < width; d += LANES) {
    Floats values = load(base + d);
    if (delta) {
      store(sum_out + d, values + load(delta + d));
      values = load(sum_out + d);
    }
    squares += values * values;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / float(width) + eps);
  const T* from = delta ? sum_out : base;
  for (int64_t d = 0; d < width; d += LANES)
    store(normed + d, load(from + d) * scale * load(weight + d));
}

// In place: x * cos + (halves swapped) * sin, the sines of the first half negated beforehand.
template <class T>
void rotate_row(T* heads, const T* cos, const T* sin, int64_t count, int64_t dim) {
  const int64_t half = dim / 2;
  for (T* at = heads; at < heads + count * dim; at += dim) {
    for (int64_t d = 0; d < half; d += LANES) {
      const Floats first = load(at + d), second = load(at + half + d);
      store(at + d, first * load(cos + d) + second * load(sin + d));
      store(at + half + d, second * load(cos + half + d) + first * load(sin + half + d));
    }
  }
}

// out = silu(first half) * second half.
template <class T>
void gate_row(const T* both, int64_t width, T* out) {
  for (int64_t d = 0; d < width; d += LANES) {
    const Floats x = load(both + d);
    // x * sigmoid(x), by exp of what is never positive.
    const Floats e = exp_of_negative(x > 0.0f ? -x : x);
    const Floats sigmoid = (x > 0.0f ? Floats{} + 1.0f : e) / (e + 1.0f);
    store(out + d, x * sigmoid * load(both + width + d));
  }
}

}  // namespace
