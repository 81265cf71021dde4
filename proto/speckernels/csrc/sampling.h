// Draws a token from a row of logits: argmax, or the winner of the keyed exponential race.
#pragma once
#include <limits>

#include "simd.h"
#include "philox.h"

namespace {

using Indices = int64_t __attribute__((vector_size(4 * LANES)));
using Wide = int64_t __attribute__((vector_size(8 * LANES)));

constexpr int CHUNK = 4 * LANES;  // tokens of a Philox block a lane

// Below exp(x) * 2**-32 by 6 % at most, for 0 <= x: the bits of a float are near its logarithm.
inline Floats exp_from_below(Floats x) {
  x = x < 80.0f ? x : Floats{} + 80.0f;
  const Floats bits = (x * 1.44269504f + (127.0f - 32.0f)) * 8388608.0f;
  return Floats(__builtin_convertvector(bits, Ints)) * 0.94f;
}

template <class T>
int64_t first_of(const T* logits, int64_t width, float value) {
  int64_t i = 0;
  while (i + LANES <= width && !any(load(logits + i) == value)) i += LANES;
  while (load(logits[i]) != value) i++;
  return i;
}

template <class T>
struct Race {
  const T* logits;
  int64_t width;
  const int64_t* ids;  // of the logits; null: 0, 1, 2, ...
  Key key;
  float temperature, top;
  double best = std::numeric_limits<double>::infinity();
  int64_t winner = -1;

  int64_t id(int64_t i) const { return ids ? ids[i] : i; }

  // E / p up to a constant, in double as everywhere else.
  void enter(int64_t i, uint32_t word) {
    const double noise = -std::log1p(-(double(word) + 0.5) * 0x1p-32);
    const double ratio = noise * std::exp(double(top) - double(load(logits[i]) / temperature));
    if (ratio < best || (ratio == best && winner >= 0 && id(i) < id(winner))) {
      best = ratio, winner = i;
    }
  }

  void enter_alone(int64_t i) {
    Words words[4];
    philox(Words{} + uint32_t(id(i) >> 2), key, words);
    enter(i, words[id(i) & 3][0]);
  }

  // E >= v, so a token whose v / p is above the best ratio has lost; few are left to be scored.
  void run() {
    const float inverse = 1.0f / temperature;
    for (int64_t start = 0; start < width; start += CHUNK) {
      const float limit = float(best) * 1.001f;
      Floats bound[4];
      Ints open{};
      for (int part = 0; part < 4; part++) {
        const int64_t at = start + part * LANES;
        const Floats values = at + LANES <= width
                                  ? load(logits + at)
                                  : load_some(logits + at, int(width - at), -INFINITY);
        bound[part] = exp_from_below(top - values * inverse);
        open |= bound[part] * 0.5f <= limit;
      }
      if (!any(open)) continue;
      Words words[4];
      ids ? words_of(start, words) : words_from(start, words);
      open = Ints{};
      for (int part = 0; part < 4; part++) {
        bound[part] *= __builtin_convertvector(words[part], Floats);
        open |= bound[part] <= limit;
      }
      if (!any(open)) continue;
      for (int part = 0; part < 4; part++)
        for (int j = 0; j < LANES; j++)
          if (bound[part][j] <= limit && start + part * LANES + j < width)
            enter(start + part * LANES + j, words[part][j]);
    }
  }

  // Words of the tokens start, start + 1, ..., which share blocks of four.
  void words_from(int64_t start, Words (&words)[4]) const {
    Words of[4];  // word w of block j
    philox(Words(lanes()) + uint32_t(start >> 2), key, of);
    // Pairs of words, then all four of a block, side by side.
    Indices pairs;
    for (int i = 0; i < LANES / 2; i++) pairs[i] = i / 2 + i % 2 * (LANES / 2);
    const Ints low = lanes() / 2 + lanes() % 2 * LANES, high = low + LANES / 2;
    const Longs even[2] = {Longs(__builtin_shuffle(of[0], of[1], low)),
                           Longs(__builtin_shuffle(of[0], of[1], high))};
    const Longs odd[2] = {Longs(__builtin_shuffle(of[2], of[3], low)),
                          Longs(__builtin_shuffle(of[2], of[3], high))};
    for (int half = 0; half < 2; half++) {
      words[2 * half] = Words(__builtin_shuffle(even[half], odd[half], pairs));
      words[2 * half + 1] = Words(__builtin_shuffle(even[half], odd[half], pairs + LANES / 4));
    }
  }

  void words_of(int64_t start, Words (&words)[4]) const {
    for (int part = 0; part < 4; part++) {
      const int64_t at = start + part * LANES, left = width - at;
      int64_t own[LANES] = {};
      if (left > 0) std::memcpy(own, ids + at, (left < LANES ? left : LANES) * sizeof *ids);
      const Words some = __builtin_convertvector(read<Wide>(own), Words);
      Words of[4];
      philox(some >> 2, key, of);
      const Words low = (some & 1) != 0 ? of[1] : of[0];
      const Words high = (some & 1) != 0 ? of[3] : of[2];
      words[part] = (some & 2) != 0 ? high : low;
    }
  }
};

// Keys of rows, as `Noise` in drawing.py; null where all rows are greedy.
struct Noise {
  const int64_t *seeds, *positions, *choices;
  const float* temperatures;

  // Of a row, `step` tokens further on.
  Key key(int64_t row, int64_t step) const {
    if (!temperatures) return {};
    return {uint32_t(positions[row] + step), uint32_t(choices[row]), uint32_t(seeds[row]),
            uint32_t(uint64_t(seeds[row]) >> 32)};
  }
  float temperature(int64_t row) const { return temperatures ? temperatures[row] : 0.0f; }
};

// The index of the winner; -1 where a logit is not a number or the largest not finite.
template <class T>
int64_t draw_row(const T* logits, int64_t width, const int64_t* ids, const Key& key,
                 float temperature) {
  float top;
  if (!maximum(logits, width, top)) return -1;
  const int64_t best = first_of(logits, width, top);
  if (!(temperature > 0)) return best;
  Race<T> race{logits, width, ids, key, temperature, top / temperature};
  race.enter_alone(best);
  race.run();
  return race.winner;
}

// The softmax of one logit at temperature 1; 0 where there is none.
template <class T>
float share(const T* logits, int64_t width, int64_t of) {
  float top;
  if (of < 0 || !maximum(logits, width, top)) return 0;
  Floats total{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Floats values = i + LANES <= width ? load(logits + i)
                                             : load_some(logits + i, int(width - i), -INFINITY);
    total += exp_of_negative(values - top);
  }
  return std::exp(load(logits[of]) - top) / sum(total);
}

}  // namespace
