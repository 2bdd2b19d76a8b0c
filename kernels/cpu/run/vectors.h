// Vectors and element types, for the files that are compiled once for every instruction set.
//
// Everything sits in an anonymous namespace, see tile_abi.h.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of what intrinsics leave undefined
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HAG_INLINE inline __attribute__((always_inline))
#define HAG_UNROLL _Pragma("GCC unroll 16")

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kMaxVectors = 8;  // accumulators that fit the registers of every target

// Rows of x are fetched this many bytes ahead of their use, in sources: far enough to hide a miss
// of L2, near enough not to push out of L1 what is needed first.
constexpr int64_t kPrefetchBytes = 6144;
constexpr int64_t prefetch_distance(int64_t row_bytes) {
  const int64_t rows = kPrefetchBytes / row_bytes;
  return rows > 48 ? 48 : rows;
}

// ---------------------------------------------------------------- vectors

template <class S, int L>
struct VectorOf {
  typedef S type __attribute__((vector_size(L * sizeof(S))));
};
template <class S, int L>
using Vec = typename VectorOf<S, L>::type;

template <class V, class S>
HAG_INLINE V load_as(const S *p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class S>
HAG_INLINE void store_as(S *p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// Past the caches, so that the line is not read before it is written. V is a whole vector, p is
// aligned to it.
template <class V, class S>
HAG_INLINE void stream_as(S *p, V v) {
#if defined(__AVX512F__)
  _mm512_stream_ps((float *)p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps((float *)p, (__m256)v);
#else
  store_as(p, v);
#endif
}

HAG_INLINE float bits_to_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

HAG_INLINE uint32_t float_to_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
}

#if defined(__aarch64__)
// Up to four numbers of a half type; zeros follow them.
template <int L>
HAG_INLINE uint16x4_t load_halves(const uint16_t *p) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, p, L * 2);
  return vcreate_u16(bits);
}
#endif

// ---------------------------------------------------------------- element types

struct Float32 {
  typedef float Elem;
  typedef float Acc;
  static constexpr bool same = true;
  template <int L>
  static HAG_INLINE Vec<float, L> load(const float *p) {
    return load_as<Vec<float, L>>(p);
  }
  template <int L>
  static HAG_INLINE void store(float *p, Vec<float, L> v) {
    store_as(p, v);
  }
};

struct Float64 {
  typedef double Elem;
  typedef double Acc;
  static constexpr bool same = true;
  template <int L>
  static HAG_INLINE Vec<double, L> load(const double *p) {
    return load_as<Vec<double, L>>(p);
  }
  template <int L>
  static HAG_INLINE void store(double *p, Vec<double, L> v) {
    store_as(p, v);
  }
};

struct BFloat16 {
  typedef uint16_t Elem;
  typedef float Acc;
  static constexpr bool same = false;
  template <int L>
  static HAG_INLINE Vec<float, L> load(const uint16_t *p) {
#if defined(__aarch64__)  // where GCC 12 converts number by number
    const uint32x4_t wide = vshll_n_u16(load_halves<L>(p), 16);
#else
    Vec<uint32_t, L> wide = __builtin_convertvector(load_as<Vec<uint16_t, L>>(p), Vec<uint32_t, L>)
                            << 16;
#endif
    return load_as<Vec<float, L>>(&wide);
  }
  template <int L>
  static HAG_INLINE void store(uint16_t *p, Vec<float, L> v) {
    Vec<uint32_t, L> bits = load_as<Vec<uint32_t, L>>(&v);
    Vec<uint32_t, L> rounded = (bits + (0x7fff + ((bits >> 16) & 1))) >> 16;
    Vec<uint32_t, L> nan = (Vec<uint32_t, L>)(v != v);
    rounded = (rounded & ~nan) | (nan & 0x7fc0);
    store_as(p, __builtin_convertvector(rounded, Vec<uint16_t, L>));
  }
};

struct Float16 {
  typedef uint16_t Elem;
  typedef float Acc;
  static constexpr bool same = false;

  // Exponent and mantissa move into place; a multiplication by 2^112 corrects the exponent's bias
  // and makes subnormals normal on the way. Inf and NaN keep an all-ones exponent.
  static HAG_INLINE float widen(uint16_t half) {
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    uint32_t bits = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
    if ((half & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000u;
    return bits_to_float(bits | (uint32_t)(half & 0x8000) << 16);
  }

  // Adding a number whose last mantissa bit has the weight of the half's last bit rounds to
  // nearest even in the float unit, for normal and subnormal results alike.
  static HAG_INLINE uint16_t narrow(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);  // rounds to 2^16: Inf
    if (magnitude < 0x38800000u) {                                   // subnormal half, or zero
      const float shifted = bits_to_float(magnitude) + 0.5f;         // 0.5's last bit is 2^-24
      return (uint16_t)(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
  }

  template <int L>
  static HAG_INLINE Vec<float, L> load(const uint16_t *p) {
#if defined(__F16C__)
    if constexpr (L <= 4) {
      int64_t bits = 0;
      __builtin_memcpy(&bits, p, L * 2);
      const __m128 wide = _mm_cvtph_ps(_mm_cvtsi64_si128(bits));
      return load_as<Vec<float, L>>(&wide);
    } else if constexpr (L == 8) {
      const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
      return load_as<Vec<float, L>>(&wide);
    }
#if defined(__AVX512F__)
    else {
      const __m512 wide = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)p));
      return load_as<Vec<float, L>>(&wide);
    }
#endif
#elif defined(__aarch64__)
    const float32x4_t wide = vcvt_f32_f16(vreinterpret_f16_u16(load_halves<L>(p)));
    return load_as<Vec<float, L>>(&wide);
#else
    Vec<float, L> v;
    HAG_UNROLL for (int i = 0; i < L; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }

  template <int L>
  static HAG_INLINE void store(uint16_t *p, Vec<float, L> v) {
#if defined(__F16C__)
    if constexpr (L <= 4) {
      Vec<float, 4> padded = {};
      __builtin_memcpy(&padded, &v, sizeof(v));
      const int64_t bits = _mm_cvtsi128_si64(
          _mm_cvtps_ph(load_as<__m128>(&padded), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      __builtin_memcpy(p, &bits, L * 2);
    } else if constexpr (L == 8) {
      _mm_storeu_si128(
          (__m128i *)p,
          _mm256_cvtps_ph(load_as<__m256>(&v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
#if defined(__AVX512F__)
    else {
      _mm256_storeu_si256((__m256i *)p,
                          _mm512_maskz_cvtps_ph(0xffff, load_as<__m512>(&v),
                                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
#endif
#elif defined(__aarch64__)
    Vec<float, 4> padded = {};
    __builtin_memcpy(&padded, &v, sizeof(v));
    const float16x4_t halves = vcvt_f16_f32(load_as<float32x4_t>(&padded));
    __builtin_memcpy(p, &halves, L * 2);
#else
    HAG_UNROLL for (int i = 0; i < L; ++i) p[i] = narrow(v[i]);
#endif
  }
};

// ---------------------------------------------------------------- arithmetic

// a * b + c, fused where the machine can: compilers do so by themselves, but not everywhere.
template <class V>
HAG_INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(a[0]) == 4)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else if constexpr (sizeof(V) == 64) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  else
#endif
#if defined(__FMA__)
      if constexpr (sizeof(V) == 32 && sizeof(a[0]) == 4)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else if constexpr (sizeof(V) == 32) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  else
#endif
    return a * b + c;
}

// v > held ? v : held, or v < held ? v : held, lane by lane: of two equal values and where one is
// NaN `held` stays. One instruction, where a compiler makes two, and one after the other, of it.
template <bool LARGEST, class V>
HAG_INLINE V further(V v, V held) {
#if defined(__x86_64__)
#define HAG_FURTHER(BYTES, SCALAR, TYPE, max, min)                             \
  if constexpr (sizeof(V) == BYTES && sizeof(v[0]) == sizeof(SCALAR))          \
    return (V)(LARGEST ? max((TYPE)v, (TYPE)held) : min((TYPE)v, (TYPE)held)); \
  else
#if defined(__AVX512F__)
  HAG_FURTHER(64, float, __m512, _mm512_max_ps, _mm512_min_ps)
  HAG_FURTHER(64, double, __m512d, _mm512_max_pd, _mm512_min_pd)
#endif
#if defined(__AVX__)
  HAG_FURTHER(32, float, __m256, _mm256_max_ps, _mm256_min_ps)
  HAG_FURTHER(32, double, __m256d, _mm256_max_pd, _mm256_min_pd)
#endif
  HAG_FURTHER(16, float, __m128, _mm_max_ps, _mm_min_ps)
  HAG_FURTHER(16, double, __m128d, _mm_max_pd, _mm_min_pd)
#undef HAG_FURTHER
#endif
  return (LARGEST ? v > held : v < held) ? v : held;
}

// N vectors of L lanes of a row, the last one at `last` (it may overlap the one before).
template <int N, int L>
HAG_INLINE int64_t lane(int n, int64_t last) {
  return n == N - 1 ? last : (int64_t)n * L;
}

}  // namespace

#define HAG_JOIN_(a, b) a##b
#define HAG_JOIN(a, b) HAG_JOIN_(a, b)
#define HAG_ENTRY(name) HAG_JOIN(name, HAG_ISA)
