/* Attention for one instruction set: TARGET, LEVEL, LANES per vector, and ROWS of 2 vectors per tile, all in registers. */
#define NAME(name) JOIN(name, LEVEL)
#define vector NAME(vector)
#define WIDE (2 * LANES)       /* columns of a tile */
#define QUERIES (TILES * ROWS) /* of a block */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* c (ROWS x WIDE) = a (ROWS x depth) b (depth x WIDE), plus c if `add`. */
INLINE void NAME(tile)(
    int add, int64_t depth, const float *a, int64_t a_row, const float *b, float *c, int64_t c_row
) {
    vector sum[ROWS][2];
    const float *of[ROWS / 3]; /* of every third row, so that all addresses stay in registers */
#pragma GCC unroll 4
    for (int i = 0; i < ROWS / 3; i++) of[i] = a + 3 * i * a_row;
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) sum[i][0] = sum[i][1] = (vector){0};
    for (int64_t k = 0; k < depth; k++, b += WIDE) {
        vector left = *(const vector *)b, right = *(const vector *)(b + LANES);
        __builtin_prefetch(b + 8 * WIDE);
        __builtin_prefetch(b + 8 * WIDE + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; i++) {
            vector x = of[i / 3][i % 3 * a_row + k] - (vector){0};
            sum[i][0] += x * left;
            sum[i][1] += x * right;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) {
        vector *left = (vector *)(c + i * c_row), *right = (vector *)(c + i * c_row + LANES);
        if (add) sum[i][0] += *left, sum[i][1] += *right;
        *left = sum[i][0], *right = sum[i][1];
    }
}

/* Transposes LANES x LANES numbers. */
INLINE void NAME(transpose)(const float *from, int64_t row, float *to) {
#ifdef SHUFFLE /* log2(LANES) perfect shuffles, as of a pack of cards, transpose a square */
    vector x[LANES], y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = *(const vector *)(from + i * row);
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + LANES / 2], LOW);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + LANES / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) *(vector *)(to + i * WIDE) = x[i];
#else
    for (int64_t k = 0; k < LANES; k++)
        for (int64_t j = 0; j < LANES; j++) to[k * WIDE + j] = from[j * row + k];
#endif
}

/* Packs LANES columns of `depth` numbers side by side: `row` apart in `from`, WIDE apart in `to`, padded with zeros. */
INLINE void NAME(pack_columns)(const float *from, int64_t row, int64_t count, int64_t depth, float *to) {
    int64_t k = 0;
    if (count == LANES)
        for (; k + LANES <= depth; k += LANES) NAME(transpose)(from + k, row, to + k * WIDE);
    for (; k < depth; k++)
        for (int64_t j = 0; j < LANES; j++) to[k * WIDE + j] = j < count ? from[j * row + k] : 0.0f;
}

/* Packs WIDE keys and values of one head: keys as [dim][WIDE], values as [value_dim / WIDE][length][WIDE], padded with zeros.
 * Padding after the last key only causes scores that nobody reads. */
TARGET static void NAME(pack)(const Attention *job, int64_t head, int64_t start) {
    const int64_t length = padded(job->length, WIDE), batch = head / job->key_heads, of_batch = head % job->key_heads;
    const float *key = job->key + batch * job->of_key.batch + of_batch * job->of_key.head;
    const float *value = job->value + batch * job->of_value.batch + of_batch * job->of_value.head;
    float *keys = job->keys + head * length * job->dim + start * job->dim;
    float *values = job->values + head * length * padded(job->value_dim, WIDE) + start * WIDE;
    const int64_t count = least(WIDE, job->length - start);
    for (int64_t j = 0; j < count; j += LANES) {
        const float *from = key + (start + j) * job->of_key.row;
        NAME(pack_columns)(from, job->of_key.row, least(LANES, count - j), job->dim, keys + j);
    }
    for (int64_t first = 0; first < job->value_dim; first += WIDE, values += length * WIDE) {
        const int64_t some = least(WIDE, job->value_dim - first);
        if (count < WIDE || some < WIDE) memset(values, 0, WIDE * WIDE * sizeof *values);
        for (int64_t j = 0; j < count; j++)
            memcpy(values + j * WIDE, value + (start + j) * job->of_value.row + first, some * sizeof *values);
    }
}

/* The largest of `other` and `size` numbers, where `size` is a multiple of LANES; nan doesn't count. */
INLINE float NAME(largest)(const float *x, int64_t size, float other) {
    float high = other, tops[LANES];
    for (int lane = 0; lane < LANES; lane++) tops[lane] = other;
    for (int64_t j = 0; j < size; j += LANES)
#pragma omp simd
        for (int lane = 0; lane < LANES; lane++) tops[lane] = x[j + lane] > tops[lane] ? x[j + lane] : tops[lane];
    for (int lane = 0; lane < LANES; lane++) high = tops[lane] > high ? tops[lane] : high;
    return high;
}

/* Turns the scores of one row into exp(score - maximum so far), in place. Those after the first `seen` become 0. The earlier
 * sums are rescaled to the new maximum. */
INLINE void NAME(soften)(float *scores, int64_t seen, int64_t size, float *top, float *total, float *out, int64_t dim) {
    const int64_t end = padded(seen, LANES);
    float sum = 0.0f;
    for (int64_t j = seen; j < end; j++) scores[j] = -INFINITY;
    const float high = NAME(largest)(scores, end, *top);
    const float shift = high == -INFINITY ? 0.0f : high; /* a block may be nothing but -inf */
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < end; j++) {
        scores[j] = exp_of(scores[j] - shift);
        sum += scores[j];
    }
    memset(scores + seen, 0, (size - seen) * sizeof *scores);
    if (*total != 0.0f) { /* not the first block */
        float less = exp_of(*top - shift);
        sum += *total * less;
        for (int64_t d = 0; d < dim; d++) out[d] *= less;
    }
    *top = high, *total = sum;
}

/* Attention of one head for the block of queries that starts at `first`. */
TARGET static void NAME(attend)(const Attention *job, int64_t head, int64_t first) {
    const int64_t length = padded(job->length, WIDE), dim = job->dim, value_dim = padded(job->value_dim, WIDE);
    const int64_t batch = head / job->heads, of_batch = head % job->heads;
    const int64_t key_head = batch * job->key_heads + of_batch / (job->heads / job->key_heads);
    const float *keys = job->keys + key_head * length * dim, *values = job->values + key_head * length * value_dim;
    const float *query = job->query + batch * job->of_query.batch + of_batch * job->of_query.head;
    float *result = job->out + batch * job->of_out.batch + of_batch * job->of_out.head;
    /* Rows are a few cache lines longer than a power of 2, so that they don't compete for the same lines of the cache. */
    const int64_t wide = padded(dim > value_dim ? dim : value_dim, WIDE) + 16;
    float queries[QUERIES * (MAX_DIM + WIDE + 16)], out[QUERIES * (MAX_DIM + WIDE + 16)];
    float scores[QUERIES][BLOCK + 16], top[QUERIES], total[QUERIES];
    const int64_t count = least(QUERIES, job->length - first);
    for (int64_t i = 0; i < QUERIES; i++) {
        const float *from = query + (first + (i < count ? i : 0)) * job->of_query.row;
        for (int64_t d = 0; d < dim; d++) queries[i * wide + d] = from[d] * job->scale;
        for (int64_t d = 0; d < value_dim; d++) out[i * wide + d] = 0.0f;
        top[i] = -INFINITY, total[i] = 0.0f;
    }
    for (int64_t start = 0; start < first + count; start += BLOCK) {
        const int64_t size = least(BLOCK, padded(first + count - start, WIDE));
        for (int64_t j = 0; j < size; j += WIDE)
            for (int64_t i = 0; i < QUERIES; i += ROWS)
                if (start + j < first + i + ROWS) /* a row of the tile sees a key */
                    NAME(tile)(0, dim, queries + i * wide, wide, keys + (start + j) * dim, scores[i] + j, BLOCK + 16);
        for (int64_t i = 0; i < QUERIES; i++) {
            const int64_t seen = i < count ? least(size, first + i + 1 - start) : 0;
            if (seen > 0) NAME(soften)(scores[i], seen, size, top + i, total + i, out + i * wide, value_dim);
            else memset(scores[i], 0, size * sizeof(float));
        }
        for (int64_t d = 0; d < value_dim; d += WIDE)
            for (int64_t i = 0; i < QUERIES; i += ROWS) {
                const int64_t depth = least(size, first + i + ROWS - start);
                if (depth > 0)
                    NAME(tile)(
                        1, depth, scores[i], BLOCK + 16, values + d * length + start * WIDE, out + i * wide + d, wide
                    );
            }
    }
    for (int64_t i = 0; i < count; i++) {
        float *to = result + (first + i) * job->of_out.row;
        for (int64_t d = 0; d < job->value_dim; d++) to[d] = out[i * wide + d] / total[i];
    }
}

static void NAME(attention)(const Attention *job, int32_t threads) {
    const int64_t packs = padded(job->length, WIDE) / WIDE, blocks = padded(job->length, QUERIES) / QUERIES;
    const int64_t heads = job->batch * job->heads, key_heads = job->batch * job->key_heads;
    (void)threads; /* without OpenMP */
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < key_heads * packs; i++) NAME(pack)(job, i / packs, i % packs * WIDE);
#pragma omp for schedule(dynamic, 1) /* the last blocks first, because they take longest */
        for (int64_t i = 0; i < heads * blocks; i++) NAME(attend)(job, i % heads, (blocks - 1 - i / heads) * QUERIES);
    }
}

TARGET static void NAME(rotate)(const float *x, const float *cos, const float *sin, int64_t half, float *out) {
    rotate(x, cos, sin, half, out);
}

TARGET static void NAME(norm)(const float *x, const float *weight, float eps, int64_t size, float *out) {
    norm(x, weight, eps, size, out);
}

#include "products.h"

#undef NAME
#undef vector
#undef WIDE
#undef QUERIES
#undef TARGET
#undef LEVEL
#undef LANES
#undef LOW
#undef HIGH
#undef ROWS
