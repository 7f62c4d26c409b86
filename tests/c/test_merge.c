/* merge against its definition, element by element: elements that all shards left alike stay, bit for bit; others
 * are the mean in the documented tree, or the first shard's. */
#include "merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { MAX_SHARDS = 9, MAX_COUNT = 2100 };

static uint64_t seed;

static double number(void) { return ldexp((double)(check_random(&seed) >> 11), -52) - 1; }

/* Values that no sum of parts gives back. */
static double special(uint64_t which)
{
    const double values[] = {0.0, -0.0, INFINITY, -INFINITY, NAN, 1e-42, 0.1};
    return values[which % (sizeof values / sizeof *values)];
}

static double expected_mean(const struct kernel_range *range, uint64_t i, bool is_double)
{
    double terms[MAX_SHARDS] = {0};
    bool present[MAX_SHARDS] = {0};
    for (uint32_t s = 0; s < range->shards; s++) {
        present[s] = range->weights[s] != 0;
        terms[s] = is_double ? range->weights[s] * ((const double *)range->grads[s])[i]
                             : (double)((float)range->weights[s] * ((const float *)range->grads[s])[i]);
    }
    for (uint32_t width = 1; width < range->shards; width *= 2) /* neighbours in pairs, level by level */
        for (uint32_t s = 0; s + width < range->shards; s += 2 * width) {
            if (present[s] && present[s + width] && is_double)
                terms[s] = terms[s] + terms[s + width];
            else if (present[s] && present[s + width])
                terms[s] = (double)((float)terms[s] + (float)terms[s + width]);
            else if (present[s + width])
                terms[s] = terms[s + width];
            present[s] |= present[s + width];
        }
    return terms[0];
}

static void check_case(uint32_t shards, uint64_t count, bool is_double)
{
    const size_t itemsize = is_double ? sizeof(double) : sizeof(float), nbytes = count * itemsize;
    uint8_t *values[MAX_SHARDS], *in = malloc(nbytes), *out = malloc(nbytes);
    double weights[MAX_SHARDS], total = 0;
    uint32_t first = shards;
    for (uint32_t s = 0; s < shards; s++) {
        values[s] = malloc(nbytes);
        weights[s] = (double)(check_random(&seed) % 3);
        total += weights[s];
        if (weights[s] != 0 && first == shards)
            first = s;
    }
    for (uint32_t s = 0; s < shards; s++)
        weights[s] = total == 0 ? 0 : weights[s] / total;
    bool *alike = calloc(count, sizeof *alike);
    for (uint64_t i = 0; i < count; i++) {
        alike[i] = count > 1000 ? i % 700 != 3 : check_random(&seed) % 2;
        const double common = special(check_random(&seed));
        for (uint32_t s = 0; s < shards; s++) {
            const double value = alike[i] && weights[s] != 0 ? common : number();
            if (is_double)
                memcpy(values[s] + i * itemsize, &value, itemsize);
            else
                memcpy(values[s] + i * itemsize, &(float){(float)value}, itemsize);
        }
    }
    memset(in, 7, nbytes);
    struct kernel_range range = {.count = count,
                                 .shards = shards,
                                 .grads = (const void *const *)values,
                                 .weights = weights,
                                 .params_in = in,
                                 .params_out = out,
                                 .grad_scale = 0.5};
    range_merge(MERGE_MEAN, is_double ? KERNEL_F64 : KERNEL_F32, &range);
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *got = out + i * itemsize;
        if (first == shards) {
            CHECK(memcmp(got, in + i * itemsize, itemsize) == 0);
        } else if (alike[i]) {
            CHECK(memcmp(got, values[first] + i * itemsize, itemsize) == 0);
        } else {
            const double mean = expected_mean(&range, i, is_double);
            CHECK(is_double ? *(const double *)got == mean : *(const float *)got == (float)mean);
        }
    }
    range.count = nbytes;
    range_merge(MERGE_FIRST, KERNEL_F32, &range);
    CHECK(memcmp(out, first == shards ? in : values[first], nbytes) == 0);
    range_merge(MERGE_KEEP, KERNEL_F32, &range);
    CHECK(memcmp(out, in, nbytes) == 0);
    for (uint32_t s = 0; s < shards; s++) {
        range_take(&range, s);
        CHECK(memcmp(out, weights[s] == 0 ? in : values[s], nbytes) == 0);
    }
    range_take(&range, shards); /* no shard: nothing is read */
    CHECK(memcmp(out, in, nbytes) == 0);
    range.count = count;
    range_merge(MERGE_SUM, is_double ? KERNEL_F64 : KERNEL_F32, &range);
    for (uint64_t i = 0; i < count; i++) {
        const double sum = first == shards ? 0 : expected_mean(&range, i, is_double);
        const double got = is_double ? ((const double *)out)[i] : (double)((const float *)out)[i];
        CHECK(got == (is_double ? sum : (double)(float)sum) || (isnan(got) && isnan(sum)));
    }
    for (uint32_t s = 0; s < shards; s++)
        free(values[s]);
    free(alike);
    free(in);
    free(out);
}

/* A leaf is skipped if every shard that has examples says so; in an empty batch none is. */
static void check_absent(uint32_t shards)
{
    enum { LEAVES = 70 };
    uint8_t flags[MAX_SHARDS][LEAVES], out[LEAVES];
    const void *grads[MAX_SHARDS];
    double weights[MAX_SHARDS], total = 0;
    for (uint32_t s = 0; s < shards; s++) {
        grads[s] = flags[s];
        weights[s] = (double)(check_random(&seed) % 2);
        total += weights[s];
        for (unsigned leaf = 0; leaf < LEAVES; leaf++)
            flags[s][leaf] = check_random(&seed) % 3 != 0;
    }
    struct kernel_range range = {
        .count = LEAVES, .shards = shards, .grads = grads, .weights = weights, .params_out = out};
    range_merge(MERGE_ABSENT, KERNEL_F32, &range);
    for (unsigned leaf = 0; leaf < LEAVES; leaf++) {
        bool expected = total != 0;
        for (uint32_t s = 0; s < shards; s++)
            expected &= weights[s] == 0 || flags[s][leaf] != 0;
        CHECK(out[leaf] == expected && leaf_is_skipped(&range, leaf) == expected);
    }
}

int main(void)
{
    check_begin("test_merge");
    seed = check_stream(0);
    for (int round = 0; round < 60; round++)
        for (uint32_t shards = 1; shards <= MAX_SHARDS; shards++)
            check_case(shards, 1 + check_random(&seed) % (round % 6 ? 40 : MAX_COUNT), round % 2);
    for (int round = 0; round < 60; round++)
        for (uint32_t shards = 1; shards <= MAX_SHARDS; shards++)
            check_absent(shards);
    return check_end();
}
