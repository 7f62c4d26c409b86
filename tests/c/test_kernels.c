/* The kernels against a naive reference, in bits: one element at a time, the tree as a recursion.
 *
 * The reference computes in double and rounds after every operation. For float32 that is exact: double has more than
 * twice float's digits, so the first rounding of a sum or product cannot change the second (Figueroa, "When is double
 * rounding innocuous?", 1995).
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "kernels.h"

#define GUARD 8u        /* elements on either side of an output that must stay as they were */
#define MISALIGNED 16u  /* ranges begin at a random element below this */

static double rounded(enum kernel_dtype dtype, double value)
{
    return dtype == KERNEL_F32 ? (double)(float)value : value;
}

static double element_get(enum kernel_dtype dtype, const void *buffer, uint64_t i)
{
    return dtype == KERNEL_F32 ? (double)((const float *)buffer)[i] : ((const double *)buffer)[i];
}

static void element_set(enum kernel_dtype dtype, void *buffer, uint64_t i, double value)
{
    if (dtype == KERNEL_F32)
        ((float *)buffer)[i] = (float)value;
    else
        ((double *)buffer)[i] = value;
}

static void *element_at(enum kernel_dtype dtype, const void *buffer, uint64_t i)
{
    return (char *)buffer + i * kernel_itemsize(dtype);
}

/* Normal numbers over 40 binades, with zeros of both signs and subnormals among them. */
static double number_random(enum kernel_dtype dtype, uint64_t *stream)
{
    const uint64_t bits = check_random(stream);
    const double sign = bits & 1 ? -1 : 1;
    switch (bits >> 1 & 63) {
    case 0: return sign * 0.0;
    case 1: return sign * (dtype == KERNEL_F32 ? (double)FLT_TRUE_MIN : DBL_TRUE_MIN) * (double)(bits >> 40);
    default: return rounded(dtype, sign * ldexp((double)(bits >> 11), (int)(bits >> 7 & 31) % 40 - 73));
    }
}

/* One step: buffers of `count` elements, each at its own misalignment, outputs between guards. */
struct step {
    enum kernel_dtype dtype;
    struct kernel_hyper hyper;
    uint64_t count;
    uint32_t shards;
    double *weights;
    void **memory;             /* what was allocated; the rest points into it */
    void **grads;
    const void *params, *momentum;
    void *params_out, *momentum_out;
};

static void *buffer_make(struct step *step, unsigned index, bool output, uint64_t *stream)
{
    const size_t itemsize = kernel_itemsize(step->dtype);
    const uint64_t before = check_random(stream) % MISALIGNED + (output ? GUARD : 0);
    const uint64_t total = before + step->count + (output ? GUARD : 0);
    /* An input ends where its allocation ends, so that AddressSanitizer sees one element too many. */
    char *memory = malloc(total * itemsize + (total == 0));
    memset(memory, 0x5a, total * itemsize);
    step->memory[index] = memory;
    char *first = memory + before * itemsize;
    for (uint64_t i = 0; !output && i < step->count; i++)
        element_set(step->dtype, first, i, number_random(step->dtype, stream));
    return first;
}

static void step_make(struct step *step, enum kernel_dtype dtype, struct kernel_hyper hyper, uint64_t count,
                      uint32_t shards, bool some_absent, uint64_t *stream)
{
    *step = (struct step){.dtype = dtype, .hyper = hyper, .count = count, .shards = shards};
    step->memory = calloc(shards + 4u, sizeof *step->memory);
    step->grads = calloc(shards + 1u, sizeof *step->grads);
    step->weights = calloc(shards + 1u, sizeof *step->weights);
    step->params = buffer_make(step, shards, false, stream);
    step->momentum = buffer_make(step, shards + 1, false, stream);
    step->params_out = buffer_make(step, shards + 2, true, stream);
    step->momentum_out = buffer_make(step, shards + 3, true, stream);
    for (uint32_t s = 0; s < shards; s++) {
        step->grads[s] = buffer_make(step, s, false, stream);
        step->weights[s] = shards == 1 ? 1 : ldexp((double)(check_random(stream) >> 11), -53) + 1e-9;
        if (some_absent && check_random(stream) % 3 != 0) {
            step->weights[s] = check_random(stream) & 1 ? 0.0 : -0.0;
            for (uint64_t i = 0; i < count; i++)
                element_set(dtype, step->grads[s], i, NAN);
            if (check_random(stream) & 1)
                step->grads[s] = NULL;
        }
    }
}

static void step_free(struct step *step)
{
    for (uint32_t i = 0; i < step->shards + 4; i++)
        free(step->memory[i]);
    free(step->memory);
    free(step->grads);
    free(step->weights);
}

static void step_run(const struct step *step, uint64_t start, uint64_t count)
{
    const void **grads = calloc(step->shards + 1u, sizeof *grads);
    for (uint32_t s = 0; s < step->shards; s++)
        grads[s] = step->grads[s] ? element_at(step->dtype, step->grads[s], start) : NULL;
    const void *state_in[] = {element_at(step->dtype, step->momentum, start)};
    void *state_out[] = {element_at(step->dtype, step->momentum_out, start)};
    const bool stateless = kernel_state_count(KERNEL_SGD, &step->hyper) == 0;
    const struct kernel_range range = {
        .count = count,
        .shards = step->shards,
        .grads = grads,
        .weights = step->weights,
        .params_in = element_at(step->dtype, step->params, start),
        .params_out = element_at(step->dtype, step->params_out, start),
        .state_in = stateless ? NULL : state_in,
        .state_out = stateless ? NULL : state_out,
    };
    kernel_step(KERNEL_SGD, step->dtype, &step->hyper, &range);
    free(grads);
}

/* The root over shards [first, first + count); false if all are absent. */
static bool tree_reference(const struct step *step, uint64_t i, uint32_t first, uint32_t count, double *sum)
{
    if (count == 0)
        return false;
    if (count == 1) {
        if (step->weights[first] == 0)
            return false;
        const double weight = rounded(step->dtype, step->weights[first]);
        *sum = rounded(step->dtype, weight * element_get(step->dtype, step->grads[first], i));
        return true;
    }
    uint32_t split = 1;
    while (split * 2 < count)
        split *= 2;
    double left, right;
    const bool has_left = tree_reference(step, i, first, split, &left);
    const bool has_right = tree_reference(step, i, first + split, count - split, &right);
    if (has_left && has_right)
        *sum = rounded(step->dtype, left + right);
    else if (has_left || has_right)
        *sum = has_left ? left : right;
    return has_left || has_right;
}

/* torch.optim.SGD, line by line. */
static void sgd_reference(const struct step *step, uint64_t i, double *param, double *momentum)
{
    const enum kernel_dtype dtype = step->dtype;
    const struct kernel_hyper *hyper = &step->hyper;
    double direction = 0;
    (void)tree_reference(step, i, 0, step->shards, &direction);
    *param = element_get(dtype, step->params, i);
    *momentum = element_get(dtype, step->momentum, i);
    if (hyper->weight_decay != 0) {
        const double decay = rounded(dtype, rounded(dtype, hyper->weight_decay) * *param);
        direction = rounded(dtype, direction + decay);
    }
    if (hyper->momentum != 0) {
        const double factor = rounded(dtype, hyper->momentum);
        *momentum = rounded(dtype, rounded(dtype, factor * *momentum) + direction);
        direction = hyper->nesterov ? rounded(dtype, direction + rounded(dtype, factor * *momentum)) : *momentum;
    }
    *param = rounded(dtype, *param - rounded(dtype, rounded(dtype, hyper->lr) * direction));
}

static bool element_is(enum kernel_dtype dtype, const void *buffer, uint64_t i, double expected)
{
    unsigned char bits[sizeof(double)];
    element_set(dtype, bits, 0, expected);
    return memcmp(element_at(dtype, buffer, i), bits, kernel_itemsize(dtype)) == 0;
}

static bool bytes_are(const void *first, size_t nbytes, unsigned char value)
{
    for (size_t i = 0; i < nbytes; i++)
        if (((const unsigned char *)first)[i] != value)
            return false;
    return true;
}

static bool guards_untouched(const struct step *step, const void *output)
{
    const size_t nbytes = GUARD * kernel_itemsize(step->dtype);
    return bytes_are((const char *)output - nbytes, nbytes, 0x5a) &&
           bytes_are(element_at(step->dtype, output, step->count), nbytes, 0x5a);
}

/* `what` says how the outputs were made. */
static void step_check(const struct step *step, const char *what)
{
    const size_t nbytes = step->count * kernel_itemsize(step->dtype);
    const bool stateless = step->hyper.momentum == 0;
    uint64_t i = 0;
    for (; i < step->count; i++) {
        double param, momentum;
        sgd_reference(step, i, &param, &momentum);
        if (!element_is(step->dtype, step->params_out, i, param) ||
            !(stateless || element_is(step->dtype, step->momentum_out, i, momentum)))
            break;
    }
    CHECK(i == step->count,
          "%s, dtype %d, element %" PRIu64 " of %" PRIu64 ", %u shards, momentum %g, decay %g, nesterov %u", what,
          (int)step->dtype, i, step->count, step->shards, step->hyper.momentum, step->hyper.weight_decay,
          step->hyper.nesterov);
    CHECK(guards_untouched(step, step->params_out) && guards_untouched(step, step->momentum_out), "%s", what);
    CHECK(!stateless || bytes_are(step->momentum_out, nbytes, 0x5a), "state written without momentum");
    memset(step->params_out, 0x5a, nbytes);
    memset(step->momentum_out, 0x5a, nbytes);
}

static void step_run_in_cuts(const struct step *step, uint64_t *stream)
{
    const uint64_t longest = step->count / (check_random(stream) % 8 + 1) + 1;
    for (uint64_t start = 0; start < step->count;) {
        uint64_t count = check_random(stream) % longest + 1;
        if (count > step->count - start)
            count = step->count - start;
        step_run(step, start, count);
        start += count;
    }
}

static const struct kernel_hyper hypers[] = {
    {0.1, 0, 0, 0},       {0.1, 0, 0, 1},      {0.1, 0, 0.01, 0},       {0.1, 0, 0.01, 1},
    {0.3, 0.9, 0, 0},     {0.3, 0.9, 0, 1},    {0.3, 0.9, 0.01, 0},     {0.3, 0.9, 0.01, 1},
    {0, 0.9, 0.01, 1},    {1e-3, 0.9, 1e-60, 1}, {1e-3, 1e-60, 0.01, 0}, /* the last round to 0 in float32 */
};
#define HYPERS (sizeof hypers / sizeof *hypers)

static void test_steps(enum kernel_dtype dtype, uint64_t count, uint32_t shards, uint64_t *stream)
{
    for (unsigned h = 0; h < HYPERS; h++) {
        struct step step;
        step_make(&step, dtype, hypers[h], count, shards, check_random(stream) & 1, stream);
        step_run(&step, 0, count);
        step_check(&step, "whole");
        step_run_in_cuts(&step, stream);
        step_check(&step, "in cuts");
        step_free(&step);
    }
}

static void test_sizes(enum kernel_dtype dtype)
{
    static const uint64_t counts[] = {0, 1, 2, 15, 17, 255, 256, 257, 511, 512, 513, 1000, 1023, 1025, 2500};
    uint64_t stream = check_stream(dtype);
    for (uint32_t shards = 0; shards <= 17; shards++)
        for (unsigned c = 0; c < sizeof counts / sizeof *counts; c++)
            test_steps(dtype, counts[c], shards, &stream);
    test_steps(dtype, 10007, 3, &stream);
    test_steps(dtype, 515, 33, &stream);
    test_steps(dtype, 65, 1023, &stream);
    test_steps(dtype, 65, 1025, &stream);
}

/* Every choice of absent shards for up to 7 of them, not only random ones. */
static void test_absent(enum kernel_dtype dtype)
{
    uint64_t stream = check_stream(2 + dtype);
    for (uint32_t shards = 1; shards <= 7; shards++)
        for (uint32_t absent = 0; absent < 1u << shards; absent++) {
            struct step step;
            step_make(&step, dtype, hypers[7], 37, shards, false, &stream);
            for (uint32_t s = 0; s < shards; s++)
                if (absent >> s & 1) {
                    step.weights[s] = 0;
                    step.grads[s] = NULL;
                }
            step_run(&step, 0, step.count);
            step_check(&step, "absent shards");
            step_free(&step);
        }
}

/* A single shard whose weight is not 1, and weights that only just are not absent. */
static void test_weights(enum kernel_dtype dtype)
{
    static const double weights[] = {0.5, 2, 1 + DBL_EPSILON, 1e-60, -1};
    uint64_t stream = check_stream(4 + dtype);
    for (unsigned w = 0; w < sizeof weights / sizeof *weights; w++)
        for (uint32_t shards = 1; shards <= 2; shards++) {
            struct step step;
            step_make(&step, dtype, hypers[6], 300, shards, false, &stream);
            step.weights[shards - 1] = weights[w];
            step_run(&step, 0, step.count);
            step_check(&step, "weights");
            step_free(&step);
        }
}

/* A shard that is present is read: what it holds is the caller's to answer for. */
static void test_nan_passes(void)
{
    uint64_t stream = check_stream(6);
    struct step step;
    step_make(&step, KERNEL_F32, hypers[4], 3, 5, false, &stream);
    element_set(KERNEL_F32, step.grads[4], 1, NAN);
    step_run(&step, 0, step.count);
    const float *params = step.params_out, *momentum = step.momentum_out;
    CHECK(!isnan(params[0]) && isnan(params[1]) && !isnan(params[2]));
    CHECK(!isnan(momentum[0]) && isnan(momentum[1]) && !isnan(momentum[2]));
    step_free(&step);
}

/* As in torch.optim, no decay is no operation, rather than the addition of 0 * inf. */
static void test_infinity_stays(void)
{
    uint64_t stream = check_stream(10);
    for (unsigned h = 0; h < HYPERS; h++) {
        struct step step;
        step_make(&step, KERNEL_F64, hypers[h], 3, 2, false, &stream);
        element_set(KERNEL_F64, (void *)step.params, 1, INFINITY);
        step_run(&step, 0, step.count);
        CHECK(isinf(element_get(KERNEL_F64, step.params_out, 1)) == (hypers[h].weight_decay == 0));
        step_free(&step);
    }
}

#if defined(__x86_64__)
static uint64_t mode_load(void) { return __builtin_ia32_stmxcsr() & ~UINT64_C(0x3f); /* less the sticky flags */ }
static void mode_store(uint64_t mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }
static const uint64_t strange_mode = 0x1f80 | 0x8040 | 0x6000; /* flush to zero both ways, round towards zero */
#else
static uint64_t mode_load(void)
{
    uint64_t mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void mode_store(uint64_t mode) { __asm__ __volatile__("msr fpcr, %0" : : "r"(mode) : "memory"); }
static const uint64_t strange_mode = UINT64_C(1) << 24 | UINT64_C(3) << 22;
#endif

static void test_float_mode(enum kernel_dtype dtype)
{
    uint64_t stream = check_stream(7 + dtype);
    struct step step;
    step_make(&step, dtype, hypers[7], 1000, 5, false, &stream);
    const uint64_t usual = mode_load();
    mode_store(strange_mode);
    const uint64_t strange = mode_load();
    step_run(&step, 0, step.count);
    const double sum = kernel_tree_sum(2, (const double[]){1, DBL_EPSILON * 0.75});
    const uint64_t after = mode_load();
    mode_store(usual);
    CHECK(after == strange, "the caller's mode is not restored");
    CHECK(sum == 1 + DBL_EPSILON, "rounded in the caller's mode");
    step_check(&step, "in a strange mode");
    step_free(&step);
}

static double scalars_reference(uint32_t count, const double *values)
{
    if (count == 0)
        return 0;
    if (count == 1)
        return values[0];
    uint32_t split = 1;
    while (split * 2 < count)
        split *= 2;
    return scalars_reference(split, values) + scalars_reference(count - split, values + split);
}

static void test_tree_sum(void)
{
    uint64_t stream = check_stream(9);
    double values[1100];
    for (unsigned i = 0; i < 1100; i++)
        values[i] = number_random(KERNEL_F64, &stream);
    for (uint32_t count = 0; count <= 1100; count += count < 70 ? 1 : 103)
        CHECK(kernel_tree_sum(count, values) == scalars_reference(count, values), "%u scalars", count);
    /* By hand: (1 + tiny) + (-1 + tiny) loses what (1 - 1) + (tiny + tiny) keeps. */
    CHECK(kernel_tree_sum(4, (const double[]){1, 0x1p-60, -1, 0x1p-60}) == 0);
    CHECK(kernel_tree_sum(4, (const double[]){1, -1, 0x1p-60, 0x1p-60}) == 0x1p-59);
}

int main(void)
{
    check_begin("test_kernels");
    CHECK(kernel_itemsize(KERNEL_F32) == 4 && kernel_itemsize(KERNEL_F64) == 8);
    CHECK(kernel_state_count(KERNEL_SGD, &hypers[0]) == 0 && kernel_state_count(KERNEL_SGD, &hypers[4]) == 1);
    for (enum kernel_dtype dtype = KERNEL_F32; dtype <= KERNEL_F64; dtype++) {
        test_sizes(dtype);
        test_absent(dtype);
        test_weights(dtype);
        test_float_mode(dtype);
    }
    test_nan_passes();
    test_infinity_stays();
    test_tree_sum();
    return check_end();
}
