/* Merging values that no optimizer owns. See merge.h for the guarantees. */
#include "merge.h"

#include <stdbool.h>
#include <string.h>

enum { BLOCK_COUNT = 512, MAX_SHARDS = 1024 };

/* Return the first shard, from this one on, that has examples, or range->shards. */
static uint32_t shard_present(const struct kernel_range *range, uint32_t from)
{
    while (from < range->shards && range->weights[from] == 0)
        from++;
    return from;
}

/* Return whether these bytes are the same in all shards. */
static bool shards_agree(const struct kernel_range *range, uint32_t first, uint64_t at, size_t nbytes)
{
    const uint8_t *expected = (const uint8_t *)range->grads[first] + at;
    for (uint32_t i = shard_present(range, first + 1); i < range->shards; i = shard_present(range, i + 1))
        if (memcmp(expected, (const uint8_t *)range->grads[i] + at, nbytes) != 0)
            return false;
    return true;
}

/* The mean is a step of SGD with the rate -1 that starts at zero: 0 + the sum. */
static void block_mean(enum kernel_dtype dtype, const struct kernel_range *range, uint64_t at, size_t count)
{
    static const double zeros[BLOCK_COUNT];
    const void *grads[MAX_SHARDS];
    for (uint32_t i = 0; i < range->shards; i++)
        grads[i] = (const uint8_t *)range->grads[i] + at;
    struct kernel_range block = *range;
    block.count = count;
    block.grads = grads;
    block.grad_scale = 1;
    block.params_in = zeros;
    block.params_out = (uint8_t *)range->params_out + at;
    const struct kernel_hyper hyper = {.rates = {.lr = -1, .shrink = 1, .root_scale = 1}};
    kernel_step(KERNEL_SGD, dtype, &hyper, &block);
}

static void range_mean(enum kernel_dtype dtype, const struct kernel_range *range, uint32_t first)
{
    const size_t itemsize = kernel_itemsize(dtype);
    const uint8_t *source = range->grads[first];
    uint8_t *target = range->params_out;
    for (uint64_t start = 0; start < range->count; start += BLOCK_COUNT) {
        const uint64_t left = range->count - start, at = start * itemsize;
        const size_t count = left < BLOCK_COUNT ? (size_t)left : BLOCK_COUNT, nbytes = count * itemsize;
        if (shards_agree(range, first, at, nbytes)) {
            memcpy(target + at, source + at, nbytes);
            continue;
        }
        block_mean(dtype, range, at, count);
        for (uint64_t i = at; i < at + nbytes; i += itemsize)
            if (shards_agree(range, first, i, itemsize))
                memcpy(target + i, source + i, itemsize);
    }
}

bool leaf_is_skipped(const struct kernel_range *flags, uint64_t leaf)
{
    const uint32_t first = shard_present(flags, 0);
    uint32_t i = first;
    while (i < flags->shards && ((const uint8_t *)flags->grads[i])[leaf] != 0)
        i = shard_present(flags, i + 1);
    return i == flags->shards && first < flags->shards;
}

static void leaves_absent(const struct kernel_range *range)
{
    for (uint64_t leaf = 0; leaf < range->count; leaf++)
        ((uint8_t *)range->params_out)[leaf] = leaf_is_skipped(range, leaf);
}

void range_merge(enum merge_kind kind, enum kernel_dtype dtype, const struct kernel_range *range)
{
    switch (kind) {
    case MERGE_SUM: kernel_sum(dtype, range, range->params_out); return;
    case MERGE_ABSENT: leaves_absent(range); return;
    default: break;
    }
    const uint32_t first = kind == MERGE_KEEP ? range->shards : shard_present(range, 0);
    if (first == range->shards) /* an empty batch changes nothing */
        memcpy(range->params_out, range->params_in, range->count * (kind == MERGE_MEAN ? kernel_itemsize(dtype) : 1));
    else if (kind == MERGE_FIRST)
        memcpy(range->params_out, range->grads[first], range->count);
    else
        range_mean(dtype, range, first);
}

void range_take(const struct kernel_range *range, uint64_t shard)
{
    const bool present = shard < range->shards && range->weights[shard] != 0;
    memcpy(range->params_out, present ? range->grads[shard] : range->params_in, range->count);
}
