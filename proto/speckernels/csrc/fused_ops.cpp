// What a decoder layer does between its matrix products, over packed rows.
#include "row_ops.h"

namespace {

constexpr int64_t PARALLEL = 1 << 15;  // elements from which threads pay

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
#pragma omp parallel for if (rows * count * dim > PARALLEL)
  for (int64_t r = 0; r < rows; r++)
    rotate_row(heads + r * stride, cosines + positions[r] * dim, sines + positions[r] * dim, count,
               dim);
}

template <class T>
void gate(const T* both, int64_t rows, int64_t width, T* out) {
#pragma omp parallel for if (rows * width > PARALLEL)
  for (int64_t r = 0; r < rows; r++) gate_row(both + 2 * r * width, width, out + r * width);
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
#pragma omp parallel for if (rows * width > PARALLEL)
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
