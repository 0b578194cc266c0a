// core/vmath.h against the C library in long double: relative error over the whole range, limits, NaN.
#include "core/vmath.h"

#include <cmath>
#include <limits>

#include "check.h"

using namespace mf;

namespace {

template <class T, class F>
T lane(const F& f, T x) {
  return f(Vec<T>::broadcast(x))[0];
}

template <class T, class F, class G>
void compare(const char* name, const F& f, const G& exact, double from, double to, double tolerance) {
  double worst = 0.0, where = 0.0;
  constexpr int kSteps = 20011;
  for (int i = 0; i <= kSteps; ++i) {
    const T x = static_cast<T>(from + (to - from) * i / kSteps);
    const long double want = exact(static_cast<long double>(x));
    if (std::fabs(want) < static_cast<long double>(std::numeric_limits<T>::min())) continue;
    const double error = std::fabs(static_cast<double>((static_cast<long double>(lane<T>(f, x)) - want) / want));
    if (!(error <= worst)) worst = error, where = static_cast<double>(x);
  }
  CHECK(worst <= tolerance, "%s: relative error %.3g at %.9g", name, worst, where);
}

template <class T>
void run(double tolerance) {
  using V = Vec<T>;
  const auto density = [](V x) {
    V d, p;
    normal(x, d, p);
    return d;
  };
  const auto distribution = [](V x) {
    V d, p;
    normal(x, d, p);
    return p;
  };
  const auto e = [](V x) { return exp(x); };
  const auto t = [](V x) { return tanh(x); };
  const auto s = [](V x) { return logistic(x); };
  const double wide = sizeof(T) == 4 ? 85.0 : 700.0;
  compare<T>("exp", e, [](long double x) { return std::exp(x); }, -wide, wide, tolerance);
  compare<T>("tanh", t, [](long double x) { return std::tanh(x); }, -20.0, 20.0, 2 * tolerance);
  compare<T>("tanh near 0", t, [](long double x) { return std::tanh(x); }, -1e-3, 1e-3, 2 * tolerance);
  compare<T>("logistic", s, [](long double x) { return 1.0L / (1.0L + std::exp(-x)); }, -wide, wide, 2 * tolerance);
  // e^(-x²/2) magnifies the rounding of its argument in the tail.
  const auto exact_density = [](long double x) { return 0.398942280401432677939946L * std::exp(-0.5L * x * x); };
  const auto exact_distribution = [](long double x) { return 0.5L * std::erfc(-x * 0.707106781186547524400844L); };
  compare<T>("density", density, exact_density, -3.0, 3.0, 8 * tolerance);
  compare<T>("distribution", distribution, exact_distribution, -3.0, 9.0, 8 * tolerance);
  compare<T>("density, tail", density, exact_density, -8.0, 8.0, 60 * tolerance);
  compare<T>("distribution, tail", distribution, exact_distribution, -8.0, 8.0, 60 * tolerance);

  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(lane<T>(t, inf) == T(1) && lane<T>(t, -inf) == T(-1) && lane<T>(t, T(0)) == T(0), "tanh at its limits");
  CHECK(lane<T>(s, T(200)) == T(1) && lane<T>(s, T(-1000)) <= std::numeric_limits<T>::min(), "logistic at its limits");
  CHECK(lane<T>(distribution, T(40)) == T(1) && lane<T>(distribution, T(-60)) <= std::numeric_limits<T>::min(),
        "distribution at its limits");
  CHECK(lane<T>(distribution, T(0)) == T(0.5), "half of the mass lies below 0");
  for (const auto& value : {lane<T>(e, nan), lane<T>(t, nan), lane<T>(s, nan), lane<T>(distribution, nan)})
    CHECK(std::isnan(value), "NaN stays NaN");
}

}  // namespace

int main() {
  run<float>(2e-7);
  run<double>(4e-16);
  return check_result();
}
