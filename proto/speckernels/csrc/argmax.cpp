// The most likely token of each row: bf16 logits tell which can be it, exact ones which of them is.
#include <limits>

#include "linear.h"

namespace {

// Element [output, k] of weights as `linear_all` takes them.
inline bf16 tiled_at(const uint16_t* weights, int64_t width, int64_t output, int64_t k) {
  const uint16_t* tile = weights + (output / 16 * (width / 32) + k / 32) * 512;
  return {tile[k % 32 / 2 * 32 + output % 16 * 2 + k % 2]};
}

// Of the logits >= best - margin * |best|, the one whose product is the largest in double, the
// first of equal ones; -1 for a row that has a NaN.
int64_t best_of(const bf16* logits, const bf16* row, const uint16_t* weights, const float* bias,
                int64_t outputs, int64_t width, float margin) {
  float top;
  if (!maximum(logits, outputs, top)) return -1;
  const float floor = top - margin * std::fabs(top);
  double most = -std::numeric_limits<double>::infinity();
  int64_t best = -1;
  for (int64_t i = 0; i < outputs; i += LANES) {
    const Floats values = load(logits + i);
    if (!any(values >= floor)) continue;
    for (int64_t n = i; n < i + LANES; n++) {
      if (values[n - i] < floor) continue;
      double score = bias ? bias[n] : 0.0;
      for (int64_t k = 0; k < width; k++)
        score += double(load(row[k])) * double(load(tiled_at(weights, width, n, k)));
      if (score > most) most = score, best = n;
    }
  }
  return best;
}

}  // namespace

// Of each of `rows` [count, width] its best among `outputs`, int64 [count]; `logits` is room for
// [count, outputs].
extern "C" void hc_argmax(const bf16* rows, const uint16_t* weights, const float* bias,
                          bf16* logits, int64_t count, int64_t outputs, int64_t width,
                          float margin, int64_t* best, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    linear_all(rows, weights, bias, logits, count, outputs, width);
#pragma omp for schedule(dynamic, 1)
    for (int64_t r = 0; r < count; r++)
      best[r] = best_of(logits + r * outputs, rows + r * width, weights, bias, outputs, width,
                        margin);
  }
}
