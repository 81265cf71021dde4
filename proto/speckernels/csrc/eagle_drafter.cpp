// An EAGLE-3 drafter of one layer: real entries, and all steps of chains, in one parallel region
// each.
#include <algorithm>

#include "llama_decoder.h"
#include "sampling.h"

namespace {

// As `_Drafter` in drafter.py. The layer's input norm is that of the state. `embedding` [vocab,
// hidden] is normed; `fuse_norm` [captured, hidden] may be null; `window` is 0 where all entries
// are attended to.
struct Drafter {
  Layer layer;
  const bf16 *embedding, *fuse_norm, *final_norm, *cosines, *sines;
  const uint16_t *fuse, *head;
  const int64_t* target_ids;
  int64_t captured, vocabulary, window;
  int recycle_normed, residual_normed;
};

// As `_Entries` in drafter.py: features [rows, captured * hidden], or [rows, hidden] where they are
// projected, and what leaves the layer; where `hidden` is null only keys and values are made.
struct Entries {
  Places places;
  const int64_t* tokens;
  const bf16* features;
  bf16 *hidden, *keys, *values, *room;
  int projected;
};

// As `_Chains` in drafter.py: longer chains come first. `positions` are those of the last real
// entries, `slabs` the slots of position 0. Winners and shares are [longest, rows].
struct Chains {
  int64_t rows, longest;
  const int64_t *lengths, *positions, *slabs;
  Noise noise;
  bf16 *hidden, *keys, *values, *room;
  int64_t* numbers;
  int64_t* winners;
  float* shares;
};

// A token's embedding and a normed state, side by side; the state becomes what the layer adds to.
void join_row(const Drafter& drafter, int64_t token, const bf16* from, bf16* state, bf16* pair) {
  const int64_t width = drafter.layer.hidden;
  std::memcpy(pair, drafter.embedding + token * width, width * sizeof(bf16));
  add_norm_row<bf16>(from, nullptr, drafter.layer.input_norm, width, drafter.layer.eps, nullptr,
                     pair + width);
  if (drafter.residual_normed) std::memcpy(state, pair + width, width * sizeof(bf16));
}

// Makes states of features; `normed` is room for as many.
void project(const Drafter& drafter, const Entries& entries, bf16* normed, bf16* state) {
  const Layer& layer = drafter.layer;
  const int64_t rows = entries.places.rows, width = layer.hidden, wide = drafter.captured * width;
  if (drafter.fuse_norm) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t at = 0; at < wide; at += width)
        add_norm_row<bf16>(entries.features + r * wide + at, nullptr, drafter.fuse_norm + at, width,
                           layer.eps, nullptr, normed + r * wide + at);
  }
  linear_all(drafter.fuse_norm ? normed : entries.features, drafter.fuse, nullptr, state, rows,
             width, wide);
}

// Runs real entries by the team of the enclosing parallel region.
void run_entries(const Drafter& drafter, const Entries& entries) {
  const Layer& layer = drafter.layer;
  const int64_t rows = entries.places.rows, width = layer.hidden;
  bf16 *normed = entries.room, *state = normed + rows * drafter.captured * width;
  bf16* pair = state + rows * width;
  const Scratch scratch(pair + 2 * rows * width, layer, rows);
  if (entries.projected) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
      std::memcpy(state + r * width, entries.features + r * width, width * sizeof(bf16));
  } else {
    project(drafter, entries, normed, state);
  }
#pragma omp for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    join_row(drafter, entries.tokens[r], state + r * width, state + r * width,
             pair + 2 * r * width);
  if (!entries.hidden) {
    place_rows(layer, entries.places, pair, entries.keys, entries.values, scratch);
    return;
  }
  run_layer(layer, entries.places, pair, state, entries.hidden, entries.keys, entries.values,
            scratch);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < rows * width; i += LANES)
    store(entries.hidden + i, load(entries.hidden + i) + load(scratch.delta + i));
}

struct Run {
  const Drafter& drafter;
  const Layer& layer;
  const Chains& chains;
  bf16 *state, *pair, *logits, *scratch;
  int64_t *positions, *slots;
  Segment* table;

  Run(const Drafter& drafter, const Chains& chains)
      : drafter(drafter),
        layer(drafter.layer),
        chains(chains),
        state(chains.room),
        pair(state + chains.rows * layer.hidden),
        logits(pair + 2 * chains.rows * layer.hidden),
        scratch(logits + chains.rows * drafter.vocabulary),
        positions(chains.numbers),
        slots(positions + chains.rows),
        table(reinterpret_cast<Segment*>(slots + chains.rows)) {}

  // Sets a row up for a step beyond the first: where it is, and its embedding beside its state.
  void enter(int64_t r, int64_t step) const {
    const int64_t position = chains.positions[r] + step, slab = chains.slabs[r];
    const int64_t hidden = drafter.window ? std::max<int64_t>(0, position + 1 - drafter.window) : 0;
    positions[r] = position;
    slots[r] = slab + position;
    table[r] = {r, 1, slab + hidden, position + 1 - hidden};
    const int64_t winner = chains.winners[(step - 1) * chains.rows + r], width = layer.hidden;
    const int64_t token = drafter.target_ids[winner < 0 ? 0 : winner];
    const bf16* from = (drafter.recycle_normed ? state : chains.hidden) + r * width;
    join_row(drafter, token, from, state + r * width, pair + 2 * r * width);
  }

  void advance(int64_t step, int64_t rows) const {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) enter(r, step);
    const Places places{rows, rows, 0, drafter.cosines, drafter.sines, positions, slots, table};
    const bool from_state = drafter.recycle_normed || drafter.residual_normed;
    run_layer(layer, places, pair, from_state ? state : chains.hidden, chains.hidden, chains.keys,
              chains.values, Scratch(scratch, layer, rows));
  }

  // Norms what leaves the layer, and draws from the logits of that.
  void finish(int64_t step, int64_t rows) const {
    const int64_t width = layer.hidden, vocabulary = drafter.vocabulary;
    const bf16* delta = step ? Scratch(scratch, layer, rows).delta : nullptr;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = r * width;
      add_norm_row<bf16>(chains.hidden + at, delta ? delta + at : nullptr, drafter.final_norm,
                         width, layer.eps, chains.hidden + at, state + at);
    }
    linear_all(state, drafter.head, nullptr, logits, rows, vocabulary, width);
#pragma omp for schedule(dynamic, 1)
    for (int64_t r = 0; r < rows; r++) {
      const bf16* row = logits + r * vocabulary;
      const int64_t winner = draw_row(row, vocabulary, drafter.target_ids,
                                      chains.noise.key(r, step), chains.noise.temperature(r));
      chains.winners[step * chains.rows + r] = winner;
      chains.shares[step * chains.rows + r] = share(row, vocabulary, winner);
    }
  }
};

}  // namespace

// All of these return 0 where this machine, or the shape, is not served.
extern "C" int hc_entries(const Drafter* drafter, const Entries* entries, int threads) {
  if (!attend_for<bf16>(drafter->layer.dim, drafter->layer.heads / drafter->layer.kv_heads))
    return 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  run_entries(*drafter, *entries);
  return 1;
}

extern "C" int hc_chain(const Drafter* drafter, const Chains* chains, int threads) {
  const Layer& layer = drafter->layer;
  if (!attend_for<bf16>(layer.dim, layer.heads / layer.kv_heads)) return 0;
  const Run run(*drafter, *chains);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t rows = chains->rows;
    for (int64_t step = 0; step < chains->longest; step++) {
      while (chains->lengths[rows - 1] <= step) rows--;
      if (step) run.advance(step, rows);
      run.finish(step, rows);
    }
  }
  return 1;
}
