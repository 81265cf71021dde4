// Products of bf16 rows with packed bf16 weights, at the speed of reading the weights.
//
// oneDNN's kernels read weights at about half of that for the few rows of a decoding step. Here
// they lie in the order in which tiles and vectors take them. For many rows, several columns of
// tiles are read side by side and ahead.
#pragma once
#include "simd.h"

// rows [count, width] times weights [outputs / 16, width / 32, 16, 16, 2], to out
// [count, outputs], by the team of the enclosing parallel region. `bias` is fp32 or null. Results
// are sums in fp32, rounded where T is bf16.
template <class T>
void linear_all(const void* rows, const uint16_t* weights, const float* bias, T* out,
                int64_t count, int64_t outputs, int64_t width);
