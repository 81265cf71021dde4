// Prints what kernels make of fixed numbers, a line a kernel: compiled for several architectures.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "linear.h"

extern "C" {
void hc_linear(int, const void*, const uint16_t*, const float*, void*, int64_t, int64_t, int64_t,
               int);
int hc_attend(int, int64_t, const void*, int64_t, const void*, const void*, int64_t,
              const int64_t*, int64_t, int64_t, int64_t, int64_t, float, int64_t, float,
              const float*, void*, int);
void hc_draw(int, const void*, int64_t, int64_t, int64_t, const int64_t*, const int64_t*,
             const int64_t*, const int64_t*, const float*, const int64_t*, int64_t*, int);
void hc_add_norm(int, const void*, int64_t, const void*, const void*, int64_t, int64_t, float,
                 void*, void*);
}

static uint32_t state = 1;
static float number() {
  state = state * 1664525u + 1013904223u;
  return float(int32_t(state)) * 0x1p-30f;  // [-2, 2)
}
static std::vector<bf16> numbers(int count) {
  std::vector<bf16> out(count);
  for (bf16& each : out) {
    const float value = number();
    std::memcpy(&each, reinterpret_cast<const char*>(&value) + 2, 2);
  }
  return out;
}
static void print(const char* name, const std::vector<bf16>& values) {
  std::printf("%s", name);
  for (const bf16 each : values) std::printf(" %.6g", load(each));
  std::printf("\n");
}

int main() {
  const auto rows = numbers(7 * 64), weights = numbers(48 * 64);
  std::vector<float> exact(7 * 48);
  hc_linear(0, rows.data(), reinterpret_cast<const uint16_t*>(weights.data()), nullptr,
            exact.data(), 7, 48, 64, 2);
  std::printf("linear");
  for (const float each : exact) std::printf(" %.6g", each);
  std::printf("\n");

  // Two key heads, four query heads: a prompt of five rows behind three slots, and a single row.
  const auto query = numbers(6 * 4 * 32), keys = numbers(90 * 2 * 32), values = numbers(90 * 2 * 32);
  const int64_t segments[] = {0, 5, 3, 4, 5, 1, 0, 77};
  const float sinks[] = {0.5f, -1.0f, 2.0f, 0.0f};
  for (const int64_t prompts : {0, 1}) {
    std::vector<bf16> out(6 * 4 * 32);
    for (const int64_t window : {0, 7}) {
      hc_attend(1, 32, query.data(), 4 * 32, keys.data(), values.data(), 2 * 32, segments, 2,
                prompts, 4, 2, 0.2f, window, window ? 3.0f : 0.0f, window ? sinks : nullptr,
                out.data(), 2);
      print(prompts ? "prompt" : "rows", out);
    }
  }

  std::vector<float> logits(4 * 1000);
  for (float& each : logits) each = number() * 3;
  std::vector<int64_t> ids(1000), winners(4);
  for (int i = 0; i < 1000; ++i) ids[i] = 3 * i + 1;
  const int64_t seeds[] = {1, -7, 1 << 20, 99}, positions[] = {5, 6, 7, 8}, choices[] = {0, 1, 0, 2};
  const float temperatures[] = {1.0f, 0.3f, 0.0f, 2.0f};
  const int64_t* tokens[] = {nullptr, ids.data()};
  for (const int64_t* own : tokens) {
    hc_draw(0, logits.data(), 4, 1000, 1000, own, seeds, positions, choices, temperatures, nullptr,
            winners.data(), 2);
    std::printf("draws");
    for (const int64_t each : winners) std::printf(" %d", int(each));
    std::printf("\n");
  }

  std::vector<bf16> total(3 * 64), normed(3 * 64);
  hc_add_norm(1, rows.data(), 64, weights.data(), weights.data(), 3, 64, 1e-5f, total.data(),
              normed.data());
  print("norm", normed);
}
