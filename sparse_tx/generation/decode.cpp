// One step of a decoder on a CPU: some tokens through all blocks, keys and values from a cache.
//
// With few tokens, time goes into reading the weights once, so that every stage - a projection, the
// heads' attention - is shared out to all threads by rows of what it reads, if it is large enough.
//
// A sum of products runs over its vectors in order, then across their lanes, whichever tokens are
// computed beside it and however many threads there are: a token's logits are the same to the bit
// in any company.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"
#include "threads.h"

extern "C" {

struct Linear {
    const float *weight, *bias;  // (outputs, inputs); bias or null
    int64_t inputs, outputs;
};

struct Norm {
    const float *weight, *bias;  // bias or null
};

// Where one head's keys are; see cache/layout.py.
struct Head {
    float *k, *v;           // (texts, slots, D) and (texts, slots, D_v)
    int64_t k_text, v_text; // numbers from one text to the next
    int64_t ring;           // slots of the ring, or 0
    int64_t window;         // what is near: the last so many positions, or 0,
    const int64_t* blocks;  // and the blocks of these lengths
    int64_t n_blocks;
    int64_t rest;           // which region lies behind the ring: a Rest
    const int32_t* below;   // columns: how many lie before each position
    int64_t stride, row;    // residues: the stride, and slots of a row
};

struct Layer {
    Norm attention_norm, feed_forward_norm;
    Linear to_qkv, to_out, expand, contract;
    const Head* heads;
};

struct Decoder {
    int64_t n_layer, H, D, D_v, C, V;
    int64_t layer_norm;  // or root mean square
    int64_t activation;  // an Activation
    int64_t qk_norm, rope;
    const Layer* layers;
    Norm final_norm;
    const float* head;           // (V, C)
    const float* const* tables;  // rows of these, (any, C), make up a token's input
    int64_t n_tables;
    int64_t n_threads;
    Parallel parallel;
    float* scores;  // (n_threads, n_scores)
    int64_t n_scores;
};

// Tokens of one text follow one another.
struct Step {
    int64_t n;
    const int64_t *texts, *positions;  // (n)
    const int64_t* rows;               // (n, n_tables)
    int64_t first_wanted;              // the first token whose logits are wanted
    float* logits;                     // (n - first_wanted, V)
    float* work;                       // n times what sparse_decode_work says
};
}

namespace {

// That run through the model at once.
constexpr int64_t kMostTokens = 64;

enum Rest : int64_t { kNothing, kColumns, kResidues, kEverything };
enum Activation : int64_t { kGelu, kSquaredRelu, kSwiglu };

using S = Simd<float>;
using Vec = S::Vec;
constexpr int kLanes = S::kLanes;
constexpr int kRowsATask = 32;
constexpr float kRmsEpsilon = 1e-6f, kLayerNormEpsilon = 1e-5f;
// Multiplications below which waking other threads costs more than it saves.
constexpr int64_t kLittle = 1 << 17, kLittleForNewThreads = 1 << 21;

// --- Threads --------------------------------------------------------------------------------------

template <class F> struct Loop {
    F* run;
    int64_t n;
    std::atomic<int64_t> next{0}, threads{0};
};

template <class F> void take_turns(void* data) {
    auto* loop = static_cast<Loop<F>*>(data);
    const int64_t thread = loop->threads++;
    for (int64_t i; (i = loop->next++) < loop->n;) (*loop->run)(i, thread);
}

// Call run(i, thread) for each i below n, on several threads if it is `work` enough.
template <class F> void for_each(const Decoder& d, int64_t n, int64_t work, F run) {
    const bool alone = work < (d.parallel ? kLittle : kLittleForNewThreads);
    if (alone || d.n_threads == 1 || n == 1) {
        for (int64_t i = 0; i < n; ++i) run(i, int64_t(0));
        return;
    }
    Loop<F> loop;
    loop.run = &run;
    loop.n = n;
    run_on_threads(take_turns<F>, &loop, d.n_threads, d.parallel);
}

// --- Sums of products -----------------------------------------------------------------------------

float sum_lanes(Vec x) {
    float lanes[kLanes];
    S::store(lanes, x);
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// The products of R rows, K apart, and M tokens, ldx apart: done(r, m, sum).
template <int R, int M, class Done>
void dots(const float* rows, const float* x, int64_t ldx, int64_t K, Done done) {
    Vec sums[R][M];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sums[r][m] = Vec{};
    const int64_t whole = K / kLanes * kLanes;
    for (int64_t k = 0; k < whole; k += kLanes) {
        Vec of_x[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) of_x[m] = S::load(x + m * ldx + k);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec row = S::load(rows + r * K + k);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) sums[r][m] = S::fused(row, of_x[m], sums[r][m]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) {
            float sum = sum_lanes(sums[r][m]);
            for (int64_t k = whole; k < K; ++k)
                sum = __builtin_fmaf(rows[r * K + k], x[m * ldx + k], sum);
            done(r, m, sum);
        }
}

// The same for any numbers of rows and tokens: done(row, token, sum).
template <class Done>
void all_dots(const float* rows, int64_t n_rows, const float* x, int64_t ldx, int64_t n, int64_t K,
              Done done) {
    int64_t m = 0;
    for (; m + 4 <= n; m += 4) {
        int64_t r = 0;
        const auto add = [&](int i, int j, float sum) { done(r + i, m + j, sum); };
        for (; r + 2 <= n_rows; r += 2) dots<2, 4>(rows + r * K, x + m * ldx, ldx, K, add);
        if (r < n_rows) dots<1, 4>(rows + r * K, x + m * ldx, ldx, K, add);
    }
    for (; m < n; ++m) {
        int64_t r = 0;
        const auto add = [&](int i, int j, float sum) { done(r + i, m + j, sum); };
        for (; r + 8 <= n_rows; r += 8) dots<8, 1>(rows + r * K, x + m * ldx, ldx, K, add);
        for (; r < n_rows; ++r) dots<1, 1>(rows + r * K, x + m * ldx, ldx, K, add);
    }
}

// y (n, outputs) = or += x (n, inputs) times the weight, and the bias.
void project(const Decoder& d, const Linear& linear, const float* x, int64_t n, float* y, bool add) {
    const int64_t tasks = (linear.outputs + kRowsATask - 1) / kRowsATask;
    for_each(d, tasks, n * linear.inputs * linear.outputs, [&](int64_t task, int64_t) {
        const int64_t first = task * kRowsATask;
        const int64_t rows = std::min<int64_t>(kRowsATask, linear.outputs - first);
        all_dots(linear.weight + first * linear.inputs, rows, x, linear.inputs, n, linear.inputs,
                 [&](int64_t r, int64_t t, float sum) {
                     float& to = y[t * linear.outputs + first + r];
                     if (linear.bias) sum += linear.bias[first + r];
                     to = add ? to + sum : sum;
                 });
    });
}

// --- What goes number by number -------------------------------------------------------------------

// (x - mean) / deviation, or x / root mean square; in double precision, as the rows are short.
void normalise(const float* x, int64_t n, bool centred, float epsilon, float* y) {
    double mean = 0, square = 0;
    if (centred) {
        for (int64_t i = 0; i < n; ++i) mean += x[i];
        mean /= n;
    }
    for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const double factor = 1 / std::sqrt(square / n + epsilon);
    for (int64_t i = 0; i < n; ++i) y[i] = float((x[i] - mean) * factor);
}

void normalise(const Decoder& d, const Norm& norm, const float* x, int64_t n, float* y) {
    for (int64_t t = 0; t < n; ++t, x += d.C, y += d.C) {
        normalise(x, d.C, d.layer_norm, d.layer_norm ? kLayerNormEpsilon : kRmsEpsilon, y);
        for (int64_t c = 0; c < d.C; ++c) y[c] *= norm.weight[c];
        if (norm.bias)
            for (int64_t c = 0; c < d.C; ++c) y[c] += norm.bias[c];
    }
}

// x sigmoid(factor x)
float gated(float x, float factor) { return x / (1 + std::exp(-factor * x)); }

// The hidden layer of each token, in its place; a gate is the first half of its row.
void activate(const Decoder& d, float* hidden, int64_t n, int64_t width, int64_t gates) {
    for (int64_t t = 0; t < n; ++t) {
        float* h = hidden + t * width * gates;
        float* to = hidden + t * width;
        for (int64_t i = 0; i < width; ++i) switch (d.activation) {
            case kGelu: to[i] = gated(h[i], 1.702f); break;
            case kSquaredRelu: to[i] = h[i] > 0 || h[i] != h[i] ? h[i] * h[i] : 0; break;
            case kSwiglu: to[i] = gated(h[i], 1) * h[width + i]; break;
        }
    }
}

// --- Attention ------------------------------------------------------------------------------------

struct Slots {
    int64_t first, n;
};

// The slots that a query reads, in up to three ranges; returns how many.
int list_reads(const Head& head, int64_t query, Slots* to) {
    int64_t low = query + 1;
    int n = 0;
    if (head.ring) {
        if (head.window) low = std::min(low, std::max<int64_t>(0, query + 1 - head.window));
        for (int64_t b = 0; b < head.n_blocks; ++b)
            low = std::min(low, query - query % head.blocks[b]);
        const int64_t first = low % head.ring, count = query + 1 - low;
        const int64_t beyond = first + count - head.ring;
        if (count == head.ring) {
            to[n++] = {0, count};
        } else if (beyond <= 0) {
            to[n++] = {first, count};
        } else {
            to[n++] = {first, head.ring - first};
            to[n++] = {0, beyond};
        }
    }
    switch (head.rest) {
        case kColumns: to[n++] = {head.ring, head.below[low]}; break;
        case kResidues: {
            const int64_t residue = query % head.stride;
            const int64_t count = low > residue ? (low - residue + head.stride - 1) / head.stride : 0;
            to[n++] = {head.ring + residue * head.row, count};
            break;
        }
        case kEverything: to[n++] = {head.ring, query + 1}; break;
    }
    return n;
}

void write_slot(const Head& head, int64_t slot, const float* k, const float* v, int64_t text,
                const Decoder& d) {
    std::memcpy(head.k + text * head.k_text + slot * d.D, k, d.D * sizeof(float));
    std::memcpy(head.v + text * head.v_text + slot * d.D_v, v, d.D_v * sizeof(float));
}

void write_key(const Head& head, int64_t position, const float* k, const float* v, int64_t text,
               const Decoder& d) {
    if (head.ring) write_slot(head, position % head.ring, k, v, text, d);
    switch (head.rest) {
        case kColumns:
            if (head.below[position + 1] > head.below[position])
                write_slot(head, head.ring + head.below[position], k, v, text, d);
            break;
        case kResidues:
            write_slot(head,
                       head.ring + position % head.stride * head.row + position / head.stride, k, v,
                       text, d);
            break;
        case kEverything: write_slot(head, head.ring + position, k, v, text, d); break;
    }
}

// out (D_v) = the values of the slots, weighted by the softmax of the scores of their keys.
void attend(const Decoder& d, const Head& head, int64_t text, int64_t query, const float* q,
            float* scores, float* out) {
    Slots reads[3];
    const int n_reads = list_reads(head, query, reads);
    int64_t total = 0;
    for (int s = 0; s < n_reads; ++s) {
        const float* k = head.k + text * head.k_text + reads[s].first * d.D;
        all_dots(k, reads[s].n, q, d.D, 1, d.D,
                 [&](int64_t r, int64_t, float sum) { scores[total + r] = sum; });
        total += reads[s].n;
    }
    if (!total) {
        std::fill(out, out + d.D_v, 0.f);
        return;
    }
    const float factor = float(kLog2E / std::sqrt(double(d.D)));
    float most = scores[0];
    for (int64_t j = 1; j < total; ++j) most = std::max(most, scores[j]);
    const int64_t padded = (total + kLanes - 1) / kLanes * kLanes;
    for (int64_t j = total; j < padded; ++j) scores[j] = -INFINITY;
    Vec weights = {};
    for (int64_t j = 0; j < padded; j += kLanes) {
        const Vec weight = S::exp2((S::load(scores + j) - most) * factor);
        S::store(scores + j, weight);
        weights += weight;
    }
    const float inverse = 1 / sum_lanes(weights);
    constexpr int kWide = 4 * kLanes;
    for (int64_t c = 0; c < d.D_v; c += kWide) {
        const int64_t left = std::min<int64_t>(kWide, d.D_v - c);
        Vec sums[4] = {};
        float rest[kWide] = {};
        const float* weight = scores;
        for (int s = 0; s < n_reads; ++s) {
            const float* v = head.v + text * head.v_text + reads[s].first * d.D_v + c;
            for (int64_t j = 0; j < reads[s].n; ++j, v += d.D_v, ++weight) {
                if (left == kWide) {
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i)
                        sums[i] = S::fused(S::splat(*weight), S::load(v + i * kLanes), sums[i]);
                } else {
                    for (int64_t i = 0; i < left; ++i)
                        rest[i] = __builtin_fmaf(*weight, v[i], rest[i]);
                }
            }
        }
        if (left == kWide)
            for (int i = 0; i < 4; ++i) S::store(rest + i * kLanes, sums[i]);
        for (int64_t i = 0; i < left; ++i) out[c + i] = rest[i] * inverse;
    }
}

// cos and sin of each position's angles: (n, D), in pairs. Source: arXiv:2104.09864, base 10,000.
void list_turns(const Decoder& d, const Step& s, float* turns) {
    for (int64_t i = 0; i < d.D / 2; ++i) {
        const double frequency = std::pow(10000.0, -2.0 * i / d.D);
        for (int64_t t = 0; t < s.n; ++t) {
            turns[t * d.D + 2 * i] = float(std::cos(s.positions[t] * frequency));
            turns[t * d.D + 2 * i + 1] = float(std::sin(s.positions[t] * frequency));
        }
    }
}

void rotate(float* x, const float* turns, int64_t D) {
    for (int64_t i = 0; i < D; i += 2) {
        const float a = x[i], b = x[i + 1], cos = turns[i], sin = turns[i + 1];
        x[i] = a * cos - b * sin;
        x[i + 1] = a * sin + b * cos;
    }
}

// Of all tokens, in their order: one head of one text.
void attend_head(const Decoder& d, const Step& s, const Layer& layer, int64_t h, int64_t first,
                 int64_t end, float* qkv, const float* turns, float* scores, float* out) {
    const Head& head = layer.heads[h];
    const int64_t width = d.H * (2 * d.D + d.D_v);
    for (int64_t t = first; t < end; ++t) {
        float* q = qkv + t * width + h * d.D;
        float* k = q + d.H * d.D;
        const float* v = qkv + t * width + 2 * d.H * d.D + h * d.D_v;
        for (float* x : {q, k}) {
            if (d.qk_norm) normalise(x, d.D, true, kLayerNormEpsilon, x);
            if (d.rope) rotate(x, turns + t * d.D, d.D);
        }
        write_key(head, s.positions[t], k, v, s.texts[t], d);
        attend(d, head, s.texts[t], s.positions[t], q, scores, out + t * d.H * d.D_v + h * d.D_v);
    }
}

// --- The step -------------------------------------------------------------------------------------

int64_t widest_hidden(const Decoder& d) {
    int64_t widest = 0;
    for (int64_t n = 0; n < d.n_layer; ++n)
        widest = std::max(widest, d.layers[n].expand.outputs);
    return widest;
}

void run_blocks(const Decoder& d, const Step& s, float* x, float* normed, float* qkv, float* heads,
                float* hidden, const float* turns) {
    // Where each text's tokens begin.
    int64_t begins[kMostTokens + 1], n_texts = 0;
    for (int64_t t = 0; t < s.n; ++t)
        if (t == 0 || s.texts[t] != s.texts[t - 1]) begins[n_texts++] = t;
    begins[n_texts] = s.n;
    for (int64_t n = 0; n < d.n_layer; ++n) {
        const Layer& layer = d.layers[n];
        normalise(d, layer.attention_norm, x, s.n, normed);
        project(d, layer.to_qkv, normed, s.n, qkv, false);
        int64_t read = 0;
        for (int64_t h = 0; h < d.H; ++h) {
            Slots reads[3];
            const int ranges = list_reads(layer.heads[h], s.positions[s.n - 1], reads);
            for (int r = 0; r < ranges; ++r) read += reads[r].n;
        }
        for_each(d, n_texts * d.H, read * s.n * (d.D + d.D_v), [&](int64_t task, int64_t thread) {
            const int64_t text = task / d.H;
            attend_head(d, s, layer, task % d.H, begins[text], begins[text + 1], qkv, turns,
                        d.scores + thread * d.n_scores, heads);
        });
        project(d, layer.to_out, heads, s.n, x, true);
        normalise(d, layer.feed_forward_norm, x, s.n, normed);
        project(d, layer.expand, normed, s.n, hidden, false);
        const int64_t width = layer.contract.inputs;
        activate(d, hidden, s.n, width, layer.expand.outputs / width);
        project(d, layer.contract, hidden, s.n, x, true);
    }
}

}  // namespace

extern "C" {

int64_t sparse_decode_most_tokens() { return kMostTokens; }

// Numbers of working memory for each token.
int64_t sparse_decode_work(const Decoder* d) {
    return 2 * d->C + d->H * (2 * d->D + d->D_v) + d->H * d->D_v + widest_hidden(*d) + d->D;
}

// Run some tokens, at most kMostTokens, through the model, and put their keys into the cache.
void sparse_decode(const Decoder* decoder, const Step* step) {
    const Decoder& d = *decoder;
    const Step& s = *step;
    float* at = s.work;
    const auto take = [&](int64_t width) {
        float* piece = at;
        at += s.n * width;
        return piece;
    };
    float *x = take(d.C), *normed = take(d.C), *qkv = take(d.H * (2 * d.D + d.D_v));
    float *heads = take(d.H * d.D_v), *hidden = take(widest_hidden(d)), *turns = take(d.D);
    for (int64_t t = 0; t < s.n; ++t) {
        float* to = x + t * d.C;
        std::fill(to, to + d.C, 0.f);
        for (int64_t n = 0; n < d.n_tables; ++n) {
            const float* row = d.tables[n] + s.rows[t * d.n_tables + n] * d.C;
            for (int64_t c = 0; c < d.C; ++c) to[c] += row[c];
        }
    }
    if (d.rope) list_turns(d, s, turns);
    run_blocks(d, s, x, normed, qkv, heads, hidden, turns);
    const int64_t wanted = s.n - s.first_wanted;
    normalise(d, d.final_norm, x + s.first_wanted * d.C, wanted, normed);
    const Linear head = {d.head, nullptr, d.C, d.V};
    project(d, head, normed, wanted, s.logits, false);
}
}
