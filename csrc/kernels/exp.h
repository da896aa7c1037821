// The polynomial of exp: docs/numerics.md, section 5. Attention, the gated MLP and sampling use it.
#pragma once

#include "kernels/unroll.h"

// y and `whole` with exp(x) = y * 2**whole, for x whose `whole` fits a float's exponent.
template <class V>
static MINICPM_INLINE typename V::F exp_series(typename V::F x, typename V::I* whole) {
  using F = typename V::F;
  *whole = V::to_int(V::mul(x, V::set1(1.44269504088896341f)));
  const F n = V::to_float(*whole);
  const F r = V::sub(V::sub(x, V::mul(n, V::set1(0.693359375f))), V::mul(n, V::set1(-2.12194440e-4f)));
  F y = V::set1(1.9875691500e-4f);
  for (const float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
    y = V::add(V::mul(y, r), V::set1(coefficient));
  }
  return V::add(V::add(V::mul(y, V::mul(r, r)), r), V::set1(1.0f));
}
