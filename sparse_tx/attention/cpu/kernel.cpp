// Sparse causal attention, forward and backward, for one CPU.
//
// A *sweep* is one head's share of a pattern that can be computed with dense products:
//
//   in rows     query i reads the interval [low(i), i] of keys, and before it some of the columns
//               that all queries share (the summary columns of earlier blocks);
//   in columns  the positions g, g + s, g + 2 s, ... are a sequence of their own, in which a query
//               reads every earlier key, except those that earlier sweeps have read.
//
// Either way a query's keys are two ranges of one list of keys, and a tile of queries is computed
// against blocks of that list as in FlashAttention-2 (Dao 2023): online softmax forward; backward,
// scores are computed again from q, k and the saved log-sum-exp. Sweeps that merge with earlier
// ones start from these' out and log-sum-exp instead of from nothing.
//
// Scores are held transposed, (keys, queries): keys and values are then read as they lie, only the
// tile's queries are transposed, and the softmax over keys needs no sum across a vector. Products
// are restricted to panels of keys and queries that hold an allowed pair.
//
// Tiles, and the order of every sum, depend on shapes alone, so results do not depend on the number
// of threads. Scores and log-sum-exp are in units of log 2.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "simd.h"
#include "threads.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

extern "C" {

// A (B, H, T, D) tensor whose last dimension is contiguous; strides in elements.
struct TensorView {
    void* data;
    int64_t batch, head, position;
};

struct Sweep {
    int64_t head;
    int64_t stride;             // 0: in rows
    // low(i) is the least of 0 if dense, i + 1 - window if there is one, and the starts of i's blocks.
    int64_t dense, window;
    const int64_t* blocks;      // lengths
    int64_t n_blocks;
    const int64_t* columns;     // ascending positions that all later queries read
    int64_t n_columns;
    const int64_t* periods;     // in columns: pairs this many rows apart were read before
    int64_t n_periods;
    int64_t merges;             // an earlier sweep has written out, log-sum-exp and gradients
    int64_t n_chunks;           // backward, in rows: runs of query tiles computed in parallel
    const int64_t* spill_rows;  // where each chunk's rows of the spill begin; n_chunks + 1
};

struct Problem {
    TensorView q, k, v, out, d_out, dq, dk, dv;
    void* lse;    // (B, H, T)
    void* spill;  // (B, n_spill_rows, D + D_v), zeros
    int64_t n_spill_rows;
    int64_t grads_are_zero;  // dk and dv; else the first sweep of every head writes all of them
    int64_t B, H, T, D, D_v;
    double scale;
    const Sweep* sweeps;
    int64_t n_sweeps;
    int64_t n_threads;
    Parallel parallel;
};
}

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif

// Queries of a tile and keys of a block: multiples of kRows and of every kWidth.
constexpr int kTile = 96;
constexpr int kKept = 4;         // blocks of keys that stay packed for the next tiles
constexpr int kLongestRun = 4;   // tiles that one thread computes in turn, forward
constexpr int kTasksAThread = 8;
constexpr int kAhead = 8;        // rows that are fetched before they are copied

// --- Products of panels ---------------------------------------------------------------------------

// M rows of C (given by their pointers, from column `at`) = or += A B over `depth`, for kWidth
// columns, of which `columns` exist. A is (M, depth) with rows lda apart, or (depth, M) where
// Transposed; B is (depth, kWidth) with rows ldb apart.
template <class T, int M, bool Transposed>
void multiply_panel(int depth, const T* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb, T* const* c,
                    ptrdiff_t at, int columns, bool add) {
    using S = Simd<T>;
    typename S::Vec left[M], right[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) left[m] = right[m] = typename S::Vec{};
    for (int d = 0; d < depth; ++d) {
        const auto b0 = S::load(b + d * ldb), b1 = S::load(b + d * ldb + S::kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const T x = Transposed ? a[d * lda + m] : a[m * lda + d];
            left[m] += x * b0;
            right[m] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        T* row = c[m] + at;
        if (columns == S::kWidth) {
            S::store(row, add ? S::load(row) + left[m] : left[m]);
            S::store(row + S::kLanes, add ? S::load(row + S::kLanes) + right[m] : right[m]);
        } else {
            T whole[S::kWidth];
            S::store(whole, left[m]);
            S::store(whole + S::kLanes, right[m]);
            for (int n = 0; n < columns; ++n) row[n] = add ? row[n] + whole[n] : whole[n];
        }
    }
}

// The same for any M up to kRows.
template <class T, bool Transposed, int M = kRows>
void multiply_rows(int rows, int depth, const T* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb,
                   T* const* c, ptrdiff_t at, int columns, bool add) {
    if (rows == M) {
        multiply_panel<T, M, Transposed>(depth, a, lda, b, ldb, c, at, columns, add);
    } else if constexpr (M > 1) {
        multiply_rows<T, Transposed, M - 1>(rows, depth, a, lda, b, ldb, c, at, columns, add);
    }
}

// --- Tiles ----------------------------------------------------------------------------------------

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One thread's working memory, aligned to cache lines.
template <class T> struct Scratch {
    T *q, *q_t, *d_out, *d_out_t, *k, *v, *scores, *d_scores, *sum;
    T *peak, *total, *lse, *delta;
    std::unique_ptr<char[]> memory;

    Scratch(int64_t D, int64_t D_v) {
        const int64_t wide = round_up(D, Simd<T>::kWidth), wide_v = round_up(D_v, Simd<T>::kWidth);
        const int64_t n = kTile;
        T** pieces[] = {&q, &q_t, &d_out, &d_out_t, &k, &v, &scores, &d_scores, &sum,
                        &peak, &total, &lse, &delta};
        const int64_t sizes[] = {n * wide, n * wide, n * wide_v, n * wide_v, kKept * n * wide,
                                 kKept * n * wide_v, n * n, n * n, n * std::max(wide, wide_v),
                                 n, n, n, n};
        int64_t size = 64;
        for (int64_t s : sizes) size += round_up(s * sizeof(T), 64);
        memory.reset(new char[size]());
        char* at = memory.get() + 64 - reinterpret_cast<uintptr_t>(memory.get()) % 64;
        for (size_t i = 0; i < std::size(pieces); ++i) {
            *pieces[i] = reinterpret_cast<T*>(at);
            at += round_up(sizes[i] * sizeof(T), 64);
        }
    }
};

// Keys in the order in which a tile reads them, and for every query the range of them that it may
// read.
struct Segment {
    const int64_t* positions;  // or null: first, first + step, ...
    int64_t first, step;
    int64_t own;  // from here on, keys are positions of the tile itself, at most kTile of them
    int64_t low[kTile], high[kTile];

    int64_t position(int64_t n) const { return positions ? positions[n] : first + n * step; }
};

template <class T> class Task {
    using S = Simd<T>;
    using Int = typename S::Int;

public:
    Task(const Problem& p, Scratch<T>& w)
        : p(p), w(w), wide(round_up(p.D, S::kWidth)), wide_v(round_up(p.D_v, S::kWidth)) {}

    // --- The pattern ---

    // The first key of the interval that the query reads in rows; query + 1 where there is none.
    static int64_t interval_low(const Sweep& s, int64_t query) {
        int64_t low = query + 1;
        if (s.dense) low = 0;
        if (s.window) low = std::min(low, std::max<int64_t>(0, query + 1 - s.window));
        for (int64_t n = 0; n < s.n_blocks; ++n)
            low = std::min(low, query - query % s.blocks[n]);
        return low;
    }

    // Positions g, g + stride, ... below T that no shared column has.
    static void list_column(const Sweep& s, int64_t g, int64_t T_, std::vector<int64_t>& keys) {
        keys.clear();
        for (int64_t at = g; at < T_; at += s.stride)
            if (!std::binary_search(s.columns, s.columns + s.n_columns, at)) keys.push_back(at);
    }

    void prepare_rows(const Sweep& s, int64_t start, int n) {
        int64_t first = start + n;
        for (int r = 0; r < n; ++r) first = std::min(first, interval_low(s, start + r));
        segments[0].positions = s.columns;
        segments[0].first = 0, segments[0].step = 1;  // counted in the list
        segments[0].own = s.n_columns;
        segments[1].positions = nullptr;
        first = first / kTile * kTile;  // blocks lie like tiles, and are packed once for several
        segments[1].first = first;
        segments[1].step = 1;
        segments[1].own = start - first;
        for (int r = 0; r < n; ++r) {
            const int64_t low = interval_low(s, start + r);
            segments[0].low[r] = 0;
            segments[0].high[r] =
                std::lower_bound(s.columns, s.columns + s.n_columns, low) - s.columns;
            segments[1].low[r] = low - first;
            segments[1].high[r] = start + r + 1 - first;
        }
        n_segments = 2;
        period_queries = nullptr;
    }

    // Queries g + stride * (m, m + 1, ...) against the earlier keys of their column.
    void prepare_column(const Sweep& s, int64_t g, int64_t m, int n) {
        if (s.n_columns && (listed_sweep != &s || listed_column != g)) {
            list_column(s, g, p.T, listed);
            listed_sweep = &s, listed_column = g;
        }
        Segment& keys = segments[0];
        const int64_t position = g + m * s.stride;
        keys.own = s.n_columns
            ? std::lower_bound(listed.begin(), listed.end(), position) - listed.begin()
            : m;
        keys.positions = s.n_columns ? listed.data() : nullptr;
        keys.first = g;
        keys.step = s.stride;
        for (int r = 0; r < n; ++r) {
            const int64_t low = interval_low(s, g + (m + r) * s.stride);  // read before from here on
            keys.low[r] = 0;
            keys.high[r] = s.n_columns
                ? std::lower_bound(listed.begin(), listed.end(), low) - listed.begin()
                : std::max<int64_t>(0, (low - g + s.stride - 1) / s.stride);
        }
        n_segments = 1;
        period_queries = s.n_periods ? &s : nullptr;
        period_first = g + m * s.stride;
    }

    // --- Loading ---

    // Copy rows at `position(r)`, times `factor`, into (n, width); returns whether all copies are
    // finite.
    template <class Position>
    static bool pack(const TensorView& x, int64_t b, int64_t h, int n, int64_t D, int64_t width,
                     T factor, T* to, Position position) {
        const T* base = static_cast<const T*>(x.data) + b * x.batch + h * x.head;
        const int64_t whole = D / S::kLanes * S::kLanes;
        typename S::Vec zeros = {};  // as long as everything is finite
        T zero = 0;
        for (int r = 0; r < n; ++r, to += width) {
            const T* row = base + position(r) * x.position;
            // Rows lie far apart, where the processor does not look ahead by itself.
            const T* later = base + position(std::min(r + kAhead, n - 1)) * x.position;
            for (int64_t d = 0; d < D; d += 64 / sizeof(T)) __builtin_prefetch(later + d);
            for (int64_t d = 0; d < whole; d += S::kLanes) {
                const auto numbers = S::load(row + d) * factor;
                S::store(to + d, numbers);
                zeros += numbers * T(0);
            }
            for (int64_t d = whole; d < D; ++d) {
                to[d] = row[d] * factor;
                zero += to[d] * T(0);
            }
        }
        for (int lane = 0; lane < S::kLanes; ++lane) zero += zeros[lane];
        return zero == 0;
    }

    // (n, width) to (width, kTile). Columns from n on are left as they are.
    static void transpose(const T* from, int n, int64_t width, T* to) {
        const int whole = n / S::kLanes * S::kLanes;
        for (int r = 0; r < whole; r += S::kLanes)
            for (int64_t d = 0; d < width; d += S::kLanes)
                S::transpose(from + r * width + d, width, to + d * kTile + r, kTile);
        for (int r = whole; r < n; ++r)
            for (int64_t d = 0; d < width; ++d) to[d * kTile + r] = from[r * width + d];
    }

    void load_queries(int64_t b, int64_t h, int64_t first, int64_t step, int n) {
        q_first = first, q_step = step, n_queries = n;
        batch = b, head = h;
        // In units of log 2 from here on; the gradient of k takes that back.
        queries_finite = pack(p.q, b, h, n, p.D, wide, T(p.scale * kLog2E), w.q,
                              [&](int r) { return first + r * step; });
        transpose(w.q, n, wide, w.q_t);
    }

    // The gradients of the outputs, and delta = d_out . out, which equals sum_j P_ij dP_ij.
    void load_gradients() {
        const auto position = [&](int r) { return q_first + r * q_step; };
        const int n = n_queries;
        queries_finite &= pack(p.d_out, batch, head, n, p.D_v, wide_v, T(1), w.d_out, position);
        transpose(w.d_out, n, wide_v, w.d_out_t);
        const T* out = static_cast<const T*>(p.out.data) + batch * p.out.batch + head * p.out.head;
        for (int r = 0; r < n; ++r) {
            w.delta[r] = dot(out + position(r) * p.out.position, w.d_out + r * wide_v, p.D_v);
            queries_finite &= bool(std::isfinite(w.delta[r]));
            w.lse[r] = at(p.lse, r);
        }
        std::fill(w.lse + n, w.lse + kTile, T(0));
        std::fill(w.delta + n, w.delta + kTile, T(0));
    }

    T& at(void* numbers, int r) {
        return static_cast<T*>(numbers)[(batch * p.H + head) * p.T + q_first + r * q_step];
    }

    // --- Blocks of keys ---

    // Visit the blocks of keys that some query of the tile may read: the tile's own positions first.
    template <class Visit> void for_each_block(Visit visit) {
        for (int s = n_segments - 1; s >= 0; --s) {
            const Segment& keys = segments[s];
            int64_t first = std::numeric_limits<int64_t>::max(), last = 0;
            for (int r = 0; r < n_queries; ++r) {
                if (keys.low[r] >= keys.high[r]) continue;
                first = std::min(first, keys.low[r]);
                last = std::max(last, keys.high[r]);
            }
            if (first >= last) continue;
            const int64_t split = std::clamp(keys.own, first, last);
            if (split < last && prepare_block(keys, split, last - split)) visit();
            for (int64_t start = first / kTile * kTile; start < split; start += kTile)
                if (prepare_block(keys, start, std::min<int64_t>(kTile, split - start))) visit();
        }
    }

    bool prepare_block(const Segment& keys, int64_t start, int n) {
        segment = &keys;
        block_start = start, n_keys = n;
        masked = period_queries != nullptr || n_queries < kTile;
        bool any = false;
        const int panels = (n + kRows - 1) / kRows;
        std::fill(first_key, first_key + kTile / kRows, kTile);
        std::fill(last_key, last_key + kTile / kRows, 0);
        // Neither bound ever falls from one query to the next.
        int entered = 0, left = 0;
        for (int r = 0; r < n_queries; ++r) {
            const int a = std::clamp<int64_t>(keys.low[r] - start, 0, n);
            const int z = std::clamp<int64_t>(keys.high[r] - start, 0, n);
            low[r] = a, high[r] = z;
            masked |= a != 0 || z != n;
            for (; entered * kRows < z; ++entered) first_query[entered] = r;
            for (; left < panels && (left + 1) * kRows <= a; ++left) last_query[left] = r;
            if (a >= z) continue;
            any = true;
            const int panel = r / kRows;
            first_key[panel] = std::min(first_key[panel], a);
            last_key[panel] = std::max(last_key[panel], z);
        }
        if (!any) return false;
        std::fill(first_query + entered, first_query + panels, kTile);
        std::fill(last_query + left, last_query + panels, n_queries);
        for (int r = n_queries; r < kTile; ++r) low[r] = high[r] = 0;
        for (int i = 0; i < panels; ++i) {
            first_query[i] = first_query[i] / S::kWidth * S::kWidth;
            last_query[i] = std::min<int>(round_up(last_query[i], S::kWidth), kTile);
        }
        load_keys(keys, start, n);
        return true;
    }

    // Pack a block of keys and values, unless it is kept from an earlier tile. Where a tile's keys
    // have a list of positions, they are packed each time.
    void load_keys(const Segment& keys, int64_t start, int n) {
        const int64_t first = keys.position(start);
        const int slot = (keys.first / keys.step + start) / kTile % kKept;
        packed_k = w.k + slot * kTile * wide, packed_v = w.v + slot * kTile * wide_v;
        Kept& block = kept[slot];
        if (keys.positions || !block.holds(batch, head, first, keys.step, n)) {
            const auto position = [&](int j) { return keys.position(start + j); };
            block = {batch, head, first, keys.positions ? 0 : keys.step, n};
            block.finite = pack(p.k, batch, head, n, p.D, wide, T(1), packed_k, position);
            block.finite &= pack(p.v, batch, head, n, p.D_v, wide_v, T(1), packed_v, position);
        }
        finite = block.finite && queries_finite;
    }

    bool allowed(int j, int r) const {
        if (j < low[r] || j >= high[r]) return false;
        if (!period_queries) return true;
        const int64_t apart = (period_first + r * q_step
                               - segment->position(block_start + j)) / period_queries->stride;
        for (int64_t n = 0; n < period_queries->n_periods; ++n)
            if (apart % period_queries->periods[n] == 0) return false;
        return true;
    }

    // to (keys, queries) = rows of `x` times columns of `y_t`, in panels that hold an allowed pair.
    void score(const T* x, int64_t width, const T* y_t, int64_t depth, T* to) {
        T* rows[kRows];
        for (int i = 0; i * kRows < n_keys; ++i) {
            const int j = i * kRows, n = std::min(kRows, n_keys - j);
            for (int m = 0; m < n; ++m) rows[m] = to + (j + m) * kTile;
            for (int c = first_query[i]; c < last_query[i]; c += S::kWidth)
                multiply_rows<T, false>(n, depth, x + j * width, width, y_t + c, kTile, rows, c,
                                        S::kWidth, false);
        }
    }

    // to (queries, width) += weights' (queries, keys) times the packed rows (keys, width).
    void gather(const T* weights, const T* rows, int64_t width, T* to) {
        T* c[kRows];
        for (int i = 0; i * kRows < n_queries; ++i) {
            const int depth = last_key[i] - first_key[i];
            if (depth <= 0) continue;
            const int r = i * kRows, n = std::min(kRows, n_queries - r);
            for (int m = 0; m < n; ++m) c[m] = to + (r + m) * width;
            for (int64_t d = 0; d < width; d += S::kWidth)
                multiply_rows<T, true>(n, depth, weights + first_key[i] * kTile + r, kTile,
                                       rows + first_key[i] * width + d, width, c, d, S::kWidth,
                                       true);
        }
    }

    // The rows to (keys, D) += weights (keys, queries) times the packed rows (queries, width).
    void scatter(const T* weights, const T* rows, int64_t width, int64_t D, T* const* to,
                 bool add) {
        for (int i = 0; i * kRows < n_keys; ++i) {
            const int depth = std::min(last_query[i], n_queries) - first_query[i];
            if (depth <= 0) continue;
            const int j = i * kRows, n = std::min(kRows, n_keys - j);
            for (int64_t d = 0; d < D; d += S::kWidth)
                multiply_rows<T, false>(n, depth, weights + j * kTile + first_query[i], kTile,
                                        rows + first_query[i] * width + d, width, to + j, d,
                                        std::min<int64_t>(S::kWidth, D - d), add);
        }
    }

    // Call visit(j, c, lanes allowed) for the vectors of queries in the computed panels.
    template <class Visit> void for_each_vector(Visit visit) {
        if (!masked) {
            for_each_vector(visit, [](int, int) { return ~typename S::IntVec{}; });
        } else if (!period_queries) {
            const Int *from = low, *to = high;
            for_each_vector(visit, [from, to](int j, int c) {
                const auto key = Int(j) - typename S::IntVec{};
                return (key >= *reinterpret_cast<const typename S::IntVec*>(from + c))
                    & (key < *reinterpret_cast<const typename S::IntVec*>(to + c));
            });
        } else {
            for_each_vector(visit, [this](int j, int c) {
                typename S::IntVec allow;
                for (int lane = 0; lane < S::kLanes; ++lane)
                    allow[lane] = allowed(j, c + lane) ? ~Int(0) : 0;
                return allow;
            });
        }
    }

    template <class Visit, class Allow> void for_each_vector(Visit visit, Allow allow) {
        const int keys = n_keys;
        for (int i = 0; i * kRows < keys; ++i) {
            const int first = first_query[i], last = last_query[i];
            for (int j = i * kRows; j < std::min(keys, (i + 1) * kRows); ++j)
                for (int c = first; c < last; c += S::kLanes) visit(j, c, allow(j, c));
        }
    }

    // --- Forward ---

    void forward(const Sweep& sweep) {
        const T none = -std::numeric_limits<T>::infinity();
        std::fill(w.peak, w.peak + kTile, none);
        std::fill(w.total, w.total + kTile, T(0));
        std::fill(w.sum, w.sum + kTile * wide_v, T(0));
        if (sweep.merges) {
            pack(p.out, batch, head, n_queries, p.D_v, wide_v, T(1), w.sum,
                 [&](int r) { return q_first + r * q_step; });
            for (int r = 0; r < n_queries; ++r) {
                w.peak[r] = at(p.lse, r);
                w.total[r] = w.peak[r] == none ? T(0) : T(1);
            }
        }
        for_each_block([&] { finite ? forward_block() : forward_block_carefully(); });
        alignas(64) T lse[kTile];
        for (int c = 0; c < kTile; c += S::kLanes)
            S::store(lse + c, S::load(w.peak + c) + S::log2(S::load(w.total + c)));
        T* out = static_cast<T*>(p.out.data) + batch * p.out.batch + head * p.out.head;
        for (int r = 0; r < n_queries; ++r) {
            const bool empty = w.total[r] == 0;
            const T share = empty ? T(0) : 1 / w.total[r];
            T* row = out + (q_first + r * q_step) * p.out.position;
            for (int64_t d = 0; d < p.D_v; ++d) row[d] = w.sum[r * wide_v + d] * share;
            at(p.lse, r) = empty ? none : lse[r];
        }
    }

    void forward_block() {
        typedef typename S::Vec Vec;
        const T none = -std::numeric_limits<T>::infinity();
        if (masked) std::fill(w.scores, w.scores + n_keys * kTile, T(0));
        score(packed_k, wide, w.q_t, p.D, w.scores);
        alignas(64) T peak[kTile], sum[kTile] = {};
        std::copy(w.peak, w.peak + kTile, peak);
        T* const scores = w.scores;
        for_each_vector([&](int j, int c, auto allow) {
            T* here = scores + j * kTile + c;
            const Vec x = allow ? S::load(here) : S::splat(none);
            S::store(here, x);
            const Vec best = S::load(peak + c);
            S::store(peak + c, x > best ? x : best);
        });
        alignas(64) T base[kTile];
        for (int r = 0; r < kTile; ++r) base[r] = peak[r] == none ? T(0) : peak[r];
        for_each_vector([&](int j, int c, auto) {
            T* here = scores + j * kTile + c;
            const Vec x = S::exp2(S::load(here) - S::load(base + c));
            S::store(here, x);
            S::store(sum + c, S::load(sum + c) + x);
        });
        rescale(peak, base, sum);
        gather(w.scores, packed_v, wide_v, w.sum);
    }

    // Make the earlier sums relative to the new peak, whose finite form is `base`.
    void rescale(const T* peak, const T* base, const T* sum) {
        alignas(64) T factor[kTile];
        for (int c = 0; c < kTile; c += S::kLanes) {
            const auto change = S::exp2(S::load(w.peak + c) - S::load(base + c));
            S::store(factor + c, change);
            S::store(w.total + c, S::load(w.total + c) * change + S::load(sum + c));
        }
        std::copy(peak, peak + kTile, w.peak);
        for (int r = 0; r < n_queries; ++r)
            if (factor[r] != 1)
                for (int64_t d = 0; d < wide_v; ++d) w.sum[r * wide_v + d] *= factor[r];
    }

    // Where something is not finite, 0 times it is not 0: touch allowed pairs only.
    void forward_block_carefully() {
        const T none = -std::numeric_limits<T>::infinity();
        alignas(64) T peak[kTile], sum[kTile] = {};
        std::copy(w.peak, w.peak + kTile, peak);
        for_each_allowed([&](int j, int r) {
            const T x = dot(packed_k + j * wide, w.q + r * wide, p.D);
            w.scores[j * kTile + r] = x;
            if (!(x <= peak[r])) peak[r] = x;
        });
        alignas(64) T base[kTile];
        for (int r = 0; r < kTile; ++r) base[r] = peak[r] == none ? T(0) : peak[r];
        for_each_allowed([&](int j, int r) {
            T& x = w.scores[j * kTile + r];
            x = std::exp2(x - base[r]);
            sum[r] += x;
        });
        rescale(peak, base, sum);
        for_each_allowed([&](int j, int r) {
            for (int64_t d = 0; d < p.D_v; ++d)
                w.sum[r * wide_v + d] += w.scores[j * kTile + r] * packed_v[j * wide_v + d];
        });
    }

    template <class Visit> void for_each_allowed(Visit visit) {
        for (int r = 0; r < n_queries; ++r)
            for (int j = low[r]; j < high[r]; ++j)
                if (allowed(j, r)) visit(j, r);
    }

    static T dot(const T* a, const T* b, int64_t D) {
        const int64_t whole = D / S::kLanes * S::kLanes;
        typename S::Vec sums = {};
        for (int64_t d = 0; d < whole; d += S::kLanes) sums += S::load(a + d) * S::load(b + d);
        T sum = 0;
        for (int lane = 0; lane < S::kLanes; ++lane) sum += sums[lane];
        for (int64_t d = whole; d < D; ++d) sum += a[d] * b[d];
        return sum;
    }

    // --- Backward ---

    // Gradients of keys before `own` go to the spill: other tasks write them too.
    void backward(const Sweep& sweep, int64_t own, T* spill, int64_t spill_columns) {
        load_gradients();
        std::fill(w.sum, w.sum + kTile * wide, T(0));
        T* dk = static_cast<T*>(p.dk.data) + batch * p.dk.batch + head * p.dk.head;
        T* dv = static_cast<T*>(p.dv.data) + batch * p.dv.batch + head * p.dv.head;
        for_each_block([&] {
            T *to_k[kTile], *to_v[kTile];
            for (int j = 0; j < n_keys; ++j) {
                const int64_t key = segment->position(block_start + j);
                if (key >= own) {
                    to_k[j] = dk + key * p.dk.position;
                    to_v[j] = dv + key * p.dv.position;
                } else {
                    const int64_t row = segment == segments
                        ? block_start + j
                        : spill_columns + key - spill_first;
                    to_k[j] = spill + row * (p.D + p.D_v);
                    to_v[j] = to_k[j] + p.D;
                }
            }
            // Nothing has written the gradients of the tile's own positions before.
            const bool add = sweep.merges || p.grads_are_zero || block_start < segment->own;
            finite ? backward_block(to_k, to_v, add) : backward_block_carefully(to_k, to_v, add);
        });
        T* dq = static_cast<T*>(p.dq.data) + batch * p.dq.batch + head * p.dq.head;
        for (int r = 0; r < n_queries; ++r) {
            T* row = dq + (q_first + r * q_step) * p.dq.position;
            const T* sum = w.sum + r * wide;
            const T scale = T(p.scale * kLog2E);
            if (sweep.merges)
                for (int64_t d = 0; d < p.D; ++d) row[d] += sum[d] * scale;
            else
                for (int64_t d = 0; d < p.D; ++d) row[d] = sum[d] * scale;
        }
    }

    void backward_block(T* const* to_k, T* const* to_v, bool add) {
        typedef typename S::Vec Vec;
        if (masked) {
            std::fill(w.scores, w.scores + n_keys * kTile, T(0));
            std::fill(w.d_scores, w.d_scores + n_keys * kTile, T(0));
        }
        score(packed_k, wide, w.q_t, p.D, w.scores);
        score(packed_v, wide_v, w.d_out_t, p.D_v, w.d_scores);
        T *const scores = w.scores, *const d_scores = w.d_scores;
        const T *const lse = w.lse, *const delta = w.delta;
        for_each_vector([=](int j, int c, auto allow) {
            T *here = scores + j * kTile + c, *d_here = d_scores + j * kTile + c;
            const Vec x = S::exp2(S::load(here) - S::load(lse + c));
            S::store(here, allow ? x : Vec{});
            // Here too: a product with what may not be read can overflow.
            const Vec d_score = x * (S::load(d_here) - S::load(delta + c)) * T(1 / kLog2E);
            S::store(d_here, allow ? d_score : Vec{});
        });
        scatter(w.scores, w.d_out, wide_v, p.D_v, to_v, add);
        scatter(w.d_scores, w.q, wide, p.D, to_k, add);
        gather(w.d_scores, packed_k, wide, w.sum);
    }

    void backward_block_carefully(T* const* to_k, T* const* to_v, bool add) {
        for (int j = 0; j < n_keys && !add; ++j) {
            std::fill(to_k[j], to_k[j] + p.D, T(0));
            std::fill(to_v[j], to_v[j] + p.D_v, T(0));
        }
        for_each_allowed([&](int j, int r) {
            const T *k = packed_k + j * wide, *v = packed_v + j * wide_v;
            const T *q = w.q + r * wide, *d_out = w.d_out + r * wide_v;
            // Forward, another order of summation may have rounded a huge score down.
            const T weight = std::exp2(std::min(dot(k, q, p.D) - w.lse[r], T(0)));
            const T d_score = weight * (dot(v, d_out, p.D_v) - w.delta[r]) * T(1 / kLog2E);
            for (int64_t d = 0; d < p.D_v; ++d) to_v[j][d] += weight * d_out[d];
            for (int64_t d = 0; d < p.D; ++d) {
                to_k[j][d] += d_score * q[d];
                w.sum[r * wide + d] += d_score * k[d];
            }
        });
    }

    const Problem& p;
    Scratch<T>& w;
    const int64_t wide, wide_v;
    Segment segments[2];
    int n_segments = 0;
    std::vector<int64_t> listed;
    const Sweep* listed_sweep = nullptr;
    int64_t listed_column = 0;
    const Sweep* period_queries = nullptr;
    int64_t period_first = 0;
    int64_t batch = 0, head = 0, q_first = 0, q_step = 1;
    int n_queries = 0;
    bool queries_finite = true;
    int64_t spill_first = 0;
    // Which keys a place for packed ones holds.
    struct Kept {
        int64_t batch = 0, head = 0, first = 0, step = 0;
        int n = 0;
        bool finite = false;

        // Of keys that are not all finite, others than these `count` might be to blame: which
        // were packed depends on the thread's earlier tiles, and results must not.
        bool holds(int64_t b, int64_t h, int64_t from, int64_t apart, int count) const {
            return batch == b && head == h && first == from && step == apart
                && (finite ? n >= count : n == count);
        }
    };
    Kept kept[kKept];
    // The current block.
    const Segment* segment = nullptr;
    int64_t block_start = 0;
    T *packed_k = nullptr, *packed_v = nullptr;
    int n_keys = 0;
    bool masked = false, finite = true;
    alignas(64) Int low[kTile], high[kTile];  // of each query, the keys of the block it may read
    int first_query[kTile / kRows + 1], last_query[kTile / kRows + 1];  // of each panel of keys
    int first_key[kTile / kRows + 1], last_key[kTile / kRows + 1];      // of each panel of queries
};

// --- Tasks ----------------------------------------------------------------------------------------

struct Shared {
    void (*run)(const Problem&, std::atomic<int64_t>&);
    const Problem* problem;
    std::atomic<int64_t> next{0};
    std::atomic<bool> out_of_memory{false};
};

void run_shared(void* data) {
    auto* shared = static_cast<Shared*>(data);
    try {
        shared->run(*shared->problem, shared->next);
    } catch (const std::bad_alloc&) {
        shared->out_of_memory = true;
    }
}

// Let every thread take tasks until there are none; returns 0, or 1 if memory ran out.
int run_in_parallel(const Problem& p, void (*run)(const Problem&, std::atomic<int64_t>&)) {
    Shared shared;
    shared.run = run;
    shared.problem = &p;
    run_on_threads(run_shared, &shared, p.n_threads, p.parallel);
    return shared.out_of_memory;
}

int64_t tiles_of(int64_t length) { return (length + kTile - 1) / kTile; }

int64_t column_length(const Sweep& s, int64_t g, int64_t T) { return (T - g + s.stride - 1) / s.stride; }

// How many queries a thread takes at once, forward: whole tiles, so that blocks of keys stay packed
// from one to the next, but few enough of them to share out.
int64_t run_length(const Problem& p) {
    const int64_t tiles = tiles_of(p.T) * p.B * p.n_sweeps;
    return kTile * std::clamp<int64_t>(tiles / (kTasksAThread * p.n_threads), 1, kLongestRun);
}

// Units of work of a sweep, of which the last are the heaviest.
int64_t forward_units(const Problem& p, const Sweep& s) {
    const int64_t columns = s.stride ? std::min(s.stride, p.T) : 1;
    const int64_t length = s.stride ? column_length(s, 0, p.T) : p.T, run = run_length(p);
    return columns * ((length + run - 1) / run);
}

int64_t backward_units(const Problem& p, const Sweep& s) {
    return s.stride ? std::min(s.stride, p.T) : s.n_chunks;
}

// Take (unit, sweep, batch entry) triples: the heaviest units first, and neighbours in memory, the
// heads of one position, one after another.
template <class Visit>
void take_tasks(const Problem& p, std::atomic<int64_t>& next,
                int64_t (*units)(const Problem&, const Sweep&), Visit visit) {
    int64_t most = 0;
    for (int64_t s = 0; s < p.n_sweeps; ++s) most = std::max(most, units(p, p.sweeps[s]));
    const int64_t n_tasks = most * p.B * p.n_sweeps;
    for (int64_t task; (task = next++) < n_tasks;) {
        const Sweep& sweep = p.sweeps[task % p.n_sweeps];
        const int64_t b = task / p.n_sweeps % p.B, unit = most - 1 - task / p.n_sweeps / p.B;
        if (unit < units(p, sweep)) visit(sweep, b, unit);
    }
}

template <class T> void run_forward(const Problem& p, std::atomic<int64_t>& next) {
    Scratch<T> scratch(p.D, p.D_v);
    Task<T> task(p, scratch);
    const int64_t run = run_length(p);
    take_tasks(p, next, forward_units, [&](const Sweep& s, int64_t b, int64_t unit) {
        const int64_t columns = s.stride ? std::min(s.stride, p.T) : 1;
        const int64_t g = unit % columns, step = s.stride ? s.stride : 1;
        const int64_t length = s.stride ? column_length(s, g, p.T) : p.T;
        const int64_t begin = unit / columns * run, end = std::min(length, begin + run);
        for (int64_t m = begin; m < end; m += kTile) {
            const int n = std::min<int64_t>(kTile, length - m);
            task.load_queries(b, s.head, g + m * step, step, n);
            s.stride ? task.prepare_column(s, g, m, n) : task.prepare_rows(s, m, n);
            task.forward(s);
        }
    });
}

// The positions at which a chunk begins and ends: whole tiles.
int64_t chunk_start(const Sweep& s, int64_t T, int64_t chunk) {
    return std::min(T, tiles_of(T) * chunk / s.n_chunks * kTile);
}

// The first key whose gradient a chunk may add to: panels are computed whole.
int64_t spill_low(const Sweep& s, int64_t first) {
    return std::min(first, Task<float>::interval_low(s, first)) / kRows * kRows;
}

template <class T> T* spill_of(const Problem& p, const Sweep& s, int64_t b, int64_t chunk) {
    return static_cast<T*>(p.spill)
        + (b * p.n_spill_rows + s.spill_rows[chunk]) * (p.D + p.D_v);
}

int64_t columns_before(const Sweep& s, int64_t position) {
    return std::lower_bound(s.columns, s.columns + s.n_columns, position) - s.columns;
}

template <class T> void run_backward(const Problem& p, std::atomic<int64_t>& next) {
    Scratch<T> scratch(p.D, p.D_v);
    Task<T> task(p, scratch);
    take_tasks(p, next, backward_units, [&](const Sweep& s, int64_t b, int64_t unit) {
        if (s.stride) {
            const int64_t length = column_length(s, unit, p.T);
            for (int64_t m = 0; m < length; m += kTile) {
                const int n = std::min<int64_t>(kTile, length - m);
                task.load_queries(b, s.head, unit + m * s.stride, s.stride, n);
                task.prepare_column(s, unit, m, n);
                task.backward(s, 0, nullptr, 0);
            }
            return;
        }
        const int64_t first = chunk_start(s, p.T, unit), end = chunk_start(s, p.T, unit + 1);
        const int64_t spill_columns = columns_before(s, first);
        task.spill_first = spill_low(s, first);
        for (int64_t start = first; start < end; start += kTile) {
            const int n = std::min<int64_t>(kTile, end - start);
            task.load_queries(b, s.head, start, 1, n);
            task.prepare_rows(s, start, n);
            task.backward(s, first, unit ? spill_of<T>(p, s, b, unit) : nullptr, spill_columns);
        }
    });
}

// Add what the chunks spilled, in ascending order, to the gradients of the keys.
template <class T> void run_unspill(const Problem& p, std::atomic<int64_t>& next) {
    const int64_t n_tasks = p.B * p.n_sweeps;
    for (int64_t n; (n = next++) < n_tasks;) {
        const Sweep& s = p.sweeps[n % p.n_sweeps];
        const int64_t b = n / p.n_sweeps;
        if (s.stride) continue;
        T* dk = static_cast<T*>(p.dk.data) + b * p.dk.batch + s.head * p.dk.head;
        T* dv = static_cast<T*>(p.dv.data) + b * p.dv.batch + s.head * p.dv.head;
        for (int64_t chunk = 1; chunk < s.n_chunks; ++chunk) {
            const int64_t first = chunk_start(s, p.T, chunk), n_columns = columns_before(s, first);
            const int64_t low = spill_low(s, first);
            const T* row = spill_of<T>(p, s, b, chunk);
            for (int64_t r = 0; r < n_columns + first - low; ++r, row += p.D + p.D_v) {
                const int64_t key = r < n_columns ? s.columns[r] : low + r - n_columns;
                for (int64_t d = 0; d < p.D; ++d) dk[key * p.dk.position + d] += row[d];
                for (int64_t d = 0; d < p.D_v; ++d) dv[key * p.dv.position + d] += row[p.D + d];
            }
        }
    }
}

}  // namespace

extern "C" {

// How many rows of spill each chunk of a sweep in rows needs.
int64_t sparse_spill_rows(const Sweep* sweep, int64_t T, int64_t chunk) {
    if (chunk == 0) return 0;
    const int64_t first = chunk_start(*sweep, T, chunk);
    if (first >= T) return 0;
    const int64_t low = spill_low(*sweep, first);
    return columns_before(*sweep, first) + first - low;
}

// Ask for fresh memory in pages of 2 MiB: the faults on small ones cost as much as a short sweep,
// and columns touch a small page per row.
void sparse_prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = 1 << 21;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
    const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    (void)data, (void)bytes;
}

int sparse_forward_float(const Problem* p) { return run_in_parallel(*p, run_forward<float>); }
int sparse_forward_double(const Problem* p) { return run_in_parallel(*p, run_forward<double>); }

int sparse_backward_float(const Problem* p) {
    return run_in_parallel(*p, run_backward<float>) || run_in_parallel(*p, run_unspill<float>);
}
int sparse_backward_double(const Problem* p) {
    return run_in_parallel(*p, run_backward<double>) || run_in_parallel(*p, run_unspill<double>);
}
}
