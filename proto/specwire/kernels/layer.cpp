// What a decoder layer does between its matrix products. Widths are multiples of LANES.
#include "element.h"

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

template <class T>
void join(const T* embedding, const int64_t* tokens, const T* state, int64_t state_stride,
          const T* weight, int64_t rows, int64_t width, float eps, T* out) {
  for (int64_t r = 0; r < rows; r++) {
    std::memcpy(out + 2 * r * width, embedding + tokens[r] * width, width * sizeof(T));
    add_norm_row<T>(state + r * state_stride, nullptr, weight, width, eps, nullptr,
                    out + (2 * r + 1) * width);
  }
}

template <class T>
void rotate(T* heads, int64_t stride, const T* cosines, const T* sines, const int64_t* positions,
            int64_t rows, int64_t count, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t r = 0; r < rows; r++) {
    const T* cos = cosines + positions[r] * dim;
    const T* sin = sines + positions[r] * dim;
    for (int64_t h = 0; h < count; h++) {
      T* at = heads + r * stride + h * dim;
      for (int64_t d = 0; d < half; d += LANES) {
        const Floats first = load(at + d), second = load(at + half + d);
        store(at + d, first * load(cos + d) + second * load(sin + d));
        store(at + half + d, second * load(cos + half + d) + first * load(sin + half + d));
      }
    }
  }
}

template <class T>
void gate(const T* both, int64_t rows, int64_t width, T* out) {
  for (int64_t r = 0; r < rows; r++) {
    const T *in = both + 2 * r * width, *up = in + width;
    for (int64_t d = 0; d < width; d += LANES) {
      const Floats x = load(in + d);
      // x * sigmoid(x), by exp of what is never positive.
      const Floats e = exp_of_negative(x > 0.0f ? -x : x);
      const Floats sigmoid = (x > 0.0f ? Floats{} + 1.0f : e) / (e + 1.0f);
      store(out + r * width + d, x * sigmoid * load(up + d));
    }
  }
}

}  // namespace

// out[r] = embedding[tokens[r]] and RMSNorm(state[r]), side by side.
extern "C" void hc_join(int is_bf16, const void* embedding, const int64_t* tokens,
                        const void* state, int64_t state_stride, const void* weight, int64_t rows,
                        int64_t width, float eps, void* out) {
  is_bf16 ? join((const bf16*)embedding, tokens, (const bf16*)state, state_stride,
                 (const bf16*)weight, rows, width, eps, (bf16*)out)
          : join((const float*)embedding, tokens, (const float*)state, state_stride,
                 (const float*)weight, rows, width, eps, (float*)out);
}

// Rows of `base` have a stride, all others are contiguous.
extern "C" void hc_add_norm(int is_bf16, const void* base, int64_t base_stride, const void* delta,
                            const void* weight, int64_t rows, int64_t width, float eps, void* sum,
                            void* normed) {
  for (int64_t r = 0; r < rows; r++) {
    const int64_t from = r * base_stride, at = r * width;
    if (is_bf16) {
      add_norm_row((const bf16*)base + from, delta ? (const bf16*)delta + at : nullptr,
                   (const bf16*)weight, width, eps, sum ? (bf16*)sum + at : nullptr,
                   (bf16*)normed + at);
    } else {
      add_norm_row((const float*)base + from, delta ? (const float*)delta + at : nullptr,
                   (const float*)weight, width, eps, sum ? (float*)sum + at : nullptr,
                   (float*)normed + at);
    }
  }
}

// In place: x * cos + (halves swapped) * sin, the sines of the first half negated beforehand.
extern "C" void hc_rotate(int is_bf16, void* heads, int64_t stride, const void* cosines,
                          const void* sines, const int64_t* positions, int64_t rows, int64_t count,
                          int64_t dim) {
  is_bf16 ? rotate((bf16*)heads, stride, (const bf16*)cosines, (const bf16*)sines, positions, rows,
                   count, dim)
          : rotate((float*)heads, stride, (const float*)cosines, (const float*)sines, positions,
                   rows, count, dim);
}

// out = silu(first half) * second half of each row.
extern "C" void hc_gate(int is_bf16, const void* both, int64_t rows, int64_t width, void* out) {
  is_bf16 ? gate((const bf16*)both, rows, width, (bf16*)out)
          : gate((const float*)both, rows, width, (float*)out);
}
