// Sums, copies and adds of maps and flat vectors.
//
// Maps as in map.h: a pointer stands at the map's first border element; borders and lanes c..cp-1 are 0 and stay 0.
// n is always the number of (valid) examples, the first n of the map. `add`: += instead of =.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

// y += a * x, on flat vectors.
template <class T>
void axpy(T a, const T* x, T* y, int64_t size);

// y (+)= x between maps of the same n, h, w, c whose borders and lane counts may differ (cp == c of a model's input).
template <class T>
void copy_map(const Map& from, const T* x, const Map& to, T* y, bool add, int64_t n, Team& team);

// ADD: y = a + b. Its backward is copy_map(dy -> da), copy_map(dy -> db), its tangents are the same calls.
template <class T>
void add_maps(const Map& ma, const T* a, const Map& mb, const T* b, const Map& my, T* y, int64_t n, Team& team);

// db[cp] (+)= sum of dy over examples and positions. scratch: sum_channels_size(dy map, n) elements.
int64_t sum_channels_size(const Map& map, int64_t n);
template <class T>
void sum_channels(const Map& map, const T* dy, T* db, bool add, int64_t n, Team& team, T* scratch);

// Sets the interior of the first n examples to 0.
template <class T>
void clear_map(const Map& map, T* x, int64_t n, Team& team);

}  // namespace MF_ISA
}  // namespace mf
