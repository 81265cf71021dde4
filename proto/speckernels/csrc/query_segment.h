// What attention takes.
#pragma once
#include <cstdint>

// Rows [row, row + count): the first attends to slots [start, start + length), each further one to
// one more.
struct Segment {
  int64_t row, count, start, length;
};

// Of all rows of a layer. Of its keys a row sees the last `window`, all where that is 0. Scores are
// bounded softly by `softcap`, if it is not 0. `sinks`, if any, are scores of the heads beside
// those of keys, and have no value.
struct Shape {
  int64_t heads, kv_heads, query_stride, slot_stride;
  float scale;
  int64_t window;
  float softcap;
  const float* sinks;

  // The first of a row's `seen` keys that it sees.
  int64_t first(int64_t seen) const { return window && seen > window ? seen - window : 0; }
};
