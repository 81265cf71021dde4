// Attention of rows of a prompt by products of matrices, a block of keys at a time.
//
// Scores are computed as keys by queries: a lane is then a query, and largest scores and sums over
// keys are those of whole vectors.
#pragma once
#include "attention_blocks.h"
#include "attention_amx.h"

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
  // Scores are kept as they are computed, or as the tanh that bounds them; their unit is:
  const float unit = shape.softcap ? shape.softcap : shape.scale;
  const auto row = [&](int m) { return segment.row + first + m / group; };
  const auto place = [&](int m) { return (head * group + m % group) * D; };
  Attended<D> task;
  for (int m = 0; m < queries; ++m)
    task.read_query(m, query + row(m) * shape.query_stride + place(m));
  for (int set = 0; set < sets; ++set) {
    float most[SIDE], norm[SIDE];
    for (int i = 0; i < SIDE; ++i) {
      const int64_t of = head * group + (set * SIDE + i) % group;
      most[i] = shape.sinks ? shape.sinks[of] / unit : LEAST, norm[i] = shape.sinks ? 1.0f : 0.0f;
    }
    task.start(set, most, norm);
  }
  const int64_t stride = shape.slot_stride, from = segment.start * stride + head * D;
  const int64_t base = segment.length + first, length = base + rows - 1;
  configure(SIDE, SIDE);
  for (int64_t at = shape.first(base) / BLOCK_KEYS * BLOCK_KEYS; at < length; at += BLOCK_KEYS) {
    const int here = int(length - at < BLOCK_KEYS ? length - at : BLOCK_KEYS);
    task.read_block(keys + from + at * stride, values + from + at * stride, stride, here);
    for (int set = 0; set < sets; ++set) {
      Sight sight;
      for (int i = 0; i < SIDE; ++i) {
        const int64_t end = base + (set * SIDE + i) / group;
        sight.end[i] = int(end - at), sight.first[i] = int(shape.first(end) - at);
      }
      const int last = set * SIDE + SIDE < queries ? set * SIDE + SIDE : queries;
      const int64_t most = base - at + (last - 1) / group;
      const int count = int(most < here ? most : here);
      if (count > 0 && sight.first[0] < here) task.attend(set, count, sight, unit, shape);
    }
  }
  release();
  for (int m = 0; m < queries; ++m) task.write(m, out + row(m) * shape.heads * D + place(m));
}

}  // namespace
