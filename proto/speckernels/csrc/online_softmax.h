// Softmax over blocks of keys, one after the other.
#pragma once
#include "simd_reduce.h"
#include "query_segment.h"

namespace {

constexpr int RUNS = 4;
constexpr int BLOCK = RUNS * LANES;  // keys at a time
constexpr int MAX_QUERIES = 24;      // their state stays in the first-level cache

// Less than any score, and still finite: of a row that has not seen a key yet.
constexpr float LEAST = -1e30f;

// The scores of run `r` of a block, without keys of it that are before `first`, or not before `end`.
inline Floats visible(Floats scores, int r, int64_t first, int64_t end) {
  if (first <= r * LANES && end >= (r + 1) * LANES) return scores;
  const Ints key = lanes() + r * LANES;
  return (key < int(end)) & (key >= int(first)) ? scores : Floats{} - INFINITY;
}

// tanh, within 1e-6.
inline Floats tanh_of(Floats x) {
  const Floats e = exp_of_negative(x > 0.0f ? x * -2.0f : x * 2.0f), size = (1.0f - e) / (1.0f + e);
  return x > 0.0f ? size : -size;
}

inline Floats capped(Floats scores, const Shape& shape) {
  return shape.softcap ? tanh_of(scores / shape.softcap) * shape.softcap : scores;
}

// Of a set of queries, which keys of a block each sees.
struct Sight {
  int first[16], end[16];

  // Whether one of them misses one of the first `count` keys; later queries see later ones.
  bool partial(int count) const { return end[0] < count || first[15] > 0; }
};

// Scores of vectors of queries, so many apart, with `count` keys: bounded, and without those that a
// query does not see.
inline void show(float* scores, int apart, int count, const int* first, const int* end,
                 bool partial, const Shape& shape) {
  const Ints from = read<Ints>(first), to = read<Ints>(end);
  if (!partial && !shape.softcap) return;
  for (int j = 0; j < count; ++j) {
    Floats own = load(scores + j * apart);
    if (shape.softcap) own = tanh_of(own * (shape.scale / shape.softcap));
    store(scores + j * apart, (j < to) & (j >= from) ? own : Floats{} - INFINITY);
  }
}

// The largest score and the sum of weights of a query head before its first key.
inline void start(Floats& most, Floats& norm, const Shape& shape, int64_t head) {
  most = Floats{} + (shape.sinks ? shape.sinks[head] : LEAST);
  norm = Floats{};
  if (shape.sinks) norm[0] = 1.0f;
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
