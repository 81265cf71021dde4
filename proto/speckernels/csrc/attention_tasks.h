// How a team shares the attention of a batch.
#pragma once
#include "attention_prompts.h"
#include "online_softmax.h"

namespace {

// Rows [first, first + rows) of segment `s`, for the query heads that share key head `head`.
struct Task {
  int64_t s;
  int first, rows, head;
};

// What a team does for a batch, of whose segments the first are `prompts`. Longest come first, as
// they end last.
class Tasks {
 public:
  Tasks(const Segment* segments, int64_t count, int64_t prompts, const Shape& shape, int team)
      : segments(segments), prompts(prompts), heads(shape.kv_heads),
        group(int(shape.heads / shape.kv_heads)) {
    int64_t tasks = 0;
    for (int64_t s = 0; s < count; s++) tasks += parts(s) * heads;
    // The last ones, if they are fewer than the team, are cut so that nobody waits for them.
    const int64_t last = tasks % team;
    whole = tasks - last;
    pieces = last ? team / last : 1;
    total = whole + last * pieces;
  }

  Task operator[](int64_t i) const {
    const int64_t piece = i < whole ? 0 : (i - whole) % pieces, cut = i < whole ? 1 : pieces;
    const int64_t task = i < whole ? i : whole + (i - whole) / pieces;
    int64_t s = 0, part = task / heads;
    for (; part >= parts(s); s++) part -= parts(s);
    const int64_t first = part * step(s), left = segments[s].count - first;
    const int64_t rows = left < step(s) ? left : step(s);
    const int64_t from = rows * piece / cut, to = rows * (piece + 1) / cut;
    return {s, int(first + from), int(to - from), int(task % heads)};
  }

  int64_t total;

 private:
  int64_t step(int64_t s) const { return (s < prompts ? FOLDED : MAX_QUERIES) / group; }
  int64_t parts(int64_t s) const { return (segments[s].count + step(s) - 1) / step(s); }

  const Segment* segments;
  int64_t prompts, heads, whole, pieces;
  int group;
};

}  // namespace
