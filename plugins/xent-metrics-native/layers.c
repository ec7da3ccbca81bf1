/* Parts of a decoder layer in float32: causal attention, rotary positions, RMSNorm and silu(x gate') * (x up'). Also the
 * scores of the last states under the logits x head'.
 *
 * Attention (attention.h) is softmax(scale q k' + causal mask) v. A block of queries goes over blocks of keys, and the scores
 * never leave the caches (Milakov and Gimelshein, 2018; Dao et al., 2022). Both products are computed in tiles of ROWS x 2
 * vectors that stay in registers. Keys are packed first, so that a vector holds one dimension of neighbouring keys.
 *
 * Products with weights (products.h) use the same tiles. Logits never leave the caches, either (Wijmans et al., 2025): only the
 * largest logit and a sum are kept for each row and block of the vocabulary.
 *
 * Both headers are compiled once per instruction set.
 *
 * Bits: a row is added up in the same order in any batch. It depends on its own query, the keys and values it sees, the
 * weights, the compiler and the instruction set, but not on the rest of the batch or the threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(name, level) name##_##level
#define JOIN(name, level) JOIN_(name, level)
#define BLOCK 256     /* keys scored at a time */
#define TILES 4       /* of queries in a block */
#define MAX_DIM 256
#define DEPTH 576     /* products of a row that are added up before they join other sums */
#define MAX_WIDTH 512 /* columns of a block of products */

typedef struct {
    int64_t batch, head, row; /* distances in floats; dimensions are adjacent */
} Strides;

typedef struct {
    const float *query, *key, *value;
    float *out;
    int64_t batch, heads, key_heads, length, dim, value_dim;
    Strides of_query, of_key, of_value, of_out;
    float scale;
    float *keys, *values; /* room for packed keys and values: batch * key_heads * padded length * dim (padded value_dim) */
} Attention;

INLINE int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
/* The next part of a depth, of which `rest` is left: at most DEPTH, in parts of about equal size. */
INLINE int64_t share(int64_t rest) { return (rest - 1) / ((rest + DEPTH - 1) / DEPTH) + 1; }

typedef struct {
    const float *states, *cos, *sin;
    float *out;
    int64_t batch, heads, length, dim;
    Strides of_states, of_cos, of_sin, of_out; /* cos and sin have no heads */
} Rotary;

/* silu(states weight') * (states up'); without `up`, the scores of the logits states weight'. */
typedef struct {
    const float *states, *weight, *up; /* [rows][depth]; [columns][depth]; [columns][depth] or NULL */
    int64_t rows, depth, columns; /* rows: at least ROWS */
    int64_t blocks; /* of columns, each with at most MAX_WIDTH columns, both matrices counted */
    float *room;    /* [threads][of_thread]: one packed block per thread */
    int64_t of_thread;
    float *out;            /* [rows][columns] with `up`; otherwise NULL, and all that follows is used */
    const int64_t *target; /* [rows] */
    float *nll, *confidence;
    uint8_t *correct;
    float *top, *rest, *logit; /* room: [rows][blocks]; the same; [rows] */
    uint8_t *leads;            /* room: [rows] */
} Products;

/* exp(x) for x <= 0, where x < -87 counts as -87: 1.6e-38. */
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

INLINE float silu(float x) {
    float size = x > 0.0f ? x : -x, e = size > 87.0f ? 0.0f : exp_of(-size);
    return x * ((x > 0.0f ? 1.0f : e) / (1.0f + e));
}

INLINE void rotate(const float *x, const float *cos, const float *sin, int64_t half, float *out) {
    for (int64_t i = 0; i < half; i++) {
        float left = x[i], right = x[i + half];
        out[i] = left * cos[i] - right * sin[i];
        out[i + half] = right * cos[i + half] + left * sin[i + half];
    }
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#endif
#endif

/* The same functions for several instruction sets. */
#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2,fma")))
#define LEVEL 1
#define LANES 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11 /* interleaves the lower halves of two vectors */
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define ROWS 6
#include "attention.h"
#ifdef __clang__
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#else
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif
#define LEVEL 2
#define LANES 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define ROWS 12
#include "attention.h"
#else /* NEON, or the compiler's own choice */
#define TARGET
#define LEVEL 1
#define LANES 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#define ROWS 12
#include "attention.h"
#define attention_2 attention_1
#define norm_2 norm_1
#define rotate_2 rotate_1
#define multiply_block_2 multiply_block_1
#define join_2 join_1
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

void xent_products(const Products *job, int32_t level, int32_t threads) {
    void (*multiply)(const Products *, int64_t, float *) = level == 2 ? multiply_block_2 : multiply_block_1;
    void (*join)(const Products *, int64_t) = level == 2 ? join_2 : join_1;
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < job->blocks; i++) multiply(job, i, job->room + omp_get_thread_num() * job->of_thread);
        if (!job->up) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < job->rows; i++) join(job, i);
        }
    }
}
