// exp and tanh of vectors. isa_*.cpp include this file.
#pragma once

#include "run/vectors.h"

namespace {

template <class F>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  typedef int32_t type;
};
template <>
struct IntegerOf<double> {
  typedef int64_t type;
};

template <class F>
struct Whole {  // a whole vector
  static constexpr int L = kVectorBytes / (int)sizeof(F);
  typedef Vec<F, L> V;
  typedef Vec<typename IntegerOf<F>::type, L> I;
};

template <class F>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f, round = 12582912.0f;  // 1.5 * 2^23
  static constexpr float high = 0.693359375f, low = -2.12194440e-4f;              // of ln 2
  static constexpr int bias = 127, bits = 23, degree = 7;
};
template <>
struct Exponent<double> {
  static constexpr double lowest = -746.0, highest = 710.0, round = 6755399441055744.0;
  static constexpr double high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10;
  static constexpr int bias = 1023, bits = 52, degree = 13;
};

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, with Taylor's series. NaN stays; 2^n comes in two factors,
// so that what is below the normal numbers goes to 0 by and by.
template <class F>
HAG_INLINE typename Whole<F>::V exponential(typename Whole<F>::V x) {
  typedef typename Whole<F>::V V;
  typedef typename Whole<F>::I I;
  typedef Exponent<F> E;
  x = x < V{} + E::lowest ? V{} + E::lowest : x;
  x = x > V{} + E::highest ? V{} + E::highest : x;
  const V shifted = multiply_add(x, V{} + (F)1.4426950408889634, V{} + E::round);
  const V n = shifted - E::round;
  const I whole = load_as<I>(&shifted) - load_as<I>(&(const V &)(V{} + E::round));
  V r = multiply_add(n, V{} - E::high, x);
  r = multiply_add(n, V{} - E::low, r);
  F factorial[E::degree + 1] = {1};
  HAG_UNROLL for (int i = 1; i <= E::degree; ++i) factorial[i] = factorial[i - 1] * (F)i;
  V y = V{} + (F)1 / factorial[E::degree];
  HAG_UNROLL for (int i = E::degree - 1; i >= 0; --i) y =
      multiply_add(y, r, V{} + (F)1 / factorial[i]);
  const I half = whole >> 1;
  const I one = (half + E::bias) << E::bits, other = (whole - half + E::bias) << E::bits;
  return y * load_as<V>(&one) * load_as<V>(&other);
}

// Cephes: a rational function near 0, 1 - 2 / (exp(2 |x|) + 1) elsewhere.
HAG_INLINE Whole<float>::V near_zero(Whole<float>::V x) {
  typedef Whole<float>::V V;
  const V z = x * x;
  V y = V{} - 5.70498872745e-3f;
  y = multiply_add(y, z, V{} + 2.06390887954e-2f);
  y = multiply_add(y, z, V{} - 5.37397155531e-2f);
  y = multiply_add(y, z, V{} + 1.33314422036e-1f);
  y = multiply_add(y, z, V{} - 3.33332819422e-1f);
  return multiply_add(y * z, x, x);
}

HAG_INLINE Whole<double>::V near_zero(Whole<double>::V x) {
  typedef Whole<double>::V V;
  const V z = x * x;
  V p = V{} - 9.64399179425052238628e-1;
  p = multiply_add(p, z, V{} - 9.92877231001918586564e1);
  p = multiply_add(p, z, V{} - 1.61468768441708447952e3);
  V q = z + 1.12811678491632931402e2;
  q = multiply_add(q, z, V{} + 2.23548839060100448583e3);
  q = multiply_add(q, z, V{} + 4.84406305325125486048e3);
  return multiply_add(x * z, p / q, x);
}

template <class F>
HAG_INLINE typename Whole<F>::V hyperbolic_tangent(typename Whole<F>::V x) {
  typedef typename Whole<F>::V V;
  const V size = x < V{} ? -x : x;
  const V far = (F)1 - (F)2 / (exponential<F>(size + size) + (F)1);
  return size < V{} + (F)0.625 ? near_zero(x) : x < V{} ? -far : far;
}

}  // namespace
