// Softmax over blocks of keys, of which none but the last have been seen: for attention of rows.
#pragma once
#include "lanes.h"

namespace {

constexpr int RUNS = 4;
constexpr int BLOCK = RUNS * LANES;  // keys at a time
constexpr int MAX_QUERIES = 24;      // their state stays in the first-level cache

// The scores of run `r` of a block, without keys beyond the first `seen` of the block.
inline Floats visible(Floats scores, int r, int64_t seen) {
  if (seen >= (r + 1) * LANES) return scores;
  return lanes() + r * LANES < int(seen) ? scores : Floats{} - INFINITY;
}

// Scores of a block become weights, of which the largest of all, `most`, has weight 1; `norm` and
// `sums`, what was summed up before, shrink accordingly.
template <int Sums>
inline void weigh(Floats (&scores)[RUNS], int runs, Floats& most, Floats& norm,
                  Floats (&sums)[Sums]) {
  Floats top = most;
  for (int r = 0; r < runs; ++r) top = larger(top, scores[r]);
  top = max_of(top);
  const Floats shrink = exp_of_negative(most - top);
  most = top;
  norm *= shrink;
  for (int c = 0; c < Sums; ++c) sums[c] *= shrink;
  for (int r = 0; r < runs; ++r) {
    scores[r] = exp_of_negative(scores[r] - top);
    norm += scores[r];
  }
}

}  // namespace
