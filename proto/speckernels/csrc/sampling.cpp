// Draws of many rows at once.
#include "sampling.h"

namespace {

// Of each run of rows, which ends with one that expects nothing, those up to the first that draws
// something else than it expects.
template <class T>
void draw_rows(const T* logits, int64_t rows, int64_t width, int64_t stride, const int64_t* ids,
               const Noise& noise, const int64_t* expected, int64_t* winners, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1) schedule(dynamic, 1)
  for (int64_t first = 0; first < rows; first++) {
    if (expected && first && expected[first - 1] >= 0) continue;  // within another's run
    for (int64_t i = first; i < rows; i++) {
      winners[i] = draw_row(logits + i * stride, width, ids, noise.key(i, 0), noise.temperature(i));
      if (!expected || expected[i] < 0 || winners[i] != expected[i]) break;
    }
  }
}

}  // namespace

// `winners` get indices into the row, -1 where a logit is not a number or the largest not finite.
// Keys are null where all rows are greedy, `expected` where all rows are drawn.
extern "C" void hc_draw(int is_bf16, const void* logits, int64_t rows, int64_t width,
                        int64_t stride, const int64_t* ids, const int64_t* seeds,
                        const int64_t* positions, const int64_t* choices,
                        const float* temperatures, const int64_t* expected, int64_t* winners,
                        int threads) {
  const Noise noise{seeds, positions, choices, temperatures};
  if (is_bf16) {
    draw_rows(static_cast<const bf16*>(logits), rows, width, stride, ids, noise, expected, winners,
              threads);
  } else {
    draw_rows(static_cast<const float*>(logits), rows, width, stride, ids, noise, expected,
              winners, threads);
  }
}

// The softmax of one logit of each row, at temperature 1; 0 for a row without a winner.
extern "C" void hc_shares(int is_bf16, const void* logits, int64_t rows, int64_t width,
                          int64_t stride, const int64_t* winners, float* shares) {
  for (int64_t i = 0; i < rows; i++) {
    shares[i] = is_bf16
                    ? share(static_cast<const bf16*>(logits) + i * stride, width, winners[i])
                    : share(static_cast<const float*>(logits) + i * stride, width, winners[i]);
  }
}
