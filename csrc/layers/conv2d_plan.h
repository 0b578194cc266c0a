#pragma once

// Conv2d's offset tables and its three passes; included at the end of conv2d.h.
#include <algorithm>
#include <numeric>

namespace mf {
inline namespace MF_ISA {
namespace conv {

constexpr double kInside = 0.97;  // with more products inside the map, skipping the others gains nothing

inline int32_t narrow(int64_t offset) {
  if (offset > std::numeric_limits<int32_t>::max() || offset < std::numeric_limits<int32_t>::min())
    throw std::length_error("convolution: an image has more than 2^31 elements; reduce its size or its channels");
  return static_cast<int32_t>(offset);
}

// Every step-th of [begin, end).
struct Steps {
  int64_t begin, end, step;
  int64_t count() const { return std::max<int64_t>(0, (end - begin + step - 1) / step); }
};

// Positions (y, x) of an image of `out`, with `in` at the offset that `read` names.
template <class F>
Positions make_positions(const Map& in, const Map& out, const Steps& ys, const Steps& xs, const F& read) {
  Positions p;
  p.per_image = ys.count() * xs.count();
  p.images = Positions::images_for(p.per_image, std::min(in.n, out.n));
  p.in_image = in.image();
  p.out_image = out.image();
  p.at.reserve(static_cast<size_t>(p.images * p.per_image));
  for (int64_t i = 0; i < p.images; ++i)
    for (int64_t y = ys.begin; y < ys.end; y += ys.step)
      for (int64_t x = xs.begin; x < xs.end; x += xs.step)
        p.at.push_back({narrow(read(i, y, x)), narrow(out.at(i, y, x))});
  return p;
}

// Outputs [begin, end) along one axis, of which exactly the taps [first, last) lie in the map.
struct Strip {
  int64_t begin, end, first, last;
};

// `meets(output, tap)` is true for a contiguous run of taps.
template <class F>
std::vector<Strip> strips(int64_t outputs, int64_t taps, const F& meets) {
  std::vector<Strip> all;
  for (int64_t o = 0; o < outputs; ++o) {
    int64_t first = 0;
    while (first < taps && !meets(o, first)) ++first;
    int64_t last = first;
    while (last < taps && meets(o, last)) ++last;
    if (!all.empty() && all.back().first == first && all.back().last == last) all.back().end = o + 1;
    else all.push_back({o, o + 1, first, last});
  }
  return all;
}

// The rows of taps [v.first, v.last) x [h.first, h.last), of which there are `width` in a row.
inline std::vector<Range> ranges_of(const Strip& v, const Strip& h, int64_t width, int64_t channels) {
  std::vector<Range> ranges;
  for (int64_t k = v.first; k < v.last; ++k) {
    const Range r{(k * width + h.first) * channels, (k * width + h.last) * channels};
    if (!ranges.empty() && ranges.back().last == r.first) ranges.back().last = r.last;
    else if (r.first < r.last) ranges.push_back(r);
  }
  return ranges;
}

// The part of all products that does not multiply the border.
inline double inside(const std::vector<Strip>& all, int64_t k) {
  int64_t taps = 0;
  for (const Strip& s : all) taps += (s.end - s.begin) * (s.last - s.first);
  return all.empty() ? 1 : static_cast<double>(taps) / static_cast<double>(std::max<int64_t>(1, all.back().end * k));
}

}  // namespace conv

template <class T>
Border Conv2d<T>::border_for_dy(const Geometry& g, int64_t h, int64_t w) {
  // dx[i] reads dy[(i + p - k) / s] where s divides: from -(k-1-p)/s to (size-1+p)/s.
  const auto need = [](int64_t size, int64_t k, int64_t s, int64_t p) {
    const int64_t before = std::max<int64_t>(0, k - 1 - p) / s;
    const int64_t after = (size - 1 + p) / s - (size + 2 * p - k) / s;
    return std::max<int64_t>(before, std::max<int64_t>(after, 0));
  };
  return {need(h, g.kh, g.sh, g.ph), need(w, g.kw, g.sw, g.pw)};
}

template <class T>
Conv2d<T>::Conv2d(const Map& x, const Map& y, const Geometry& g, const Map& dy, const Map& dx)
    : x_(x), y_(y), dy_(dy), dx_(dx), g_(g), ci_(x.c / g.groups), co_(y.c / g.groups) {
  depthwise_ = g.groups > 1 && g.groups == x.c && x.c == y.c && x.cp == y.cp;
  group_size_ = depthwise_ ? 0 : rows() * padded_channels(co_);
  packed_size_ = depthwise_ ? taps() * y.cp : g.groups * group_size_;
  const auto read_x = [&](int64_t i, int64_t yy, int64_t xx) { return x.at(i, yy * g.sh - g.ph, xx * g.sw - g.pw); };
  const auto in_map = [](int64_t size, int64_t s, int64_t p) {
    return [=](int64_t o, int64_t k) { return o * s + k >= p && o * s + k < size + p; };
  };
  std::vector<conv::Strip> ys = conv::strips(y.h, g.kh, in_map(x.h, g.sh, g.ph));
  std::vector<conv::Strip> xs = conv::strips(y.w, g.kw, in_map(x.w, g.sw, g.pw));
  const bool skips = g.groups == 1 && ci_ >= kLanePad && taps() <= 32 &&
                     conv::inside(ys, g.kh) * conv::inside(xs, g.kw) < conv::kInside;
  weight_ = conv::make_positions(x, dy, {0, y.h, 1}, {0, y.w, 1}, read_x);
  if (skips) {
    std::vector<uint32_t> image;
    for (const conv::Strip& v : ys)
      for (int64_t r = v.begin; r < v.end; ++r)
        for (const conv::Strip& h : xs) {
          uint32_t bits = 0;
          for (int64_t kh = v.first; kh < v.last; ++kh)
            for (int64_t kw = h.first; kw < h.last; ++kw) bits |= 1u << (kh * g.kw + kw);
          image.insert(image.end(), static_cast<size_t>(h.end - h.begin), bits);
        }
    for (int64_t i = 0; i < weight_.images; ++i) weight_valid_.insert(weight_valid_.end(), image.begin(), image.end());
  } else {
    ys = {{0, y.h, 0, g.kh}};
    xs = {{0, y.w, 0, g.kw}};
  }
  for (const conv::Strip& v : ys)
    for (const conv::Strip& h : xs)
      forward_.push_back({conv::make_positions(x, y, {v.begin, v.end, 1}, {h.begin, h.end, 1}, read_x),
                          conv::ranges_of(v, h, g.kw, ci_)});
  for (int64_t k = 0; k < taps(); ++k) {
    for (int64_t c = 0; c < (depthwise_ ? 1 : ci_); ++c)
      offset_.push_back(conv::narrow(k / g.kw * x.row() + k % g.kw * x.cp + c));
  }
  winograd_ = sizeof(T) == 4 && g.groups == 1 && g.kh == 3 && g.kw == 3 && g.sh == 1 && g.sw == 1 && g.ph == 1 &&
              g.pw == 1 && x.cp % kLanePad == 0 && std::min({x.bh, x.bw, dy.bh, dy.bw}) >= 1;
  tap_.resize(static_cast<size_t>(taps()));
  std::iota(tap_.begin(), tap_.end(), 0);
  if (dx.n == 0) return;
  group_transposed_ = depthwise_ ? 0 : taps() * co_ * padded_channels(ci_);
  transposed_size_ = g.groups * group_transposed_;
  int64_t before = 0;
  for (int64_t a = 0; a < g.sh; ++a)
    for (int64_t b = 0; b < g.sw; ++b) {
      // Pixels y with (y + p) % s == a meet the taps a, a + s, ...
      const int64_t y0 = ((a - g.ph) % g.sh + g.sh) % g.sh, x0 = ((b - g.pw) % g.sw + g.sw) % g.sw;
      Class c;
      std::vector<int64_t> khs, kws;  // the last tap first, so that the transposed filter is turned as well
      for (int64_t k = g.kh - 1; k >= 0; --k)
        if (k % g.sh == a) khs.push_back(k);
      for (int64_t k = g.kw - 1; k >= 0; --k)
        if (k % g.sw == b) kws.push_back(k);
      for (int64_t kh : khs)
        for (int64_t kw : kws) {
          c.tap.push_back(static_cast<int32_t>(kh * g.kw + kw));
          for (int64_t o = 0; o < (depthwise_ ? 1 : co_); ++o)
            c.offset.push_back(conv::narrow(o - (kh - a) / g.sh * dy.row() - (kw - b) / g.sw * dy.cp));
        }
      const auto in_dy = [](int64_t size, int64_t from, int64_t s, int64_t p, const std::vector<int64_t>& k) {
        return [=, &k](int64_t o, int64_t i) {
          const int64_t at = from + o * s + p - k[static_cast<size_t>(i)];
          return at >= 0 && at / s < size;
        };
      };
      const auto count = [](int64_t size, int64_t from, int64_t s) {
        return std::max<int64_t>(0, (size - from + s - 1) / s);
      };
      const int64_t tall = static_cast<int64_t>(khs.size()), wide = static_cast<int64_t>(kws.size());
      const int64_t high = count(dx.h, y0, g.sh), across = count(dx.w, x0, g.sw);
      if (high * across == 0) continue;
      std::vector<conv::Strip> down = conv::strips(high, tall, in_dy(dy.h, y0, g.sh, g.ph, khs));
      std::vector<conv::Strip> right = conv::strips(across, wide, in_dy(dy.w, x0, g.sw, g.pw, kws));
      if (depthwise_ || g.groups > 1 || co_ < kLanePad ||
          conv::inside(down, tall) * conv::inside(right, wide) >= conv::kInside) {
        down = {{0, high, 0, tall}};
        right = {{0, across, 0, wide}};
      }
      for (const conv::Strip& v : down)
        for (const conv::Strip& h : right)
          c.areas.push_back(
              {conv::make_positions(dy, dx, {y0 + v.begin * g.sh, std::min(y0 + v.end * g.sh, dx.h), g.sh},
                                    {x0 + h.begin * g.sw, std::min(x0 + h.end * g.sw, dx.w), g.sw},
                                    [&](int64_t i, int64_t yy, int64_t xx) {
                                      return dy.at(i, (yy + g.ph - a) / g.sh, (xx + g.pw - b) / g.sw);
                                    }),
               conv::ranges_of(v, h, wide, co_)});
      c.rows_before = before;
      before += static_cast<int64_t>(c.offset.size());
      classes_.push_back(std::move(c));
    }
}

template <class T>
template <class F>
void Conv2d<T>::for_each_weight(const F& f) const {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const conv::Tiles panel = conv::panels(co_, kLanes);
  for (int64_t g = 0; g < g_.groups; ++g)
    for (int64_t p = 0; p < panel.count; ++p) {
      const int64_t begin = panel.begin(p) * kLanes, width = panel.begin(p + 1) * kLanes - begin;
      for (int64_t o = begin; o < std::min(begin + width, co_); ++o)
        for (int64_t c = 0; c < ci_; ++c)
          for (int64_t k = 0; k < taps(); ++k) {
            const int64_t torch = ((g * co_ + o) * ci_ + c) * taps() + k;
            f(torch,
              depthwise_ ? k * y_.cp + g : g * group_size_ + rows() * begin + (k * ci_ + c) * width + (o - begin));
          }
    }
}

template <class T>
void Conv2d<T>::pack(const T* torch, T* packed) const {
  std::fill(packed, packed + packed_size_, T(0));
  for_each_weight([&](int64_t from, int64_t to) { packed[to] = torch[from]; });
}

template <class T>
void Conv2d<T>::unpack(const T* packed, T* torch) const {
  for_each_weight([&](int64_t to, int64_t from) { torch[to] = packed[from]; });
}

template <class T>
int Conv2d<T>::compact(const Term* terms, int count, std::array<Term, conv::kMaxTerms>* kept) {
  int n = 0;
  for (int t = 0; t < count; ++t)
    if (terms[t].a && terms[t].b) (*kept)[static_cast<size_t>(n++)] = terms[t];
  return n;
}

template <class T>
void Conv2d<T>::forward(const Term* terms, int count, const T* bias, T* y, int64_t n, Team& team) const {
  std::array<Term, conv::kMaxTerms> term;
  const int kept = compact(terms, count, &term);
  const int tile = kept > 0 ? winograd_tile(n) : 0;
  if (tile == 2) return winograd::gather<winograd::F2>(x_, y_, term.data(), kept, bias, false, y, n, team);
  if (tile == 4) return winograd::gather<winograd::F4>(x_, y_, term.data(), kept, bias, false, y, n, team);
  for (const Area& area : forward_)
    conv::for_each_block(
        area.positions, n, conv::kBlockPositions, team, [&](int64_t image, int64_t first, int64_t last) {
          std::array<Term, conv::kMaxTerms> here = term;
          for (auto& t : here) t.a += image * area.positions.in_image;
          T* out = y + image * area.positions.out_image;
          const conv::Position* at = area.positions.at.data() + first;
          if (depthwise_) {
            conv::depthwise_block(here.data(), kept, offset_, tap_, y_.cp, at, last - first, bias, false, out);
            return;
          }
          for (int64_t g = 0; g < g_.groups; ++g) {
            conv::gather_block(at, last - first, area.ranges, offset_.data(), rows(), here.data(), kept,
                               forward_shape(g), bias, false, out);
            for (auto& t : here) t.b += group_size_;
          }
        });
}

template <class T>
void Conv2d<T>::backward_input(const Term* terms, int count, T* dx, bool accumulate, int64_t n, Team& team,
                               T* scratch) const {
  std::array<Term, conv::kMaxTerms> term;
  const int kept = compact(terms, count, &term);
  if (accumulate && kept == 0) return;
  const int64_t classes = static_cast<int64_t>(classes_.size());
  if (!depthwise_) {
    team.run(kept * classes, [&](int64_t block) {
      const int64_t t = block / classes;
      const Class& c = classes_[static_cast<size_t>(block % classes)];
      for (int64_t g = 0; g < g_.groups; ++g)
        conv::transpose_weights(
            term[static_cast<size_t>(t)].b + g * group_size_, ci_, co_, taps(), c.tap,
            scratch + t * transposed_size_ + g * group_transposed_ + c.rows_before * padded_channels(ci_));
    });
    for (int t = 0; t < kept; ++t) term[static_cast<size_t>(t)].b = scratch + t * transposed_size_;
  }
  const T* none = nullptr;
  const int tile = kept > 0 ? winograd_tile(n) : 0;
  if (tile == 2) return winograd::gather<winograd::F2>(dy_, dx_, term.data(), kept, none, accumulate, dx, n, team);
  if (tile == 4) return winograd::gather<winograd::F4>(dy_, dx_, term.data(), kept, none, accumulate, dx, n, team);
  for (const Class& c : classes_)
    for (const Area& area : c.areas) {
      if (area.ranges.empty() && accumulate) continue;
      conv::for_each_block(
          area.positions, n, conv::kBlockPositions, team, [&](int64_t image, int64_t first, int64_t last) {
            std::array<Term, conv::kMaxTerms> here = term;
            for (auto& t : here) t.a += image * area.positions.in_image;
            T* out = dx + image * area.positions.out_image;
            const conv::Position* at = area.positions.at.data() + first;
            if (depthwise_) {
              conv::depthwise_block(here.data(), kept, c.offset, c.tap, dx_.cp, at, last - first, none, accumulate,
                                    out);
              return;
            }
            for (auto& t : here) t.b += c.rows_before * padded_channels(ci_);
            for (int64_t g = 0; g < g_.groups; ++g) {
              conv::gather_block(at, last - first, area.ranges, c.offset.data(), static_cast<int64_t>(c.offset.size()),
                                 here.data(), kept, input_shape(g), none, accumulate, out);
              for (auto& t : here) t.b += group_transposed_;
            }
          });
    }
}

template <class T>
void Conv2d<T>::backward_weight(const Term* terms, int count, T* dw, bool accumulate, int64_t n, Team& team) const {
  std::array<Term, conv::kMaxTerms> term;
  const int kept = compact(terms, count, &term);
  if (kept == 0 || n == 0) {
    if (!accumulate) std::fill(dw, dw + packed_size_, T(0));
    return;
  }
  const int tile = winograd_tile(n);
  if (tile == 2) return winograd::outer<winograd::F2>(x_, dy_, term.data(), kept, accumulate, dw, n, team);
  if (tile == 4) return winograd::outer<winograd::F4>(x_, dy_, term.data(), kept, accumulate, dw, n, team);
  // Work is divided over rows of the result, never over positions: the order of the sums stays.
  const int64_t positions = weight_.per_image * n;
  const bool exact = forward_shape(0).exact, many = positions >= conv::kFewPositions && rows() >= conv::kPackedRows;
  // Positions less than four lines apart do not collide.
  const bool copies_a = many && g_.groups == 1 && ci_ >= kLanePad && x_.cp == padded_channels(ci_) &&
                        g_.sw * x_.cp * static_cast<int64_t>(sizeof(T)) >= 256;
  const auto shape = [&](int64_t g) {
    return conv::OuterShape{forward_shape(g), rows(), ci_, copies_a, many || !exact};
  };
  const int64_t per_group = depthwise_ ? y_.cp / Vec<T>::kLanes : shape(0).units(Vec<T>::kLanes);
  const int64_t units = depthwise_ ? per_group : g_.groups * per_group;
  const int64_t parts = team.threads() > 1 ? std::min<int64_t>(units, 4 * team.threads()) : 1;
  const int64_t most =
      packed_size_ * static_cast<int64_t>(sizeof(T)) <= (256 << 10) ? conv::kOuterPart : conv::kOuterPositions;
  team.run(parts, [&](int64_t part) {
    Team alone;
    const int64_t from = units * part / parts, to = units * (part + 1) / parts;
    bool adds = accumulate;
    conv::for_each_block(weight_, n, most, alone, [&](int64_t image, int64_t first, int64_t last) {
      std::array<Term, conv::kMaxTerms> here = term;
      for (auto& t : here) t.a += image * weight_.in_image, t.b += image * weight_.out_image;
      const conv::Position* at = weight_.at.data() + first;
      if (depthwise_) {
        for (int64_t v = from; v < to; ++v)
          conv::depthwise_outer_block(here.data(), kept, offset_, y_.cp, v * Vec<T>::kLanes, at, last - first, adds,
                                      dw);
      } else {
        for (int64_t g = from / per_group; g * per_group < to; ++g)
          conv::outer_block(at, weight_valid_.empty() ? nullptr : weight_valid_.data() + first, last - first, offset_,
                            here.data(), kept, shape(g), adds, dw + g * group_size_,
                            std::max<int64_t>(from - g * per_group, 0), std::min(to - g * per_group, per_group));
      }
      adds = true;
    });
  });
}

}  // namespace MF_ISA
}  // namespace mf
