/* The kernels against a naive reference, in bits: one element at a time, the tree as a recursion.
 *
 * The reference computes in double and rounds after every operation. For float32 that is exact: double has more than
 * twice float's digits, so the first rounding of a sum or product cannot change the second (Figueroa, "When is double
 * rounding innocuous?", 1995).
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels.h"

#define GUARD 8u       /* elements on either side of an output that must stay as they were */
#define MISALIGNED 16u /* ranges begin at a random element below this */

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

/* The optimizers, with what they may have. Learning rates are far apart from eps, so that neither hides the other. */
struct option {
    enum kernel_optimizer optimizer;
    unsigned states;
    double grad_scale;
    struct kernel_hyper hyper;
};

/* One step: buffers of `count` elements, each at its own misalignment, outputs between guards. */
struct step {
    enum kernel_dtype dtype;
    struct option option;
    uint64_t count;
    uint32_t shards;
    double *weights;
    void **memory; /* the allocations; the other pointers point into them */
    void **grads;
    const void *params, *state[KERNEL_MAX_STATES];
    void *params_out, *state_out[KERNEL_MAX_STATES];
};
#define BUFFERS (2 + 2 * KERNEL_MAX_STATES) /* besides the gradients */

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

/* Roots are taken of sums of squares. */
static void state_make_plausible(const struct step *step, unsigned k)
{
    if (step->option.optimizer == KERNEL_SGD)
        return;
    for (uint64_t i = 0; i < step->count; i++)
        element_set(step->dtype, (void *)step->state[k], i, fabs(element_get(step->dtype, step->state[k], i)));
}

static void step_make(struct step *step, enum kernel_dtype dtype, struct option option, uint64_t count, uint32_t shards,
                      bool some_absent, uint64_t *stream)
{
    *step = (struct step){.dtype = dtype, .option = option, .count = count, .shards = shards};
    step->memory = calloc(shards + BUFFERS, sizeof *step->memory);
    step->grads = calloc(shards + 1u, sizeof *step->grads);
    step->weights = calloc(shards + 1u, sizeof *step->weights);
    step->params = buffer_make(step, shards, false, stream);
    step->params_out = buffer_make(step, shards + 1, true, stream);
    for (unsigned k = 0; k < KERNEL_MAX_STATES; k++) {
        step->state[k] = buffer_make(step, shards + 2 + 2 * k, false, stream);
        step->state_out[k] = buffer_make(step, shards + 3 + 2 * k, true, stream);
        state_make_plausible(step, k);
    }
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
    for (uint32_t i = 0; i < step->shards + BUFFERS; i++)
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
    const void *state_in[KERNEL_MAX_STATES];
    void *state_out[KERNEL_MAX_STATES];
    for (unsigned k = 0; k < KERNEL_MAX_STATES; k++) {
        state_in[k] = element_at(step->dtype, step->state[k], start);
        state_out[k] = element_at(step->dtype, step->state_out[k], start);
    }
    const bool stateless = kernel_state_count(step->option.optimizer, &step->option.hyper) == 0;
    const struct kernel_range range = {
        .count = count,
        .shards = step->shards,
        .grads = grads,
        .weights = step->weights,
        .grad_scale = step->option.grad_scale,
        .params_in = element_at(step->dtype, step->params, start),
        .params_out = element_at(step->dtype, step->params_out, start),
        .state_in = stateless ? NULL : state_in,
        .state_out = stateless ? NULL : state_out,
    };
    kernel_step(step->option.optimizer, step->dtype, &step->option.hyper, &range);
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

/* -- the optimizers, line by line; every operation is rounded ---------------------------------------------------- */

struct element {
    enum kernel_dtype dtype;
    double param, state[KERNEL_MAX_STATES], direction;
};

static double add_(const struct element *at, double a, double b) { return rounded(at->dtype, a + b); }
static double mul_(const struct element *at, double a, double b) { return rounded(at->dtype, a * b); }
static double div_(const struct element *at, double a, double b) { return rounded(at->dtype, a / b); }
static double sqrt_(const struct element *at, double a) { return rounded(at->dtype, sqrt(a)); }
static double real_(const struct element *at, double a) { return rounded(at->dtype, a); }

/* torch.lerp: from the nearer end. */
static double lerp_(const struct element *at, double old, double new, double weight)
{
    const double way = add_(at, new, -old);
    weight = real_(at, weight);
    return weight < 0.5 ? add_(at, old, mul_(at, weight, way)) : add_(at, new, -mul_(at, way, add_(at, 1, -weight)));
}

/* beta * square + (1 - beta) * g * g */
static double squares_(const struct element *at, double beta, double square)
{
    const double fresh = mul_(at, mul_(at, real_(at, 1 - beta), at->direction), at->direction);
    return add_(at, mul_(at, real_(at, beta), square), fresh);
}

static void sgd_reference(const struct kernel_hyper *hyper, struct element *at)
{
    double direction = at->direction;
    if (hyper->momentum != 0) {
        const double momentum = real_(at, hyper->momentum);
        at->state[0] = add_(at, mul_(at, momentum, at->state[0]), direction);
        direction = hyper->nesterov ? add_(at, direction, mul_(at, momentum, at->state[0])) : at->state[0];
    }
    at->param = add_(at, at->param, -mul_(at, real_(at, hyper->rates.lr), direction));
}

static void adam_reference(const struct kernel_hyper *hyper, struct element *at)
{
    at->state[0] = lerp_(at, at->state[0], at->direction, 1 - hyper->beta1);
    at->state[1] = squares_(at, hyper->beta2, at->state[1]);
    if (hyper->amsgrad)
        at->state[2] = fmax(at->state[2], at->state[1]);
    const double square = at->state[hyper->amsgrad ? 2 : 1];
    const double root = mul_(at, real_(at, hyper->rates.root_scale), sqrt_(at, square));
    const double change = mul_(at, real_(at, hyper->rates.lr), at->state[0]);
    at->param = mul_(at, real_(at, hyper->rates.shrink), at->param);
    at->param = add_(at, at->param, -div_(at, change, add_(at, root, real_(at, hyper->eps))));
}

static void rmsprop_reference(const struct kernel_hyper *hyper, struct element *at)
{
    const unsigned mean = hyper->momentum != 0 ? 2 : 1;
    const double lr = real_(at, hyper->rates.lr), eps = real_(at, hyper->eps);
    double square = at->state[0] = squares_(at, hyper->beta2, at->state[0]);
    if (hyper->centered) {
        at->state[mean] = lerp_(at, at->state[mean], at->direction, 1 - hyper->beta2);
        square = fmax(add_(at, square, -mul_(at, at->state[mean], at->state[mean])), 0);
    }
    const double root = add_(at, sqrt_(at, square), eps);
    double change = div_(at, mul_(at, lr, at->direction), root);
    if (hyper->momentum != 0) {
        const double old = mul_(at, real_(at, hyper->momentum), at->state[1]);
        at->state[1] = add_(at, old, div_(at, at->direction, root));
        change = mul_(at, lr, at->state[1]);
    }
    at->param = add_(at, at->param, -change);
}

static void adagrad_reference(const struct kernel_hyper *hyper, struct element *at)
{
    at->state[0] = add_(at, at->state[0], mul_(at, at->direction, at->direction));
    const double root = add_(at, sqrt_(at, at->state[0]), real_(at, hyper->eps));
    at->param = add_(at, at->param, -div_(at, mul_(at, real_(at, hyper->rates.lr), at->direction), root));
}

/* Element i after the step. */
static struct element step_reference(const struct step *step, uint64_t i)
{
    static void (*const references[])(const struct kernel_hyper *, struct element *) = {
        sgd_reference, adam_reference, rmsprop_reference, adagrad_reference};
    const struct kernel_hyper *hyper = &step->option.hyper;
    struct element at = {.dtype = step->dtype, .param = element_get(step->dtype, step->params, i)};
    for (unsigned k = 0; k < KERNEL_MAX_STATES; k++)
        at.state[k] = element_get(step->dtype, step->state[k], i);
    (void)tree_reference(step, i, 0, step->shards, &at.direction);
    if (step->option.grad_scale != 1)
        at.direction = mul_(&at, real_(&at, step->option.grad_scale), at.direction);
    if (hyper->weight_decay != 0)
        at.direction = add_(&at, at.direction, mul_(&at, real_(&at, hyper->weight_decay), at.param));
    references[step->option.optimizer](hyper, &at);
    return at;
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
    const struct option *option = &step->option;
    uint64_t i = 0;
    for (bool equal = true; equal && i < step->count; i += equal) {
        const struct element expected = step_reference(step, i);
        equal = element_is(step->dtype, step->params_out, i, expected.param);
        for (unsigned k = 0; k < option->states; k++)
            equal = equal && element_is(step->dtype, step->state_out[k], i, expected.state[k]);
    }
    CHECK(i == step->count,
          "%s, dtype %d, element %" PRIu64 " of %" PRIu64
          ", %u shards, optimizer %d, momentum %g, decay %g, flags %u%u%u",
          what, step->dtype, i, step->count, step->shards, option->optimizer, option->hyper.momentum,
          option->hyper.weight_decay, option->hyper.nesterov, option->hyper.centered, option->hyper.amsgrad);
    CHECK(guards_untouched(step, step->params_out), "%s", what);
    memset(step->params_out, 0x5a, nbytes);
    for (unsigned k = 0; k < KERNEL_MAX_STATES; k++) {
        CHECK(guards_untouched(step, step->state_out[k]), "%s", what);
        CHECK(k < option->states || bytes_are(step->state_out[k], nbytes, 0x5a), "state %u is not this optimizer's", k);
        memset(step->state_out[k], 0x5a, nbytes);
    }
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

#define SGD_(decay, scale, rate)                          \
    {                                                     \
        KERNEL_SGD, 0, scale,                             \
        {                                                 \
            .weight_decay = decay, .rates = {.lr = rate } \
        }                                                 \
    }
#define SGD_MOMENTUM_(factor, ahead, decay, scale, rate)                                         \
    {                                                                                            \
        KERNEL_SGD, 1, scale,                                                                    \
        {                                                                                        \
            .momentum = factor, .nesterov = ahead, .weight_decay = decay, .rates = {.lr = rate } \
        }                                                                                        \
    }
#define ADAM_(b1, b2, epsilon, decay, peaks, scale, ...)                                                  \
    {                                                                                                     \
        KERNEL_ADAM, 2 + peaks, scale,                                                                    \
        {                                                                                                 \
            .beta1 = b1, .beta2 = b2, .eps = epsilon, .weight_decay = decay, .amsgrad = peaks, .rates = { \
                __VA_ARGS__                                                                               \
            }                                                                                             \
        }                                                                                                 \
    }
#define RMSPROP_(factor, centre, decay, scale, alpha)                                                   \
    {                                                                                                   \
        KERNEL_RMSPROP, 1 + (factor != 0) + centre, scale,                                              \
        {                                                                                               \
            .momentum = factor, .centered = centre, .weight_decay = decay, .beta2 = alpha, .eps = 1e-8, \
            .rates = {.lr = 0.01}                                                                       \
        }                                                                                               \
    }
#define ADAGRAD_(decay, epsilon, scale)                                                            \
    {                                                                                              \
        KERNEL_ADAGRAD, 1, scale, { .weight_decay = decay, .eps = epsilon, .rates = {.lr = 0.01} } \
    }

static const struct option options[] = {
    SGD_(0, 1, 0.1),
    SGD_(0.01, 1, 0.1),
    SGD_(0, 0.3, 0.1),
    SGD_(0.01, 0.3, 0.1),
    SGD_MOMENTUM_(0.9, 0, 0, 1, 0.3),
    SGD_MOMENTUM_(0.9, 1, 0, 1, 0.3),
    SGD_MOMENTUM_(0.9, 0, 0.01, 1, 0.3),
    SGD_MOMENTUM_(0.9, 1, 0.01, 1, 0.3),
    SGD_MOMENTUM_(0.9, 1, 0.01, 0.7, 0),
    SGD_MOMENTUM_(0.9, 1, 1e-60, 1, 1e-3),
    SGD_MOMENTUM_(1e-60, 0, 0.01, 1, 1e-3), /* round to 0 in float32 */
    ADAM_(0.9, 0.999, 1e-8, 0, 0, 1, 0.01, 1, 1.5),
    ADAM_(0.9, 0.999, 1e-8, 0.1, 0, 1, 0.01, 1, 1.5),
    ADAM_(0.9, 0.999, 1e-8, 0, 1, 1, 0.01, 0.999, 1),
    ADAM_(0.9, 0.9, 1e-3, 0.1, 1, 0.2, 0.01, 0.999, 1),
    ADAM_(0, 0, 1e-8, 0, 0, 1, 0.01, 1, 1),
    ADAM_(0.5, 0.5, 1e-30, 0, 0, 1, 0.01, 1, 1),
    ADAM_(0.4, 0.1, 1e-8, 0, 0, 1, 0, 0, 1),
    RMSPROP_(0, 0, 0, 1, 0.99),
    RMSPROP_(0, 0, 0.1, 1, 0.99),
    RMSPROP_(0.9, 0, 0, 1, 0.9),
    RMSPROP_(0.9, 0, 0.1, 0.5, 0.9),
    RMSPROP_(0, 1, 0, 1, 0.99),
    RMSPROP_(0, 1, 0.1, 1, 0.3),
    RMSPROP_(0.9, 1, 0, 1, 0.99),
    RMSPROP_(0.9, 1, 0.1, 0.5, 0),
    ADAGRAD_(0, 1e-10, 1),
    ADAGRAD_(0.1, 1e-3, 1),
    ADAGRAD_(0, 1e-10, 0.25),
};
#define OPTIONS (sizeof options / sizeof *options)
static const struct option sgd_with_everything = SGD_MOMENTUM_(0.9, 1, 0.01, 1, 0.3);

static void test_steps(enum kernel_dtype dtype, uint64_t count, uint32_t shards, uint64_t *stream)
{
    for (unsigned o = 0; o < OPTIONS; o++) {
        struct step step;
        step_make(&step, dtype, options[o], count, shards, check_random(stream) & 1, stream);
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
            step_make(&step, dtype, sgd_with_everything, 37, shards, false, &stream);
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
            step_make(&step, dtype, sgd_with_everything, 300, shards, false, &stream);
            step.weights[shards - 1] = weights[w];
            step_run(&step, 0, step.count);
            step_check(&step, "weights");
            step_free(&step);
        }
}

/* A shard that is present is read: the caller is responsible for its content. */
static void test_nan_passes(void)
{
    uint64_t stream = check_stream(6);
    for (unsigned o = 0; o < OPTIONS; o++) {
        struct step step;
        step_make(&step, KERNEL_F32, options[o], 3, 5, false, &stream);
        element_set(KERNEL_F32, step.grads[4], 1, NAN);
        step_run(&step, 0, step.count);
        const float *params = step.params_out;
        CHECK(!isnan(params[0]) && isnan(params[1]) && !isnan(params[2]), "option %u", o);
        for (unsigned k = 0; k < step.option.states; k++) {
            const float *state = step.state_out[k];
            CHECK(!isnan(state[0]) && isnan(state[1]) && !isnan(state[2]), "option %u, state %u", o, k);
        }
        step_free(&step);
    }
}

/* As in torch.optim, no decay is no operation, rather than the addition of 0 * inf. */
static void test_infinity_stays(void)
{
    uint64_t stream = check_stream(10);
    for (unsigned o = 0; options[o].optimizer == KERNEL_SGD; o++) {
        struct step step;
        step_make(&step, KERNEL_F64, options[o], 3, 2, false, &stream);
        element_set(KERNEL_F64, (void *)step.params, 1, INFINITY);
        step_run(&step, 0, step.count);
        CHECK(isinf(element_get(KERNEL_F64, step.params_out, 1)) == (options[o].hyper.weight_decay == 0));
        step_free(&step);
    }
}

/* A gradient that never was anything but 0: no optimizer divides 0 by 0. */
static void test_zero_gradients(enum kernel_dtype dtype)
{
    uint64_t stream = check_stream(11 + dtype);
    for (unsigned o = 0; o < OPTIONS; o++) {
        struct step step;
        step_make(&step, dtype, options[o], 40, 2, false, &stream);
        for (uint64_t i = 0; i < step.count; i++) {
            element_set(dtype, step.grads[0], i, 0.0);
            element_set(dtype, step.grads[1], i, -0.0);
            for (unsigned k = 0; k < KERNEL_MAX_STATES; k++)
                element_set(dtype, (void *)step.state[k], i, 0.0);
        }
        step_run(&step, 0, step.count);
        const double shrink = step.option.optimizer == KERNEL_ADAM ? step.option.hyper.rates.shrink : 1;
        for (uint64_t i = 0; i < step.count; i++) {
            const double param = element_get(dtype, step.params, i);
            if (step.option.hyper.weight_decay == 0)
                CHECK(element_get(dtype, step.params_out, i) == rounded(dtype, rounded(dtype, shrink) * param));
            CHECK(isfinite(element_get(dtype, step.params_out, i)), "option %u", o);
        }
        step_check(&step, "zero gradients");
        step_free(&step);
    }
}

/* Rounding may leave less in the mean of the squares than in the square of the mean. */
static void test_centered_is_never_negative(void)
{
    uint64_t stream = check_stream(13);
    struct step step;
    step_make(&step, KERNEL_F32, (struct option)RMSPROP_(0, 1, 0, 1, 0.99), 1000, 1, false, &stream);
    for (uint64_t i = 0; i < step.count; i++) {
        const double grad = 1 + (double)i / 1000;
        element_set(KERNEL_F32, step.grads[0], i, grad);
        element_set(KERNEL_F32, (void *)step.state[0], i, grad * grad);
        element_set(KERNEL_F32, (void *)step.state[1], i, grad);
    }
    step_run(&step, 0, step.count);
    for (uint64_t i = 0; i < step.count; i++)
        CHECK(isfinite(element_get(KERNEL_F32, step.params_out, i)), "element %" PRIu64, i);
    step_check(&step, "centered");
    step_free(&step);
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
    step_make(&step, dtype, sgd_with_everything, 1000, 5, false, &stream);
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

/* 32 sums side by side, element i in number i % 32; then the tree over them. */
static double squares_reference(const struct step *step)
{
    double sums[32] = {0};
    for (uint64_t i = 0; i < step->count; i++) {
        double grad = 0;
        (void)tree_reference(step, i, 0, step->shards, &grad);
        sums[i % 32] += grad * grad;
    }
    return scalars_reference(32, sums);
}

static double squares_run(const struct step *step)
{
    const struct kernel_range range = {
        .count = step->count,
        .shards = step->shards,
        .grads = (const void *const *)step->grads,
        .weights = step->weights,
    };
    return kernel_square_sum(step->dtype, &range);
}

static void test_square_sum(enum kernel_dtype dtype)
{
    static const uint64_t counts[] = {0, 1, 31, 32, 33, 500, 511, 512, 513, 1023, 1024, 1025, 3000};
    uint64_t stream = check_stream(14 + dtype);
    for (uint32_t shards = 0; shards <= 5; shards++)
        for (unsigned c = 0; c < sizeof counts / sizeof *counts; c++) {
            struct step step;
            step_make(&step, dtype, options[0], counts[c], shards, check_random(&stream) & 1, &stream);
            CHECK(squares_run(&step) == squares_reference(&step), "%u shards of %" PRIu64, shards, counts[c]);
            step_free(&step);
        }
    struct step step;
    step_make(&step, dtype, options[0], 1000, 3, false, &stream);
    const double expected = squares_reference(&step);
    const uint64_t usual = mode_load();
    mode_store(strange_mode);
    const double sum = squares_run(&step);
    mode_store(usual);
    CHECK(sum == expected, "summed in the caller's mode");
    element_set(dtype, step.grads[1], 999, NAN);
    CHECK(isnan(squares_run(&step)));
    step_free(&step);
}

/* The sum as it is: no zero is added to it, so -0 stays -0. */
static void sums_check(const struct step *step, const void *sum, const char *what)
{
    for (uint64_t i = 0; i < step->count; i++) {
        double expected = 0, got = element_get(step->dtype, sum, i);
        if (!tree_reference(step, i, 0, step->shards, &expected))
            expected = 0;
        if (!CHECK(memcmp(&got, &expected, sizeof got) == 0, "%s: %u shards, element %" PRIu64, what, step->shards, i))
            return;
    }
}

/* Some nodes of a step's tree, left to right, that cover its shards. */
struct cover {
    uint32_t nodes;
    const void *values[64];
    uint8_t folds[64];
};

static void cover_add(struct cover *cover, const struct step *step, uint32_t first, uint32_t count, uint64_t *stream)
{
    if (count > 1 && check_random(stream) % 3 != 0) {
        uint32_t split = 1;
        while (split * 2 < count)
            split *= 2;
        cover_add(cover, step, first, split, stream);
        cover_add(cover, step, first + split, count - split, stream);
        cover->folds[cover->nodes - 1]++;
        return;
    }
    double sum;
    void *value = malloc(step->count * kernel_itemsize(step->dtype) + 1);
    bool present = false;
    for (uint64_t i = 0; i < step->count; i++) {
        present = tree_reference(step, i, first, count, &sum);
        if (present)
            element_set(step->dtype, value, i, sum);
    }
    if (!present)
        free(value);
    cover->values[cover->nodes++] = present ? value : NULL;
}

static void test_sum(enum kernel_dtype dtype)
{
    static const uint64_t counts[] = {0, 1, 33, 511, 513, 1023, 1025, 3000};
    uint64_t stream = check_stream(18 + dtype);
    const size_t itemsize = kernel_itemsize(dtype);
    for (uint32_t shards = 1; shards <= 17; shards++)
        for (unsigned c = 0; c < sizeof counts / sizeof *counts; c++) {
            struct step step;
            step_make(&step, dtype, options[0], counts[c], shards, check_random(&stream) & 1, &stream);
            const uint64_t usual = mode_load();
            char *sum = malloc(counts[c] * itemsize + 1);
            memset(sum, 0x5a, counts[c] * itemsize + 1);
            const struct kernel_range range = {.count = counts[c],
                                               .shards = shards,
                                               .grads = (const void *const *)step.grads,
                                               .weights = step.weights};
            mode_store(strange_mode);
            kernel_sum(dtype, &range, sum);
            mode_store(usual);
            sums_check(&step, sum, "sum");
            struct cover cover = {0};
            cover_add(&cover, &step, 0, shards, &stream);
            memset(sum, 0x5a, counts[c] * itemsize);
            const struct kernel_fold fold = {cover.nodes, cover.values, cover.folds};
            mode_store(strange_mode);
            kernel_fold(dtype, counts[c], &fold, sum);
            mode_store(usual);
            sums_check(&step, sum, "fold");
            CHECK(sum[counts[c] * itemsize] == 0x5a, "nothing beyond");
            for (uint32_t i = 0; i < cover.nodes; i++)
                free((void *)cover.values[i]);
            free(sum);
            step_free(&step);
        }
}

/* Of every length around a block and a row of lanes, with one number that is not finite anywhere, or none. */
static void test_copy_finite(enum kernel_dtype dtype)
{
    static const uint64_t counts[] = {0, 1, 31, 32, 33, 100, 2047, 2048, 2049, 4095, 4096, 4097, 9000};
    static const double bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const size_t itemsize = kernel_itemsize(dtype), room = 9000 * itemsize + 1;
    uint64_t stream = check_stream(16 + dtype);
    char *source = malloc(room), *target = malloc(room);
    for (unsigned c = 0; c < sizeof counts / sizeof *counts; c++) {
        const uint64_t count = counts[c];
        for (unsigned turn = 0; turn < 12; turn++) {
            for (uint64_t i = 0; i < count; i++)
                element_set(dtype, target, i,
                            turn == 1 ? (dtype == KERNEL_F32 ? FLT_MAX : DBL_MAX) : number_random(dtype, &stream));
            const bool spoiled = turn >= 2 && count > 0;
            if (spoiled)
                element_set(dtype, target, check_random(&stream) % count, bad[turn % 4]);
            char *from = source + turn % 2; /* from anywhere */
            memcpy(from, target, count * itemsize);
            memset(target, 1, room);
            CHECK(kernel_copy_finite(dtype, count, target, from) == !spoiled, "%" PRIu64 ", turn %u", count, turn);
            CHECK(memcmp(target, from, count * itemsize) == 0);
            CHECK(target[count * itemsize] == 1, "nothing beyond");
        }
    }
    free(source);
    free(target);
}

/* The powers are those of the C library to its rounding, near 1 and where they vanish, too. */
static void test_rates_at(void)
{
    static const double betas[] = {0, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999999, 1e-300};
    static const uint64_t counts[] = {1, 2, 3, 7, 1000, 65535, 65536, 10000000, UINT32_MAX};
    for (size_t b = 0; b < sizeof betas / sizeof *betas; b++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            const struct kernel_hyper hyper = {
                .beta1 = betas[b], .beta2 = betas[b], .rates = {.lr = -1, .shrink = 0.5, .rate = 0.01, .step = 9}};
            const double left = 1 - pow(betas[b], (double)counts[c]);
            struct kernel_rates rates = kernel_rates_at(KERNEL_ADAM, &hyper, counts[c]);
            CHECK(fabs(rates.lr / (0.01 / left) - 1) < 1e-15 && fabs(rates.root_scale * sqrt(left) - 1) < 1e-15);
            CHECK(rates.shrink == 0.5 && rates.step == (double)counts[c]);
            rates = kernel_rates_at(KERNEL_ADAGRAD, &hyper, counts[c]);
            CHECK(rates.lr == 0.01 / (1 + (double)(counts[c] - 1) * betas[b]));
            CHECK(kernel_rates_at(KERNEL_SGD, &hyper, counts[c]).lr == -1);
        }
}

int main(void)
{
    check_begin("test_kernels");
    test_rates_at();
    CHECK(kernel_itemsize(KERNEL_F32) == 4 && kernel_itemsize(KERNEL_F64) == 8);
    for (unsigned o = 0; o < OPTIONS; o++)
        CHECK(kernel_state_count(options[o].optimizer, &options[o].hyper) == options[o].states, "option %u", o);
    for (enum kernel_dtype dtype = KERNEL_F32; dtype <= KERNEL_F64; dtype++) {
        test_sizes(dtype);
        test_absent(dtype);
        test_weights(dtype);
        test_float_mode(dtype);
        test_zero_gradients(dtype);
        test_square_sum(dtype);
        test_sum(dtype);
        test_copy_finite(dtype);
    }
    test_nan_passes();
    test_infinity_stays();
    test_centered_is_never_negative();
    test_tree_sum();
    return check_end();
}
