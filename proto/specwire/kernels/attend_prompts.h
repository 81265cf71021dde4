// Attention of rows of a prompt by products of matrices, a block of keys at a time.
//
// Scores are computed as keys by queries: a lane is then a query, and largest scores and sums over
// keys are those of whole vectors.
#pragma once
#include "attend_blocks.h"
#include "attend_tiles.h"

namespace {

template <class T>
constexpr bool BLOCKED = false;  // whether prompts of these elements run by blocks
template <>
constexpr bool BLOCKED<bf16> = true;

// As `attend_head`.
template <int D>
void attend_prompt(const bf16* query, const bf16* keys, const bf16* values, bf16* out,
                   const Segment& segment, int first, int rows, int head, const Shape& shape) {
  const int group = int(shape.heads / shape.kv_heads), queries = rows * group;
  const int sets = (queries + SIDE - 1) / SIDE;
  const float scale = shape.scale * 1.44269504f;
  const auto row = [&](int m) { return segment.row + first + m / group; };
  const auto place = [&](int m) { return (head * group + m % group) * D; };
  Attended<D> task;
  for (int m = 0; m < queries; ++m)
    task.read_query(m, query + row(m) * shape.query_stride + place(m));
  for (int set = 0; set < sets; ++set) task.start(set);
  const int64_t stride = shape.slot_stride, from = segment.start * stride + head * D;
  const int64_t base = segment.length + first, length = base + rows - 1;
  configure(SIDE, SIDE);
  for (int64_t at = 0; at < length; at += BLOCK_KEYS) {
    const int here = int(length - at < BLOCK_KEYS ? length - at : BLOCK_KEYS);
    task.read_block(keys + from + at * stride, values + from + at * stride, stride, here);
    for (int set = 0; set < sets; ++set) {
      int seen[SIDE];
      for (int i = 0; i < SIDE; ++i) seen[i] = int(base - at) + (set * SIDE + i) / group;
      const int last = set * SIDE + SIDE < queries ? set * SIDE + SIDE : queries;
      const int64_t most = base - at + (last - 1) / group;
      const int count = int(most < here ? most : here);
      if (count > 0) task.attend(set, count, seen, scale);
    }
  }
  release();
  for (int m = 0; m < queries; ++m) task.write(m, out + row(m) * shape.heads * D + place(m));
}

}  // namespace
