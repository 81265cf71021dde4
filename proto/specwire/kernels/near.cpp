// Which logits of each row are near its largest.
#include "element.h"

namespace {

template <class T>
int64_t near_best(const T* logits, int64_t rows, int64_t width, int64_t stride, float margin,
                  int64_t* found_rows, int64_t* found, int64_t room) {
  int64_t count = 0;
  for (int64_t r = 0; r < rows; r++, logits += stride) {
    float top;
    if (!maximum(logits, width, top)) continue;
    const float floor = top - margin * std::fabs(top);
    for (int64_t i = 0; i < width; i += LANES) {
      const int size = width - i < LANES ? int(width - i) : LANES;
      const Floats values =
          size == LANES ? load(logits + i) : load_some(logits + i, size, -INFINITY);
      if (!any(values >= floor)) continue;
      for (int j = 0; j < size; j++) {
        if (values[j] < floor) continue;
        if (count == room) return -1;
        found_rows[count] = r, found[count++] = i + j;
      }
    }
  }
  return count;
}

}  // namespace

// Finds all logits >= best - margin * |best| of their row, in order; a row that has a NaN has none.
// Returns how many, or -1 if there is no room for them.
extern "C" int64_t hc_near_best(int is_bf16, const void* logits, int64_t rows, int64_t width,
                                int64_t stride, float margin, int64_t* found_rows, int64_t* found,
                                int64_t room) {
  return is_bf16 ? near_best((const bf16*)logits, rows, width, stride, margin, found_rows, found,
                             room)
                 : near_best((const float*)logits, rows, width, stride, margin, found_rows, found,
                             room);
}
