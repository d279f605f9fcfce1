// Vectors of the instruction set that this translation unit is compiled for, and the four storage types.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace lconv_fast::LCONV_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which a storage type is computed and accumulated.
template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

inline float to_accumulate(float x) { return x; }
inline double to_accumulate(double x) { return x; }

inline float to_accumulate(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline float to_accumulate(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Rebias the exponent by a multiplication, which also gets subnormals right.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t scale_bits = (254u - 15u) << 23;  // 2^112
  float value, scale;
  std::memcpy(&value, &magnitude, sizeof(value));
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  value *= scale;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (magnitude >= 0x0f800000u) bits |= 0x7f800000u;  // infinity and NaN
  bits |= static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

inline void from_accumulate(float x, float* out) { *out = x; }
inline void from_accumulate(double x, double* out) { *out = x; }

inline void from_accumulate(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);  // stays a NaN when the low half is cut off
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

inline void from_accumulate(float x, Half* out) {
#if defined(__F16C__)
  out->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (bits < 0x38800000u) {           // subnormal: let float addition align and round
    const uint32_t magic_bits = 126u << 23;  // 0.5: its last bit weighs 2^-24
    float value, magic;
    std::memcpy(&value, &bits, sizeof(value));
    std::memcpy(&magic, &magic_bits, sizeof(magic));
    value += magic;
    std::memcpy(&half, &value, sizeof(half));
    half -= magic_bits;
  } else {
    half = (bits + 0xfffu + ((bits >> 13) & 1u) - ((127u - 15u) << 23)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
#endif
}

template <class A>
inline Vector<A> broadcast(A x) {
  return x - Vector<A>{};
}

#if defined(__AVX512F__)
template <class S>
inline Vector<float> widen(__m256i raw) {
  if constexpr (__is_same(S, Half)) {
    return reinterpret_cast<Vector<float>>(_mm512_cvtph_ps(raw));
  } else {
    return reinterpret_cast<Vector<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
}
#elif defined(__AVX2__)
template <class S>
inline Vector<float> widen(__m128i raw) {
  if constexpr (__is_same(S, Half)) {
    return reinterpret_cast<Vector<float>>(_mm256_cvtph_ps(raw));
  } else {
    return reinterpret_cast<Vector<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
}

inline __m256i first_lanes_32(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256i first_lanes_64(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// ---- whole vectors ----

template <class S>
inline Vector<Accumulate<S>> load(const S* p) {
  Vector<Accumulate<S>> result;
  if constexpr (sizeof(S) == sizeof(Accumulate<S>)) {
    std::memcpy(&result, p, sizeof(result));
  } else {
#if defined(__AVX512F__)
    return widen<S>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return widen<S>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    constexpr int n = kLanes<float>;
    float lanes[n];
    for (int k = 0; k < n; ++k) lanes[k] = to_accumulate(p[k]);
    std::memcpy(&result, lanes, sizeof(result));
#endif
  }
  return result;
}

template <class S>
inline void store(S* p, Vector<Accumulate<S>> x) {
  if constexpr (sizeof(S) == sizeof(Accumulate<S>)) {
    std::memcpy(p, &x, sizeof(x));
  } else {
    constexpr int n = kLanes<float>;
#if defined(__AVX512BF16__)
    if constexpr (__is_same(S, BFloat16)) {
      const auto result = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
      std::memcpy(p, &result, sizeof(result));
      return;
    }
#endif
    if constexpr (__is_same(S, BFloat16)) {
      // As from_accumulate, for all lanes at once.
      typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
      typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
      const Bits bits = reinterpret_cast<Bits>(x), nan = reinterpret_cast<Bits>(x != x);
      const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x0040u;
      const Halves result = __builtin_convertvector((quiet & nan) | (rounded & ~nan), Halves);
      std::memcpy(p, &result, sizeof(result));
      return;
    }
#if defined(__AVX512F__)
    if constexpr (__is_same(S, Half)) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                          _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#elif defined(__AVX2__)
    if constexpr (__is_same(S, Half)) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                       _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
    float lanes[n];
    std::memcpy(lanes, &x, sizeof(x));
    for (int k = 0; k < n; ++k) from_accumulate(lanes[k], p + k);
  }
}

// ---- the first n lanes; the others read as zero and are not written ----

// Masked where the instruction set has masks for the type: rows of few channels live on these.
template <class S>
inline Vector<Accumulate<S>> load_first(const S* p, int64_t n) {
  using A = Accumulate<S>;
#if defined(__AVX512F__)
  if constexpr (__is_same(S, float)) {
    return reinterpret_cast<Vector<A>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
  } else if constexpr (__is_same(S, double)) {
    return reinterpret_cast<Vector<A>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
  } else {
    const __m256i raw = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
    return widen<S>(raw);
  }
#else
#if defined(__AVX2__)
  if constexpr (__is_same(S, float)) {
    return reinterpret_cast<Vector<A>>(_mm256_maskload_ps(p, first_lanes_32(n)));
  } else if constexpr (__is_same(S, double)) {
    return reinterpret_cast<Vector<A>>(_mm256_maskload_pd(p, first_lanes_64(n)));
  }
#endif
  A lanes[kLanes<A>] = {};
  for (int64_t k = 0; k < n; ++k) lanes[k] = to_accumulate(p[k]);
  Vector<A> result;
  std::memcpy(&result, lanes, sizeof(result));
  return result;
#endif
}

template <class S>
inline void store_first(S* p, Vector<Accumulate<S>> x, int64_t n) {
  using A = Accumulate<S>;
#if defined(__AVX512F__)
  if constexpr (__is_same(S, float)) {
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(x));
  } else if constexpr (__is_same(S, double)) {
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), reinterpret_cast<__m512d>(x));
  } else {
    S lanes[kLanes<A>];
    store(lanes, x);
    __m256i raw;
    std::memcpy(&raw, lanes, sizeof(raw));
    return _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), raw);
  }
#elif defined(__AVX2__)
  if constexpr (__is_same(S, float)) {
    return _mm256_maskstore_ps(p, first_lanes_32(n), reinterpret_cast<__m256>(x));
  } else if constexpr (__is_same(S, double)) {
    return _mm256_maskstore_pd(p, first_lanes_64(n), reinterpret_cast<__m256d>(x));
  }
#endif
#if !defined(__AVX512F__)
  A lanes[kLanes<A>];
  std::memcpy(lanes, &x, sizeof(x));
  for (int64_t k = 0; k < n; ++k) from_accumulate(lanes[k], p + k);
#endif
}

template <class A>
struct LaneIndices {
  typedef typename std::conditional<sizeof(A) == 4, int32_t, int64_t>::type Index;
  typedef Index type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Indices = typename LaneIndices<A>::type;

// Lane k: lane chosen[k] of a, or of b if that is beyond a.
template <class A>
inline Vector<A> shuffle(Vector<A> a, Vector<A> b, Indices<A> chosen) {
#if defined(__clang__)  // has no such function for indices that are known to the optimizer alone
  constexpr int n = kLanes<A>;
  Vector<A> result = {};
  for (int k = 0; k < n; ++k) result[k] = chosen[k] < n ? a[chosen[k]] : b[chosen[k] - n];
  return result;
#else
  return __builtin_shuffle(a, b, chosen);
#endif
}

// The lanes first, first + 2, ... of a, then of b.
template <class A>
inline Vector<A> every_second(Vector<A> a, Vector<A> b, int first) {
  Indices<A> chosen = {};
  for (int k = 0; k < kLanes<A>; ++k) chosen[k] = 2 * k + first;
  return shuffle<A>(a, b, chosen);
}

// [2k] + [2k + 1] of a, then of b.
template <class A>
inline Vector<A> sum_pairs(Vector<A> a, Vector<A> b) {
  return every_second<A>(a, b, 0) + every_second<A>(a, b, 1);
}

// The lanes of a and b in turn: the first halves (low) or the second ones.
template <class A>
inline Vector<A> interleave(Vector<A> a, Vector<A> b, bool low) {
  constexpr int n = kLanes<A>;
  Indices<A> first = {}, second = {};
  for (int k = 0; k < n; ++k) {
    first[k] = k / 2 + (k % 2) * n;
    second[k] = first[k] + n / 2;
  }
  return shuffle<A>(a, b, low ? first : second);
}

// Rows become columns: as many perfect shuffles of the whole square as its size has bits.
template <class A>
inline void transpose(Vector<A> (&rows)[kLanes<A>]) {
  constexpr int n = kLanes<A>;
  for (int bit = 1; bit < n; bit *= 2) {
    Vector<A> next[n];
    for (int k = 0; k < n / 2; ++k) {
      next[2 * k] = interleave<A>(rows[k], rows[k + n / 2], true);
      next[2 * k + 1] = interleave<A>(rows[k], rows[k + n / 2], false);
    }
    for (int k = 0; k < n; ++k) rows[k] = next[k];
  }
}

// Lane k: the sum of the lanes of vectors[k].
template <class A>
inline Vector<A> sum_each(Vector<A> (&vectors)[kLanes<A>]) {
  for (int count = kLanes<A>; count > 1; count /= 2) {
    for (int k = 0; k < count / 2; ++k) vectors[k] = sum_pairs<A>(vectors[2 * k], vectors[2 * k + 1]);
  }
  return vectors[0];
}

}  // namespace lconv_fast::LCONV_ISA
