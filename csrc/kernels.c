/* Optimizer steps. See kernels.h for the guarantees.
 *
 *     kernel_step --> range_step, for each block of BLOCK_BYTES:
 *                       tree_sum        gradient buffers --> one block that stays in the cache
 *                       grad_prepare    scale it, add the weight decay
 *                       table[].step    that block, parameters and state --> new parameters and state
 *
 * An optimizer is one function over a block, in kernels_impl.h, and one line of the table below.
 */
#include "kernels.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "kernels.c promises bits: compile it without -ffast-math"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "kernels.c needs arithmetic in the element type itself, as on x86-64 and aarch64"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* gcc has no such pragma: there -ffp-contract=off, or any -std=c.., says it */
#endif

/* One function for several x86-64 generations, chosen by glibc when the library is loaded. Sanitizers cannot run that
 * early, hence UNTORN_NO_CLONES. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(UNTORN_NO_CLONES) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define CLONED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef CLONED
#define CLONED
#endif

#define ALWAYS_INLINE __attribute__((always_inline)) inline
#ifdef __clang__
#define INDEPENDENT_ELEMENTS _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT_ELEMENTS _Pragma("GCC ivdep")
#endif

/* Long enough to hide the calls and to keep the processor's prefetching going from shard to shard, short enough that
 * the blocks of a tree of 16 shards fit the first-level cache. */
#define BLOCK_BYTES 4096
/* Bytes are checked right after they are copied, while they are in the first-level cache. */
#define COPY_BYTES 16384
/* A counter of 2^31 pairs of shards, and the node just pushed. */
#define TREE_LEVELS KERNEL_MAX_DEPTH
/* The number of sums of squares that are kept side by side, whatever the vector width: element i is added to sum i %
 * SQUARE_SUMS. */
#define SQUARE_SUMS 32

/* One block of a step; the element type is the step's. */
struct block {
    size_t count;
    const void *grad;
    const void *params_in;
    void *params_out;
    const void *state_in[KERNEL_MAX_STATES];
    void *state_out[KERNEL_MAX_STATES];
};

typedef void block_step(const struct kernel_hyper *hyper, const struct block *block);

#define KERNEL_REAL float
#define KERNEL_SQRT sqrtf
#define KERNEL_NAME(noun) noun##_f32
#include "kernels_impl.h"
#undef KERNEL_REAL
#undef KERNEL_SQRT
#undef KERNEL_NAME
#define KERNEL_REAL double
#define KERNEL_SQRT sqrt
#define KERNEL_NAME(noun) noun##_f64
#include "kernels_impl.h"
#undef KERNEL_REAL
#undef KERNEL_SQRT
#undef KERNEL_NAME

static unsigned sgd_state_count(const struct kernel_hyper *hyper) { return hyper->momentum != 0; }
static unsigned adam_state_count(const struct kernel_hyper *hyper) { return 2 + (hyper->amsgrad != 0); }
static unsigned rmsprop_state_count(const struct kernel_hyper *hyper)
{
    return 1 + (hyper->momentum != 0) + (hyper->centered != 0);
}
static unsigned adagrad_state_count(const struct kernel_hyper *hyper)
{
    (void)hyper;
    return 1;
}

static const struct {
    unsigned (*state_count)(const struct kernel_hyper *hyper);
    block_step *step[2]; /* by dtype */
} table[KERNEL_OPTIMIZERS] = {
    [KERNEL_SGD] = {sgd_state_count, {sgd_step_f32, sgd_step_f64}},
    [KERNEL_ADAM] = {adam_state_count, {adam_step_f32, adam_step_f64}},
    [KERNEL_RMSPROP] = {rmsprop_state_count, {rmsprop_step_f32, rmsprop_step_f64}},
    [KERNEL_ADAGRAD] = {adagrad_state_count, {adagrad_step_f32, adagrad_step_f64}},
    [KERNEL_SPARSE_ADAM] = {adam_state_count, {adam_step_f32, adam_step_f64}},
};

/* The thread's rounding and flush-to-zero mode. Moving arithmetic across a change of it would be a valid optimisation
 * in C, so the code that depends on it is in functions that are not inlined. */
#if defined(__x86_64__)
#define FLOAT_MODE_DEFAULT 0x1f80u /* every exception masked, round to nearest, subnormals kept */
static uint64_t float_mode_load(void) { return __builtin_ia32_stmxcsr(); }
static void float_mode_store(uint64_t mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }
#elif defined(__aarch64__)
#define FLOAT_MODE_DEFAULT 0u
static uint64_t float_mode_load(void)
{
    uint64_t mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void float_mode_store(uint64_t mode) { __asm__ __volatile__("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
#error "untorn runs on x86-64 and aarch64"
#endif

unsigned kernel_state_count(enum kernel_optimizer optimizer, const struct kernel_hyper *hyper)
{
    return table[optimizer].state_count(hyper);
}

size_t kernel_itemsize(enum kernel_dtype dtype) { return dtype == KERNEL_F32 ? sizeof(float) : sizeof(double); }

__attribute__((noinline)) static void step_take(enum kernel_optimizer optimizer, enum kernel_dtype dtype,
                                                const struct kernel_hyper *hyper, const struct kernel_range *range)
{
    const unsigned states = kernel_state_count(optimizer, hyper);
    block_step *step = table[optimizer].step[dtype];
    if (dtype == KERNEL_F32)
        range_step_f32(hyper, range, states, step);
    else
        range_step_f64(hyper, range, states, step);
}

void kernel_step(enum kernel_optimizer optimizer, enum kernel_dtype dtype, const struct kernel_hyper *hyper,
                 const struct kernel_range *range)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    step_take(optimizer, dtype, hyper, range);
    float_mode_store(mode);
}

/* A number as the sum of two: twice the digits. */
struct pair {
    double high, low;
};

/* Split into two halves of the digits, whose products are exact (Dekker, "A floating-point technique for extending the
 * available precision", 1971). */
static struct pair halves(double number)
{
    const double scaled = 134217729 * number, high = scaled - (scaled - number);
    return (struct pair){high, number - high};
}

static struct pair pairs_multiply(struct pair a, struct pair b)
{
    const struct pair x = halves(a.high), y = halves(b.high);
    const double product = a.high * b.high;
    const double rest = ((x.high * y.high - product) + x.high * y.low + x.low * y.high) + x.low * y.low;
    const double low = rest + (a.high * b.low + a.low * b.high), sum = product + low;
    return (struct pair){sum, low - (sum - product)};
}

/* base^exponent for a base from 0 to 1, by squaring: products alone, so the bits are the same everywhere. */
static double power(double base, uint64_t exponent)
{
    struct pair result = {1, 0}, square = {base, 0};
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1)
            result = pairs_multiply(result, square);
        square = pairs_multiply(square, square);
    }
    return result.high;
}

__attribute__((noinline)) static struct kernel_rates rates_make(enum kernel_optimizer optimizer,
                                                                const struct kernel_hyper *hyper, uint64_t t)
{
    struct kernel_rates rates = hyper->rates;
    if (optimizer == KERNEL_ADAM) {
        rates.lr = rates.rate / (1 - power(hyper->beta1, t));
        rates.root_scale = 1 / sqrt(1 - power(hyper->beta2, t));
    } else if (optimizer == KERNEL_SPARSE_ADAM) {
        rates.lr = rates.rate * sqrt(1 - power(hyper->beta2, t)) / (1 - power(hyper->beta1, t));
    } else if (optimizer == KERNEL_ADAGRAD) {
        rates.lr = rates.rate / (1 + (double)(t - 1) * hyper->beta1);
    }
    rates.step = (double)t;
    return rates;
}

struct kernel_rates kernel_rates_at(enum kernel_optimizer optimizer, const struct kernel_hyper *hyper, uint64_t t)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    const struct kernel_rates rates = rates_make(optimizer, hyper, t);
    float_mode_store(mode);
    return rates;
}

__attribute__((noinline)) static double scalars_sum(uint32_t count, const double *values)
{
    double node[TREE_LEVELS + 1]; /* single leaves, not pairs: one level more than a block's tree */
    unsigned depth = 0;
    for (uint32_t leaf = 0; leaf < count; leaf++) {
        double sum = values[leaf];
        for (uint32_t carry = leaf; carry & 1; carry >>= 1)
            sum = node[--depth] + sum;
        node[depth++] = sum;
    }
    if (depth == 0)
        return 0;
    double sum = node[--depth];
    while (depth > 0)
        sum = node[--depth] + sum;
    return sum;
}

bool kernel_copy_finite(enum kernel_dtype dtype, uint64_t count, void *target, const void *source)
{
    const size_t itemsize = kernel_itemsize(dtype), block_count = COPY_BYTES / itemsize;
    bool finite = true;
    for (uint64_t start = 0; start < count; start += block_count) {
        const size_t some = count - start < block_count ? (size_t)(count - start) : block_count;
        char *to = (char *)target + start * itemsize;
        memcpy(to, (const char *)source + start * itemsize, some * itemsize);
        finite &= dtype == KERNEL_F32 ? numbers_are_finite_f32(some, (const float *)to)
                                      : numbers_are_finite_f64(some, (const double *)to);
    }
    return finite;
}

__attribute__((noinline)) static bool rows_add(enum kernel_dtype dtype, uint64_t count, uint64_t row,
                                               const int64_t *indices, const void *values, void *target)
{
    bool finite = true;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t to = (uint64_t)indices[i] * row;
        if (dtype == KERNEL_F32) {
            node_merge_f32((size_t)row, (float *)target + to, (const float *)values + i * row);
            finite &= numbers_are_finite_f32((size_t)row, (const float *)target + to);
        } else {
            node_merge_f64((size_t)row, (double *)target + to, (const double *)values + i * row);
            finite &= numbers_are_finite_f64((size_t)row, (const double *)target + to);
        }
    }
    return finite;
}

bool kernel_rows_add(enum kernel_dtype dtype, uint64_t count, uint64_t row, const int64_t *indices, const void *values,
                     void *target)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    const bool finite = rows_add(dtype, count, row, indices, values, target);
    float_mode_store(mode);
    return finite;
}

double kernel_tree_sum(uint32_t count, const double *values)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    const double sum = scalars_sum(count, values);
    float_mode_store(mode);
    return sum;
}

__attribute__((noinline)) static double squares_sum(enum kernel_dtype dtype, const struct kernel_range *range)
{
    double sums[SQUARE_SUMS] = {0};
    if (dtype == KERNEL_F32)
        range_squares_f32(range, sums);
    else
        range_squares_f64(range, sums);
    return scalars_sum(SQUARE_SUMS, sums);
}

__attribute__((noinline)) static void sum_take(enum kernel_dtype dtype, const struct kernel_range *range, void *sum)
{
    if (dtype == KERNEL_F32)
        range_sum_f32(range, sum);
    else
        range_sum_f64(range, sum);
}

void kernel_sum(enum kernel_dtype dtype, const struct kernel_range *range, void *sum)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    sum_take(dtype, range, sum);
    float_mode_store(mode);
}

__attribute__((noinline)) static void fold_take(enum kernel_dtype dtype, uint64_t count, const struct kernel_fold *fold,
                                                void *sum)
{
    if (dtype == KERNEL_F32)
        nodes_fold_f32(count, fold, sum);
    else
        nodes_fold_f64(count, fold, sum);
}

void kernel_fold(enum kernel_dtype dtype, uint64_t count, const struct kernel_fold *fold, void *sum)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    fold_take(dtype, count, fold, sum);
    float_mode_store(mode);
}

double kernel_square_sum(enum kernel_dtype dtype, const struct kernel_range *range)
{
    const uint64_t mode = float_mode_load();
    float_mode_store(FLOAT_MODE_DEFAULT);
    const double sum = squares_sum(dtype, range);
    float_mode_store(mode);
    return sum;
}
