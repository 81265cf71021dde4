// What attention takes.
#pragma once
#include <cstdint>

// Rows [row, row + count): the first attends to slots [start, start + length), each further one to
// one more.
struct Segment {
  int64_t row, count, start, length;
};

struct Shape {
  int64_t heads, kv_heads, query_stride, slot_stride;
  float scale;
};
