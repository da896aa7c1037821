// Loops whose counter is a constant in every iteration, so that arrays of accumulators become registers.
#pragma once

#include <type_traits>
#include <utility>

#define MINICPM_INLINE inline __attribute__((always_inline))
#define MINICPM_INLINE_LAMBDA __attribute__((always_inline))

template <class Body, int... i>
static MINICPM_INLINE void unroll_sequence(Body&& body, std::integer_sequence<int, i...>) {
  (body(std::integral_constant<int, i>{}), ...);
}

// Calls body(integral_constant 0), body(integral_constant 1), ... body(integral_constant count - 1).
template <int count, class Body>
static MINICPM_INLINE void unroll(Body&& body) {
  unroll_sequence(static_cast<Body&&>(body), std::make_integer_sequence<int, count>{});
}
