/* Rollout, entropy, buckets and the scan of a stream in one pass over tiles, and the leaves of boosted trees, for compiled.py.
 * docs/attention.md, A31.
 *
 * Vectors are GCC's, so one text serves every width; the object says by supported() whether this
 * processor has its instructions. Scores are to base 2. No thread's share depends on their number, so
 * results have the same bits at any. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define ROWS 8
#define LOW {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}
#define HIGH {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}
#define MAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#else
#define LANES 8
#define ROWS 6
#define LOW {0, 8, 1, 9, 2, 10, 3, 11}
#define HIGH {4, 12, 5, 13, 6, 14, 7, 15}
#define MAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#endif
#define VECS 2
#define PANEL (VECS * LANES) /* keys, or rows, that a tile has side by side */
#define TILE 64              /* rows of a stream that share their packed keys */
#define CHUNK 512            /* sums are taken in two levels */
#define HIDDEN -1e30f
#define LOG2_E 1.44269504088896341f
#define LN_2 0.693147180559945309f
#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The SHA-256 of this text as it was compiled. */
const char *source(void) { return SOURCE; }

int supported(void) {
#ifdef __AVX512F__
    return __builtin_cpu_supports("avx512f");
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec load(const float *at) { return *(const vec *)at; }
INLINE void store(float *at, vec x) { *(vec *)at = x; }

static float total(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* 2^x by a polynomial over [-½, ½] (Cephes), 0 from -127 down, infinite from 128 on; NaN stays. */
INLINE vec power(vec x) {
    x = MIN(splat(128), MAX(splat(-127), x));
    vec shifted = x + 12582912.0f, part = x - (shifted - 12582912.0f);
    vec p = 1.535336188e-4f * part + 1.339887440e-3f;
    p = p * part + 9.618437357e-3f;
    p = p * part + 5.550332471e-2f;
    p = p * part + 2.402264791e-1f;
    p = p * part + 6.931472028e-1f;
    p = p * part + 1.0f;
    return (vec)((ints)p + ((ints)shifted << 23));
}

/* Turn rows [count, dim], stride apart, into panels [dim, PANEL], times factor; what is past the end is 0. */
static void pack(float *panels, const float *rows, long stride, long count, long dim, float factor) {
    for (long at = 0; at < count; at += PANEL, panels += dim * PANEL)
        for (long first = 0; first < PANEL; first += LANES)
            for (long d = 0; d < dim; d += LANES) {
                if (d + LANES > dim || at + first + LANES > count) {
                    for (long e = d; e < least(dim, d + LANES); e++)
                        for (long i = first; i < first + LANES; i++)
                            panels[e * PANEL + i] = at + i < count ? rows[(at + i) * stride + e] * factor : 0;
                    continue;
                }
                vec a[LANES], b[LANES];
                EACH(i, LANES) a[i] = load(rows + (at + first + i) * stride + d) * factor;
                for (int round = 1; round < LANES; round *= 2) { /* log2 perfect shuffles transpose */
                    EACH(i, LANES / 2) {
                        b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 2], (ints)LOW);
                        b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 2], (ints)HIGH);
                    }
                    EACH(i, LANES) a[i] = b[i];
                }
                EACH(i, LANES) store(panels + (d + i) * PANEL + first, a[i]);
            }
}

/* score[r][v] += Σ_d row_r[d] · panel[d][v], for rows 0 … last. */
INLINE void multiply(vec score[][VECS], int rows, const float *row, long stride, long last, const float *panel, long dim) {
    for (long d = 0; d < dim; d++)
        EACH(r, rows) EACH(v, VECS) score[r][v] += row[least(r, last) * stride + d] * load(panel + d * PANEL + v * LANES);
}

struct job {
    void (*work)(const struct job *, long);
    long items, next, failed;
    const float *query, *key, *value, *sums, *weights;
    float *output, *figures, *rollout;
    const long *counts;
    long heads, group, time, keys, dim, rows, low, high, query_pair, query_time, key_pair, key_time, rollout_stream, end, window, width;
    float factor, residual, cap;
};

/* Zero what is not visible: of rows 0 … held - 1, the first of them distance beyond the panel's first of count columns. */
INLINE void hide(vec p[][VECS], long distance, long held, long count, long low, long high) {
    ints lane;
    EACH(i, LANES) lane[i] = i;
    EACH(r, ROWS) EACH(v, VECS) {
        ints away = (int)(distance + r - v * LANES) - lane;
        ints seen = (away >= (int)low) & (away <= (int)high) & (lane < (int)(count - v * LANES));
        p[r][v] = (vec)((ints)p[r][v] & (r < held ? seen : (ints){0}));
    }
}

static void *workers(void *given) {
    struct job *job = given;
    for (long item; (item = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->items;) job->work(job, item);
    return NULL;
}

static long run(struct job *job, long threads) {
    pthread_t others[64];
    int started = 0;
    threads = least(least(threads, job->items), 64);
    while (started < threads - 1 && !pthread_create(&others[started], NULL, workers, job)) started++;
    workers(job);
    while (started) pthread_join(others[--started], NULL);
    return job->failed;
}

/* c·tanh(x / c) of scores to base 2, c too. */
INLINE vec capped(vec x, float cap) {
    vec e = power(x * (2.0f * LOG2_E / cap));
    return cap - 2.0f * cap / (e + 1.0f);
}

/* A panel of keys met by all queries, for Σ_i w_i p_ij (weights given), or of queries met by all keys, for each query's mass
 * and entropy. Several heads share a key head. low ≤ met - panel ≤ high is visible. */
INLINE void sweep(const struct job *job, long item, int entropy) {
    long many = entropy ? job->time : job->keys, all = entropy ? job->keys : job->time;
    long panels = (many + PANEL - 1) / PANEL, pair = item / panels, at = item % panels * PANEL;
    long dim = job->dim, rows = entropy ? 2 : job->rows, start = pair * job->time;
    const float *query = job->query + start * dim, *key = job->key + pair / job->group * job->keys * dim;
    const float *met = entropy ? key : query, *sums = job->sums + start;
    const float *weights = entropy ? NULL : job->weights + pair / job->heads * rows * all;
    long first = most(0, at + job->low), last = least(all, least(many, at + PANEL) + job->high), count = least(PANEL, many - at);
    float *panel = aligned_alloc(64, 4 * PANEL * dim + 8 * rows * PANEL * 4);
    if (!panel) { __atomic_store_n(&((struct job *)job)->failed, 1, __ATOMIC_RELAXED); return; }
    vec(*sum)[VECS] = (void *)(panel + PANEL * dim), (*part)[VECS] = sum + rows;
    vec own[VECS];
    EACH(v, VECS) EACH(i, LANES) own[v][i] = entropy ? -LOG2_E * sums[least(at + v * LANES + i, many - 1)] : 0;
    pack(panel, (entropy ? query : key) + at * dim, dim, count, dim, job->factor);
    memset(sum, 0, sizeof(*sum) * rows);
    for (long chunk = first; chunk < last; chunk += CHUNK) {
        memset(part, 0, sizeof(*part) * rows);
        for (long i = chunk; i < least(last, chunk + CHUNK); i += ROWS) {
            long held = least(ROWS, least(last, chunk + CHUNK) - i);
            int used = entropy;
            for (long m = 0; !entropy && m < rows; m++)
                for (long r = 0; r < held; r++) used |= weights[m * all + i + r] != 0;
            if (!used) continue;
            vec score[ROWS][VECS], p[ROWS][VECS];
            int starts = !entropy && !job->cap; /* a cap stands between the product and the logsumexp */
            EACH(r, ROWS) EACH(v, VECS) score[r][v] = starts ? splat(-LOG2_E * sums[i + least(r, held - 1)]) : splat(0);
            multiply(score, ROWS, met + i * dim, dim, held - 1, panel, dim);
            if (job->cap) {
                EACH(r, ROWS) EACH(v, VECS) score[r][v] = capped(score[r][v], job->cap);
                if (!entropy) EACH(r, ROWS) EACH(v, VECS) score[r][v] -= LOG2_E * sums[i + least(r, held - 1)];
            }
            EACH(r, ROWS) EACH(v, VECS) p[r][v] = power(score[r][v] + own[v]);
            if (held < ROWS || i - (at + PANEL - 1) < job->low || i + ROWS - 1 - at > job->high)
                hide(p, i - at, held, count, job->low, job->high);
            if (entropy) {
                EACH(r, ROWS) EACH(v, VECS) part[0][v] += p[r][v];
                EACH(r, ROWS) EACH(v, VECS) part[1][v] += p[r][v] * score[r][v];
            } else
                for (long m = 0; m < rows; m++)
                    EACH(r, ROWS) {
                        float weight = r < held ? weights[m * all + i + r] : 0;
                        EACH(v, VECS) part[m][v] += weight * p[r][v];
                    }
        }
        for (long m = 0; m < rows; m++) EACH(v, VECS) sum[m][v] += part[m][v];
    }
    if (entropy) EACH(v, VECS) { /* mass times the logsumexp less the mean score */
        vec whole = MAX(sum[0][v], splat(1e-30f));
        sum[1][v] = -LN_2 * sum[0][v] * (MAX(own[v], splat(HIDDEN)) + sum[1][v] / whole);
    }
    for (long m = 0; m < rows; m++) memcpy(job->output + (pair * rows + m) * many + at, sum[m], 4 * count);
    free(panel);
}

static void roll(const struct job *job, long item) { sweep(job, item, 0); }
static void spread(const struct job *job, long item) { sweep(job, item, 1); }

/* sizes: pairs of sequence and head, heads, heads of a key head, queries, keys, dim, rows, and the least and most of query - key. */
static struct job layer(const float *query, const float *key, const float *sums, const long *sizes, float scale, float cap) {
    return (struct job){.query = query, .key = key, .sums = sums, .heads = sizes[1], .group = sizes[2], .time = sizes[3],
                        .keys = sizes[4], .dim = sizes[5], .rows = sizes[6], .low = sizes[7], .high = sizes[8],
                        .factor = scale * LOG2_E, .cap = cap * LOG2_E};
}

/* wᵀA of each head: query [pair, time, dim], key [pair of a key head, keys, dim], sums [pair, time], weights
 * [batch, rows, time] -> [pair, rows, keys]. */
long rollout(const float *query, const float *key, const float *sums, const float *weights, float *output, const long *sizes,
             float scale, float cap, long threads) {
    struct job job = layer(query, key, sums, sizes, scale, cap);
    job.work = roll, job.weights = weights, job.output = output;
    job.items = sizes[0] * ((job.keys + PANEL - 1) / PANEL);
    return run(&job, threads);
}

/* Each query's mass on keys and its entropy in nats, [pair, 2, time]. */
long entropy(const float *query, const float *key, const float *sums, float *output, const long *sizes, float scale, float cap,
             long threads) {
    struct job job = layer(query, key, sums, sizes, scale, cap);
    job.work = spread, job.output = output;
    job.low = -sizes[8], job.high = -sizes[7];
    job.items = sizes[0] * ((job.time + PANEL - 1) / PANEL);
    return run(&job, threads);
}

/* to[r][c] += Σ_j share[r][j] · from[j][c] over vecs vectors; sums in steps, a chain of additions each. */
INLINE void mix(float *to, long to_row, const float *share, long share_row, const float *from, long from_row, long count, int rows, int vecs) {
    const int steps = rows == 1 ? 4 : 1;
    vec sum[4][ROWS][VECS];
    EACH(s, steps) EACH(r, rows) EACH(v, vecs) sum[s][r][v] = s ? splat(0) : load(to + r * to_row + v * LANES);
    long j = 0;
    for (; j + steps <= count; j += steps)
        EACH(s, steps) EACH(r, rows) EACH(v, vecs) sum[s][r][v] += share[r * share_row + j + s] * load(from + (j + s) * from_row + v * LANES);
    for (; j < count; j++)
        EACH(r, rows) EACH(v, vecs) sum[0][r][v] += share[r * share_row + j] * load(from + j * from_row + v * LANES);
    EACH(r, rows) EACH(v, vecs) {
        EACH(s, steps) if (s) sum[0][r][v] += sum[s][r][v];
        store(to + r * to_row + v * LANES, sum[0][r][v]);
    }
}

/* Mix all whole columns and the rest one by one, for ROWS rows at a time and then for single ones. */
INLINE void mix_rows(float *to, long to_row, const float *share, long share_row, const float *from, long from_row, long count,
                     long rows, long columns) {
    for (long r = 0; r < rows;) {
        long c = 0, many = rows - r >= ROWS ? ROWS : 1;
        const float *own = share + r * share_row;
        float *at = to + r * to_row;
        for (; c + 2 * LANES <= columns; c += 2 * LANES)
            if (many == ROWS) mix(at + c, to_row, own, share_row, from + c, from_row, count, ROWS, 2);
            else mix(at + c, to_row, own, share_row, from + c, from_row, count, 1, 2);
        for (; c + LANES <= columns; c += LANES)
            if (many == ROWS) mix(at + c, to_row, own, share_row, from + c, from_row, count, ROWS, 1);
            else mix(at + c, to_row, own, share_row, from + c, from_row, count, 1, 1);
        for (; c < columns; c++)
            for (long i = 0; i < many; i++)
                for (long j = 0; j < count; j++) at[i * to_row + c] += own[i * share_row + j] * from[j * from_row + c];
        r += many;
    }
}

/* Mix buckets of count keys, leaving out those that are all zero: a few keys cannot have reached them. */
static void mix_reached(float *to, const float *share, long share_row, const float *past, long count, long rows, long width) {
    for (long at = 0; at < count; at += PANEL)
        for (long c = 0; c < width; c += LANES) {
            long keys = least(PANEL, count - at), columns = least(LANES, width - c), used = 0;
            for (long j = at; !used && j < at + keys; j++)
                for (long e = 0; e < columns; e++) used |= past[j * width + c + e] != 0;
            if (used) mix_rows(to + c, width, share + at, share_row, past + at * width + c, width, keys, rows, columns);
        }
}

/* Up to TILE rows of one batch element met by all their keys, for their buckets one layer up. */
static void climb(const struct job *job, long item) {
    long time = job->time, dim = job->dim, width = job->width, tiles = (time + TILE - 1) / TILE, one = item / tiles;
    long start = item % tiles * TILE, rows = least(TILE, time - start), before = one * time;
    long first = most(0, start - job->high) / PANEL * PANEL, last = least(time, start + rows - job->low);
    float *mean = aligned_alloc(64, 4 * CHUNK * (TILE + dim));
    if (!mean) { __atomic_store_n(&((struct job *)job)->failed, 1, __ATOMIC_RELAXED); return; }
    float *panels = mean + TILE * CHUNK, *result = job->output + (before + start) * width;
    for (long i = 0; i < rows * width; i++) result[i] = job->residual * job->value[(before + start) * width + i];
    for (long at = first; at < last; at += CHUNK) {
        long count = least(CHUNK, last - at);
        memset(mean, 0, 4 * CHUNK * TILE);
        for (long head = 0; head < job->heads; head++) {
            long pair = (one * job->heads + head) * time;
            const float *sums = job->sums + pair + start;
            pack(panels, job->key + (pair + at) * dim, dim, count, dim, job->factor);
            for (long r = 0; r < rows; r += ROWS) {
                long held = least(ROWS, rows - r);
                vec mass[ROWS];
                EACH(i, ROWS) mass[i] = splat(0);
                for (long key = 0; key < count; key += PANEL) {
                    long distance = start + r - at - key;
                    if (distance + held - 1 < job->low || distance - (PANEL - 1) > job->high) continue;
                    vec p[ROWS][VECS];
                    EACH(i, ROWS) EACH(v, VECS) p[i][v] = splat(-LOG2_E * sums[r + least(i, held - 1)]);
                    multiply(p, ROWS, job->query + (pair + start + r) * dim, dim, held - 1, panels + key * dim, dim);
                    EACH(i, ROWS) EACH(v, VECS) p[i][v] = power(p[i][v]);
                    if (held < ROWS || count - key < PANEL || distance - (PANEL - 1) < job->low || distance + ROWS - 1 > job->high)
                        hide(p, distance, held, count - key, job->low, job->high);
                    EACH(i, ROWS) EACH(v, VECS) mass[i] += p[i][v];
                    EACH(i, ROWS) EACH(v, VECS) if (i < held) {
                        float *to = mean + (r + i) * CHUNK + key + v * LANES;
                        store(to, load(to) + job->weights[head] * p[i][v]);
                    }
                }
                for (long i = 0; i < held; i++) job->figures[pair + start + r + i] += total(mass[i]);
            }
        }
        mix_reached(result, mean, CHUNK, job->value + (before + at) * width, count, rows, width);
    }
    free(mean);
}

/* residual · values + Σ_h shares_h A_h · values for values [batch, time, width], and each row's mass, added to masses [pair, time]. */
long buckets(const float *query, const float *key, const float *sums, const float *shares, const float *values, float *masses,
             float *output, const long *sizes, float residual, float scale, long threads) {
    long batch = sizes[0], time = sizes[2], tiles = (time + TILE - 1) / TILE;
    struct job job = {.work = climb, .items = batch * tiles, .query = query, .key = key, .sums = sums, .weights = shares,
                      .value = values, .figures = masses, .output = output, .heads = sizes[1], .time = time, .dim = sizes[3],
                      .width = sizes[4], .low = sizes[5], .high = sizes[6], .residual = residual, .factor = scale * LOG2_E};
    return run(&job, threads);
}

/* Turn the scores of a row over keys first … last - 1 into shares, those outside shown … end - 1 to 0; add them to the
 * mean; write mass, largest score, largest share and mean score. */
INLINE void soften(float *score, float *mean, float *figures, long first, long shown, long end, long last) {
    for (long j = first; j < shown; j++) score[j] = HIDDEN;
    for (long j = end; j < last; j++) score[j] = HIDDEN;
    vec top = splat(HIDDEN), sum = splat(0), product = splat(0), mass = splat(0);
    for (long j = first; j < last; j += LANES) top = MAX(top, load(score + j));
    float most_of_all = HIDDEN;
    EACH(i, LANES) most_of_all = top[i] > most_of_all ? top[i] : most_of_all;
    for (long j = first; j < last; j += LANES) {
        vec below = load(score + j) - most_of_all, share = power(below);
        sum += share;
        product += share * below;
        store(score + j, share);
    }
    float whole = total(sum), part = 1.0f / whole;
    for (long j = first; j < last; j += LANES) {
        vec share = load(score + j) * part;
        mass += share;
        store(score + j, share);
        store(mean + j, load(mean + j) + share);
    }
    figures[0] = total(mass);
    figures[1] = most_of_all * LN_2;
    figures[2] = part;
    figures[3] = (most_of_all + total(product) / whole) * LN_2;
}

/* Up to TILE new rows of one stream meet their windows. */
static void stream(const struct job *job, long item) {
    long tiles = (job->time + TILE - 1) / TILE, one = item / tiles, start = item % tiles * TILE, dim = job->dim, width = job->width;
    long rows = least(TILE, job->time - start), oldest = most(start - job->window + 1, -job->counts[one]);
    long count = start + rows - oldest, wide = (count + PANEL - 1) / PANEL * PANEL;
    float *mean = aligned_alloc(64, (4 * wide * (rows + ROWS + dim) + 63) / 64 * 64);
    if (!mean) { __atomic_store_n(&((struct job *)job)->failed, 1, __ATOMIC_RELAXED); return; }
    float *shares = mean + rows * wide, *panels = shares + ROWS * wide;
    memset(mean, 0, 4 * rows * wide);
    for (long head = 0; head < job->heads; head++) {
        long pair = one * job->heads + head, from = pair * job->key_pair + (job->end + oldest) * job->key_time;
        const float *query = job->query + pair * job->query_pair + start * job->query_time;
        float *output = job->output + (pair * job->time + start) * dim, *figures = job->figures + (pair * job->time + start) * 4;
        memset(output, 0, 4 * rows * dim);
        pack(panels, job->key + from, job->key_time, count, dim, job->factor);
        for (long r = 0; r < rows; r += ROWS) {
            long held = least(ROWS, rows - r), shown = most(0, start + r - job->window + 1 - oldest), end = start + r + 1 - oldest;
            long first = shown / PANEL * PANEL, last = (end + held - 1 + PANEL - 1) / PANEL * PANEL;
            for (long at = first; at < last; at += PANEL) {
                vec score[ROWS][VECS];
                EACH(i, ROWS) EACH(v, VECS) score[i][v] = splat(0);
                if (held == 1) multiply(score, 1, query + r * job->query_time, job->query_time, 0, panels + at * dim, dim);
                else multiply(score, ROWS, query + r * job->query_time, job->query_time, held - 1, panels + at * dim, dim);
                EACH(i, ROWS) EACH(v, VECS) if (i < held) store(shares + i * wide + at + v * LANES, score[i][v]);
            }
            for (long i = 0; i < held; i++) {
                long seen = most(0, start + r + i - job->window + 1 - oldest);
                soften(shares + i * wide, mean + (r + i) * wide, figures + (r + i) * 4, first, seen, end + i, last);
            }
            mix_rows(output + r * dim, dim, shares + first, wide, job->value + from + first * job->key_time, job->key_time,
                     least(last, count) - first, held, dim);
        }
    }
    float *result = job->rollout + (one * job->time + start) * width;
    const float *past = job->weights + one * job->rollout_stream + (job->end + oldest) * width;
    memset(result, 0, 4 * rows * width);
    if (rows == 1) mix_rows(result, width, mean, wide, past, width, count, 1, width);
    else mix_reached(result, mean, wide, past, count, rows, width);
    for (long i = 0; i < rows * width; i++) result[i] *= 1.0f / job->heads;
    free(mean);
}

/* Copy rows [many, time, size], strides apart, into a ring. */
static void append(float *ring, long ring_one, long ring_time, const float *rows, long one, long each, long many, long time, long size) {
    for (long i = 0; i < many; i++)
        for (long t = 0; t < time; t++) memcpy(ring + i * ring_one + t * ring_time, rows + i * one + t * each, 4 * size);
}

/* New rows [pair, time, dim] of streams, with their buckets [stream, time, width], are written to the rings from end on and meet
 * their windows there: output [pair, time, dim], figures [pair, time, 4], rollout [stream, time, width]. */
long scan(const float *query, const float *new_key, const float *new_value, const float *new_rollout, float *key, float *value,
          float *past, const long *counts, float *output, float *figures, float *rollout, const long *sizes, float scale, long threads) {
    long streams = sizes[0], heads = sizes[1], time = sizes[2], dim = sizes[3], tiles = (time + TILE - 1) / TILE;
    long pairs = streams * heads, width = sizes[5], end = sizes[6];
    append(key + end * sizes[10], sizes[9], sizes[10], new_key, sizes[12], sizes[13], pairs, time, dim);
    append(value + end * sizes[10], sizes[9], sizes[10], new_value, sizes[14], sizes[15], pairs, time, dim);
    append(past + end * width, sizes[11], width, new_rollout, sizes[16], sizes[17], streams, time, width);
    struct job job = {.work = stream, .items = streams * tiles, .query = query, .key = key, .value = value, .weights = past,
                      .counts = counts, .output = output, .figures = figures, .rollout = rollout, .heads = heads, .time = time,
                      .dim = dim, .window = sizes[4], .width = sizes[5], .end = sizes[6], .query_pair = sizes[7],
                      .query_time = sizes[8], .key_pair = sizes[9], .key_time = sizes[10], .rollout_stream = sizes[11],
                      .factor = scale * LOG2_E};
    return run(&job, threads);
}

/* Of every tree the value of the leaf that a row reaches: the lowest bit that remains of its words, one word for each feature's
 * place among its edges (forecasters/trees.py). Trees are met so many at a time that their part of the table stays in the cache. */
#define TREES (2 * PANEL)
#define LEAVES(name, word, lowest_bit) \
    static void name(const word *table, const long *places, const double *value, const long *start, double *output, \
                     long rows, long features, long trees) { \
        typedef word words __attribute__((vector_size(4 * LANES), aligned(8), may_alias)); \
        enum { MANY = TREES / (4 * LANES / sizeof(word)) }; \
        for (long at = 0; at < trees; at += TREES) \
            for (long row = 0; row < rows; row++) { \
                words left[MANY]; \
                EACH(v, MANY) left[v] = ~(words){0}; \
                for (long f = 0; f < features; f++) { \
                    const words *kept = (const void *)(table + places[row * features + f] * trees + at); \
                    EACH(v, MANY) left[v] &= kept[v]; \
                } \
                const word *each = (const void *)left; \
                for (int i = 0; i < TREES; i++) output[row * trees + at + i] = value[start[at + i] + lowest_bit(each[i])]; \
            } \
    }
LEAVES(leaves_of_32, uint32_t, __builtin_ctz)
LEAVES(leaves_of_64, uint64_t, __builtin_ctzll)

/* rows [row, column], columns [feature] -> output [row, tree]; edges [feature, most] rise. A table has the entries
 * first[feature] … for a value above none, one, … of the edges, and of_nan[feature]. trees is a multiple of TREES. */
long trees(const double *rows, const long *columns, const double *edges, const long *first, const long *of_nan, const void *table,
           const double *value, const long *start, double *output, const long *sizes, long threads) {
    long count = sizes[0], width = sizes[1], features = sizes[2], most_edges = sizes[3], all = sizes[4];
    long *places = malloc(sizeof(long) * (count * features + 1));
    (void)threads; /* a row model answers on one */
    if (!places) return 1;
    for (long row = 0; row < count; row++)
        for (long f = 0; f < features; f++) {
            double x = rows[row * width + columns[f]];
            const double *low = edges + f * most_edges;
            for (long left = most_edges, half; left > 0; left -= half) { /* no branch: it would be guessed wrong half the time */
                half = (left + 1) / 2;
                low += (x > low[left / 2]) * half;
            }
            places[row * features + f] = x == x ? first[f] + (low - edges - f * most_edges) : of_nan[f];
        }
    if (sizes[5] == 4) leaves_of_32(table, places, value, start, output, count, features, all);
    else leaves_of_64(table, places, value, start, output, count, features, all);
    free(places);
    return 0;
}
