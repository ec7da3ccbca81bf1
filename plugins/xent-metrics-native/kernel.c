/* One pass over each row of logits: nll, the top-1 probability, and whether the top-1 class is the target.
 *
 * A row is read in blocks of 2,048 logits, and half precision is converted to float. The next block is prefetched. For each
 * logit x the pass updates the maximum and adds exp(x) = 2^k e^f, where |f| <= ln(2)/2. e^f - 1 is a polynomial in float; the
 * rest is double, whose exponent is wide enough that nothing needs rescaling while the maximum lies in [LOWEST, HIGHEST].
 * The few other rows are read again with their maximum subtracted. At the end the term of the maximum is left out:
 *
 *     rest = sum of the other terms / exp(top),   nll = log1p(rest) + (top - logit),   confidence = 1 / (1 + rest).
 *
 * Errors: the relative error of a term is at most 4.4e-8 (tried for every float), and so is that of nll before rounding.
 * Bits: 16 lanes are added up in a fixed order, and every fused multiply-add is written out, since no other is contracted.
 * So the bits of a row depend on nothing but the row: not on its neighbours, the threads or the instruction set.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 2048
#define LOWEST (-640.0f)     /* 68 nats above FLOOR, so terms raised to FLOOR don't count */
#define HIGHEST 680.0f       /* the sum of 10^12 terms exp(680) is still finite */
#define ROUND 0x1.8007fep23f /* 1.5 * 2^23 + 1023: leaves the nearest integer, and a double's bias, in the low bits */
#define INLINE static inline __attribute__((always_inline))

/* exp(FLOOR) is a normal double. Volatile, because a value that the compiler can't see becomes one `max` instruction. */
static const volatile float FLOOR = -708.0f;

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

typedef struct {
    const char *logits; /* rows of `vocab_size` adjacent values, `row_bytes` apart */
    int64_t rows, vocab_size, row_bytes;
    int32_t dtype;
    const int64_t *target; /* one per row */
    float *nll, *confidence;
    uint8_t *correct;
} Job;

typedef struct {
    double sum;    /* of exp(x - shift) */
    float top;     /* the largest x - shift */
    int64_t start; /* of the first block that holds it */
} Totals;

INLINE float float_of(uint32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
INLINE uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, sizeof bits); return bits; }

INLINE float from_half(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    uint32_t value = bits_of(float_of(bits) * 0x1p112f); /* rebias the exponent; right for subnormals, too */
    value = (half & 0x7c00) == 0x7c00 ? bits | 0x7f800000 : value; /* infinite or nan */
    return float_of(value | (uint32_t)(half & 0x8000) << 16);
}

/* sum + exp(x) for x <= HIGHEST. A smaller x than `floor` is raised to it; nan stays nan. */
INLINE double add_exp(double sum, float x, float floor) {
    x = floor > x ? floor : x;
    float shifted = __builtin_fmaf(x, 0x1.715476p0f, ROUND);
    float k = shifted - ROUND;                       /* the nearest integer to x / ln 2 */
    float f = __builtin_fmaf(k, -0x1.62e430p-1f, x); /* exact */
    f = __builtin_fmaf(k, 0x1.05c610p-29f, f);       /* the rest of ln 2 */
    float q = __builtin_fmaf(f, 0x1.6a524ep-10f, 0x1.12396ep-7f); /* minimax: e^f = 1 + f + f^2 q(f), to 3.2e-9 */
    q = __builtin_fmaf(q, f, 0x1.5558aap-5f);
    q = __builtin_fmaf(q, f, 0x1.555492p-3f);
    q = __builtin_fmaf(q, f, 0x1.fffffcp-2f);
    uint64_t bits = (uint64_t)bits_of(shifted) << 52;
    double scale; /* 2^k */
    memcpy(&scale, &bits, sizeof scale);
    return __builtin_fma((double)__builtin_fmaf(f * f, q, f), scale, sum + scale);
}

/* `count` logits from `start` as floats minus `shift`, padded with -inf to a multiple of LANES. */
INLINE const float *load(const char *row, int32_t dtype, int64_t start, int64_t count, float shift, float *block) {
    const float *floats = (const float *)row + start;
    const uint16_t *halves = (const uint16_t *)row + start;
    if (dtype == FLOAT32 && count == BLOCK && shift == 0.0f) return floats;
    if (dtype == FLOAT32) memcpy(block, floats, count * sizeof *block);
    else if (dtype == BFLOAT16) for (int64_t j = 0; j < count; j++) block[j] = float_of((uint32_t)halves[j] << 16);
    else for (int64_t j = 0; j < count; j++) block[j] = from_half(halves[j]);
    if (shift != 0.0f) for (int64_t j = 0; j < count; j++) block[j] -= shift;
    for (int64_t j = count; j % LANES; j++) block[j] = -INFINITY;
    return block;
}

INLINE Totals pass(const Job *job, const char *row, float shift) {
    float block[BLOCK];
    const float floor = FLOOR;
    const int64_t size = job->dtype == FLOAT32 ? 4 : 2;
    Totals totals = {0.0, -INFINITY, 0};
    for (int64_t start = 0; start < job->vocab_size; start += BLOCK) {
        int64_t count = job->vocab_size - start < BLOCK ? job->vocab_size - start : BLOCK;
        const float *x = load(row, job->dtype, start, count, shift, block);
        double sum[LANES] = {0.0};
        float top[LANES];
        for (int lane = 0; lane < LANES; lane++) top[lane] = -INFINITY;
        for (int64_t j = 0; j < count; j += LANES) {
            /* The next block, or the next row. Prefetching beyond the end does nothing. */
            __builtin_prefetch(row + (start + BLOCK + j) * size);
#pragma omp simd
            for (int lane = 0; lane < LANES; lane++) {
                top[lane] = x[j + lane] > top[lane] ? x[j + lane] : top[lane];
                sum[lane] = add_exp(sum[lane], x[j + lane], floor);
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            totals.sum += sum[lane];
            if (top[lane] > totals.top) totals.top = top[lane], totals.start = start;
        }
    }
    return totals;
}

/* The first class at which x - shift is the maximum. */
INLINE int64_t first_top(const Job *job, const char *row, float shift, Totals totals) {
    float block[BLOCK];
    int64_t start = totals.start, rest = job->vocab_size - start, j = 0;
    const float *x = load(row, job->dtype, start, rest < BLOCK ? rest : BLOCK, shift, block);
    while (x[j] != totals.top) j++;
    return start + j;
}

INLINE void score_row(const Job *job, int64_t i) {
    const char *row = job->logits + i * job->row_bytes;
    int64_t target = job->target[i];
    float shift = 0.0f, top, logit, padded[LANES];
    Totals totals = pass(job, row, shift);
    if (isfinite(totals.top) && (totals.top < LOWEST || totals.top > HIGHEST)) {
        shift = totals.top;
        totals = pass(job, row, shift);
    }
    job->nll[i] = job->confidence[i] = NAN; /* rows with nan or +inf, or of nothing but -inf, as in log_softmax */
    job->correct[i] = 0;
    if (isnan(totals.sum) || isinf(totals.top) || target < 0 || target >= job->vocab_size) return;
    top = shift + totals.top; /* exact: one of them is 0 */
    logit = load(row, job->dtype, target, 1, 0.0f, padded)[0];
    /* Never negative: a sum of positive terms is never smaller than one of them. */
    double rest = (totals.sum - add_exp(0.0, totals.top, FLOOR)) / exp(totals.top);
    job->nll[i] = log1p(rest) + ((double)top - logit);
    job->confidence[i] = 1.0 / (1.0 + rest);
    job->correct[i] = logit == top && first_top(job, row, shift, totals) == target;
}

/* The same function for each instruction set, by level; 0 is the compiler's default. */
static void score_row_0(const Job *job, int64_t i) { score_row(job, i); }

#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#else
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"
#endif
__attribute__((target("avx2,fma"))) static void score_row_1(const Job *job, int64_t i) { score_row(job, i); }
__attribute__((target(AVX512))) static void score_row_2(const Job *job, int64_t i) { score_row(job, i); }

/* The fastest level of this processor. Level 0 has no fused multiply-add and is slower than torch. */
int32_t xent_level(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") ? 2 : 1;
}
#else /* AArch64 always has NEON, with fused multiply-add */
#define score_row_1 score_row_0
#define score_row_2 score_row_0
int32_t xent_level(void) {
#ifdef __aarch64__
    return 1;
#else
    return 0;
#endif
}
#endif

void xent_score(const Job *job, int32_t level, int32_t threads) {
    static void (*const levels[])(const Job *, int64_t) = {score_row_0, score_row_1, score_row_2};
    void (*row)(const Job *, int64_t) = levels[level];
    int64_t rows = job->rows, some = 1 + 32768 / job->vocab_size;
    (void)threads, (void)some; /* without OpenMP */
#pragma omp parallel for schedule(dynamic, some) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) row(job, i);
}
