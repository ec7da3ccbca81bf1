/* What a decoder layer does beside its matrix products, in float32: causal attention, rotary positions, RMSNorm, and
 * silu(gate) * up.
 *
 * Attention: softmax(scale q k' + causal mask) v, a block of queries at a time over blocks of keys, none of whose scores
 * leaves the caches (Milakov and Gimelshein, 2018; Dao et al., 2022). Both products are made of tiles of ROWS x 2 vectors that
 * stay in registers; keys are packed before, so that a vector holds one dimension of neighbouring keys. attention.h is that
 * for one instruction set.
 *
 * Bits: a row is added up in the same order whatever stands beside it, so it depends on its own query, the keys and values
 * it sees and the instruction set, not on the batch or the threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(name, level) name##_##level
#define JOIN(name, level) JOIN_(name, level)
#define BLOCK 256     /* keys whose scores are kept at a time */
#define TILES 4       /* of queries, that go over them together */
#define MAX_DIM 256
#define AT_ONCE 4096  /* elements of a product that a thread takes */

typedef struct {
    int64_t batch, head, row; /* distances in floats; dimensions are adjacent */
} Strides;

typedef struct {
    const float *query, *key, *value;
    float *out;
    int64_t batch, heads, key_heads, length, dim, value_dim;
    Strides of_query, of_key, of_value, of_out;
    float scale;
    float *keys, *values; /* room for what is packed: batch * key_heads * padded length * dim, each padded */
} Attention;

INLINE int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct {
    const float *states, *cos, *sin;
    float *out;
    int64_t batch, heads, length, dim;
    Strides of_states, of_cos, of_sin, of_out; /* cos and sin have no heads */
} Rotary;

/* exp(x) for x <= 0; below -87 it is taken for that, 1.6e-38. */
INLINE float exp_of(float x) {
    x = -87.0f > x ? -87.0f : x;                  /* nan stays */
    float shifted = x * 0x1.715476p0f + 0x1.8p23f; /* leaves the nearest integer to x / ln 2 in the low bits */
    float k = shifted - 0x1.8p23f;
    float f = k * -0x1.62e430p-1f + x;
    f = k * 0x1.05c610p-29f + f; /* the rest of ln 2 */
    float q = f * 0x1.6a524ep-10f + 0x1.12396ep-7f; /* e^f = 1 + f + f^2 q(f), as in kernel.c */
    q = q * f + 0x1.5558aap-5f;
    q = q * f + 0x1.555492p-3f;
    q = q * f + 0x1.fffffcp-2f;
    uint32_t bits;
    float power, less_one = f * f * q + f;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    return less_one * power + power;
}

INLINE void norm(const float *x, const float *weight, float eps, int64_t size, float *out) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / (float)size + eps);
    for (int64_t i = 0; i < size; i++) out[i] = weight[i] * (x[i] * scale);
}

INLINE void silu(float *gate, const float *up, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        float x = gate[i], e = exp_of(x > 0.0f ? -x : x);
        gate[i] = x * ((x > 0.0f ? 1.0f : e) / (1.0f + e)) * up[i];
    }
}

INLINE void rotate(const float *x, const float *cos, const float *sin, int64_t half, float *out) {
    for (int64_t i = 0; i < half; i++) {
        float left = x[i], right = x[i + half];
        out[i] = left * cos[i] - right * sin[i];
        out[i + half] = right * cos[i + half] + left * sin[i + half];
    }
}

/* The same functions for several instruction sets. */
#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2,fma")))
#define LEVEL 1
#define LANES 8
#define ROWS 6
#include "attention.h"
#ifdef __clang__
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#else
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif
#define LEVEL 2
#define LANES 16
#define ROWS 12
#include "attention.h"
#else /* NEON, or whatever vectors the compiler makes */
#define TARGET
#define LEVEL 1
#define LANES 4
#define ROWS 12
#include "attention.h"
#define attention_2 attention_1
#define norm_2 norm_1
#define rotate_2 rotate_1
#define silu_2 silu_1
#endif

void xent_attention(const Attention *job, int32_t level, int32_t threads) {
    (level == 2 ? attention_2 : attention_1)(job, threads);
}

void xent_rotary(const Rotary *job, int32_t level, int32_t threads) {
    void (*of)(const float *, const float *, const float *, int64_t, float *) = level == 2 ? rotate_2 : rotate_1;
    const int64_t length = job->length;
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < job->batch * length; i++) {
        const int64_t batch = i / length, row = i % length;
        const float *states = job->states + batch * job->of_states.batch + row * job->of_states.row;
        const float *cos = job->cos + batch * job->of_cos.batch + row * job->of_cos.row;
        const float *sin = job->sin + batch * job->of_sin.batch + row * job->of_sin.row;
        float *out = job->out + batch * job->of_out.batch + row * job->of_out.row;
        for (int64_t head = 0; head < job->heads; head++)
            of(states + head * job->of_states.head, cos, sin, job->dim / 2, out + head * job->of_out.head);
    }
}

void xent_rms_norm(
    const float *x, const float *weight, float eps, int64_t rows, int64_t size, float *out, int32_t level, int32_t threads
) {
    void (*of)(const float *, const float *, float, int64_t, float *) = level == 2 ? norm_2 : norm_1;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) of(x + i * size, weight, eps, size, out + i * size);
}

void xent_silu(float *gate, const float *up, int64_t size, int32_t level, int32_t threads) {
    void (*of)(float *, const float *, int64_t) = level == 2 ? silu_2 : silu_1;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < size; i += AT_ONCE) of(gate + i, up + i, least(AT_ONCE, size - i));
}
