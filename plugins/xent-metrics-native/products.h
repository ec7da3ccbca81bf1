/* Multiplies rows of states by weights, one block of columns at a time. A block is packed into the cache once and multiplied
 * with all rows, ROWS at a time. The products are turned into results while they are still in the cache. */

/* Blocks consist of whole tiles. A tile of gated products has LANES columns of the gate and the same columns of `up`. */
INLINE int64_t NAME(first_column)(const Products *job, int64_t block) {
    const int64_t columns = job->up ? LANES : WIDE;
    return block * (padded(job->columns, columns) / columns) / job->blocks * columns;
}

/* Packs the columns of a block as [part of the depth][tile][depth of the part][WIDE], in the order in which they are
 * multiplied, padded with zeros. */
TARGET static void NAME(pack_block)(const Products *job, int64_t block, float *to) {
    const int64_t first = NAME(first_column)(job, block), end = NAME(first_column)(job, block + 1);
    for (int64_t start = 0, size; start < job->depth; start += size) {
        size = share(job->depth - start);
        for (int64_t of_tile = first; of_tile < end; of_tile += job->up ? LANES : WIDE, to += size * WIDE)
            for (int64_t half = 0; half < WIDE; half += LANES) {
                const int64_t column = of_tile + (job->up ? 0 : half), count = least(LANES, job->columns - column);
                const float *from = (job->up && half ? job->up : job->weight) + column * job->depth + start;
                NAME(pack_columns)(from, job->depth, count, size, to + half);
            }
    }
}

/* Reduces `count` logits of a row in a block to the largest and the sum of exp(logit - largest) over the others. */
INLINE void NAME(score_block)(const Products *job, int64_t row, int64_t block, int64_t first, int64_t count, float *x) {
    const int64_t end = padded(count, LANES), at = row * job->blocks + block, target = job->target[row] - first;
    float sum = 0.0f;
    int32_t index = INT32_MAX; /* of the first of the largest */
    for (int64_t j = count; j < end; j++) x[j] = -INFINITY;
    const float high = NAME(largest)(x, end, -INFINITY);
#pragma omp simd reduction(min : index)
    for (int32_t j = 0; j < (int32_t)end; j++) {
        int32_t here = x[j] == high ? j : INT32_MAX;
        index = here < index ? here : index;
    }
    if (target >= 0 && target < count) job->logit[row] = x[target], job->leads[row] = target == index;
    if (index < count) x[index] = -INFINITY;
    const float shift = high == -INFINITY ? 0.0f : high;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < end; j++) sum += exp_of(x[j] - shift);
    job->top[at] = high, job->rest[at] = high == INFINITY ? NAN : sum;
}

/* Multiplies ROWS rows from `row` with the columns of a block. */
TARGET static void NAME(multiply)(const Products *job, int64_t row, int64_t block, const float *packed) {
    float products[ROWS][MAX_WIDTH + 16]; /* not a power of 2, as in attention.h */
    const int64_t first = NAME(first_column)(job, block), end = NAME(first_column)(job, block + 1);
    const int64_t count = least(end, job->columns) - first, width = (end - first) * (job->up ? 2 : 1);
    for (int64_t start = 0, size; start < job->depth; start += size) {
        size = share(job->depth - start);
        for (int64_t j = 0; j < width; j += WIDE, packed += size * WIDE)
            NAME(tile)(
                start > 0, size, job->states + row * job->depth + start, job->depth, packed, products[0] + j, MAX_WIDTH + 16
            );
    }
    for (int64_t i = 0; i < ROWS; i++) {
        float *x = products[i], *out = job->up ? job->out + (row + i) * job->columns + first : NULL;
        if (!job->up) NAME(score_block)(job, row + i, block, first, count, x);
        else
            for (int64_t j = 0; j < count; j += LANES, x += WIDE)
#pragma omp simd
                for (int64_t lane = 0; lane < least(LANES, count - j); lane++)
                    out[j + lane] = silu(x[lane]) * x[LANES + lane];
    }
}

/* Multiplies a block with all rows. The last tile overlaps the one before, so that it doesn't exceed the rows. */
static void NAME(multiply_block)(const Products *job, int64_t block, float *packed) {
    NAME(pack_block)(job, block, packed);
    for (int64_t row = 0; row < job->rows; row += ROWS) NAME(multiply)(job, least(row, job->rows - ROWS), block, packed);
}

/* Joins the blocks of a row of logits. */
TARGET static void NAME(join)(const Products *job, int64_t row) {
    const float *tops = job->top + row * job->blocks, *rests = job->rest + row * job->blocks;
    const int64_t target = job->target[row];
    float high = -INFINITY;
    int64_t lead = 0;
    for (int64_t j = 0; j < job->blocks; j++)
        if (tops[j] > high) high = tops[j], lead = j;
    double rest = rests[lead];
#pragma omp simd reduction(+ : rest)
    for (int64_t j = 0; j < job->blocks; j++) rest += j == lead ? 0.0f : (1.0f + rests[j]) * exp_of(tops[j] - high);
    if (high == -INFINITY) rest = NAN; /* as in log_softmax */
    job->nll[row] = (float)(log1p(rest) + ((double)high - job->logit[row]));
    job->confidence[row] = (float)(1.0 / (1.0 + rest));
    const int leads = job->leads[row] && target >= NAME(first_column)(job, lead) && target < NAME(first_column)(job, lead + 1);
    job->correct[row] = leads && rest >= 0.0;
}
