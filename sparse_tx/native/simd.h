// Vectors as wide as the CPU has them, by the compiler's vector extensions.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#ifdef __FMA__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr double kLog2E = 1.4426950408889634;

template <class T> struct Integer;
template <> struct Integer<float> { using type = int32_t; };
template <> struct Integer<double> { using type = int64_t; };

template <class T> struct Simd {
    using Int = typename Integer<T>::type;
    typedef T Vec __attribute__((vector_size(kBytes)));
    typedef Int IntVec __attribute__((vector_size(kBytes)));
    typedef T Loose __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
    static constexpr int kLanes = kBytes / sizeof(T);
    static constexpr int kWidth = 2 * kLanes;  // of a panel of products

    static Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
    static void store(T* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
    static Vec splat(T x) { return x - Vec{}; }

    // a b + c, rounded once if the CPU can. Left to itself, the compiler fuses some and not others.
    static Vec fused(Vec a, Vec b, Vec c) {
#if defined(__FMA__) && defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
        else return (Vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && defined(__AVX__)
        if constexpr (sizeof(T) == 4) return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
        else return (Vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
        return a * b + c;
#endif
    }

    // 2^x, by 2^n of the nearest integer and a Taylor series on [-1/2, 1/2]; 0 below the exponents.
    static Vec exp2(Vec x) {
        constexpr bool single = sizeof(T) == 4;
        constexpr T shifter = single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa
        constexpr Int bias = single ? 127 : 1023, mantissa = single ? 23 : 52;
        constexpr T least = single ? T(-126) : T(-1022);
        const Vec clamped = x < least ? splat(least) : x;
        const Vec shifted = clamped + shifter;
        const Vec f = clamped - (shifted - shifter);
        // (log 2)^n / n!
        constexpr double c[] = {1.0, 0.6931471805599453, 0.2402265069591007, 0.05550410866482158,
                                0.009618129107628477, 0.0013333558146428443, 0.0001540353039338161,
                                1.5252733804059841e-05, 1.3215486790144307e-06,
                                1.0178086009239699e-07, 7.054911620801123e-09,
                                4.4455382718708114e-10, 2.5678435993488202e-11,
                                1.3691488853904128e-12};
        constexpr int degree = single ? 7 : 13;
        Vec sum = splat(T(c[degree]));
#pragma GCC unroll 16
        for (int n = degree - 1; n >= 0; --n) sum = sum * f + T(c[n]);
        const IntVec exponent = (IntVec)shifted - (IntVec)splat(shifter) + bias;
        const Vec power = (Vec)(exponent << mantissa);
        return x < least ? Vec{} : sum * power;
    }

    // log2 x of a normal number x > 0: its exponent, and 2 / log 2 atanh((m - 1) / (m + 1)) of its
    // mantissa m, taken from [sqrt 1/2, sqrt 2). NaN of NaN.
    static Vec log2(Vec x) {
        constexpr bool single = sizeof(T) == 4;
        constexpr Int bias = single ? 127 : 1023, mantissa = single ? 23 : 52;
        constexpr Int fraction = (Int(1) << mantissa) - 1;
        IntVec exponent = ((IntVec)x >> mantissa) - bias;
        Vec m = (Vec)(((IntVec)x & fraction) | (bias << mantissa));
        const IntVec large = m > T(1.4142135623730951);
        m = large ? m * T(0.5) : m;
        exponent -= large;
        const Vec s = (m - T(1)) / (m + T(1)), square = s * s;
        constexpr int terms = single ? 5 : 12;
        Vec sum = splat(T(1) / T(2 * terms - 1));
#pragma GCC unroll 16
        for (int n = terms - 2; n >= 0; --n) sum = sum * square + T(1) / T(2 * n + 1);
        const Vec log = __builtin_convertvector(exponent, Vec) + s * sum * T(2 * kLog2E);
        return x == x ? log : x;
    }

    // A square of kLanes rows, rows `from_step` apart, to its transpose.
    static void transpose(const T* from, ptrdiff_t from_step, T* to, ptrdiff_t to_step) {
        transpose(from, from_step, to, to_step, std::make_index_sequence<kLanes>{});
    }

private:
    // In each of log2(kLanes) rounds, row i and row i + kLanes / 2 are shuffled together.
    template <size_t... I>
    static void transpose(const T* from, ptrdiff_t from_step, T* to, ptrdiff_t to_step,
                          std::index_sequence<I...>) {
        constexpr int half = kLanes / 2;
        Vec rows[kLanes] = {load(from + I * from_step)...};
#pragma GCC unroll 4
        for (int round = 1; round < kLanes; round *= 2) {
            Vec next[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < half; ++i) {
                const Vec a = rows[i], b = rows[i + half];
                next[2 * i] = __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...);
                next[2 * i + 1] =
                    __builtin_shufflevector(a, b, (half + I / 2 + I % 2 * kLanes)...);
            }
            std::copy(next, next + kLanes, rows);
        }
        (store(to + I * to_step, rows[I]), ...);
    }
};

}  // namespace
