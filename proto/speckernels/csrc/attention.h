// Attention of packed rows over contiguous slabs of keys and values.
#pragma once
#include "simd.h"
#include "query_segment.h"

// All segments of a batch, by the team of the enclosing parallel region: the first, `prompts` of
// them, by products of matrices.
template <class T>
using Attend = void (*)(const T* query, const T* keys, const T* values, const Segment* segments,
                        int64_t count, int64_t prompts, const Shape& shape, T* out);

// For heads of this width; null where it, or groups of this size, are not built.
template <class T>
Attend<T> attend_for(int64_t dim, int64_t group);
