/* Optimizer steps in one pass: sum the shards' gradients, update the state and the parameters, out of place.
 *
 * What it promises:
 *   - Every element is computed alone, with one rounding per operation, in an order that the number of shards fixes.
 *     So its bits do not depend on how a step is cut into ranges, on the vector width, on alignment, or on the
 *     caller's floating-point mode (a library built with -ffast-math may have set flush-to-zero in one process and
 *     not in another). Only a NaN's payload may differ.
 *   - Inputs are only read: a step that is run twice, or killed half-way and run again, gives the same result.
 *   - No allocation, no system call, no lock, no global state; it may run in any number of threads.
 *
 * The sum is a fixed pairwise tree over the shard index: n leaves split at the largest power of two below n. Its
 * rounding error grows with log n rather than n (Higham, "The accuracy of floating point summation", 1993), and
 * whoever sums a subtree elsewhere, on another node say, gets the same bits.
 *
 *     shard      0     1     2     3     4          leaf = weight * gradient, the weight rounded to the element type
 *                 \   /       \   /      |
 *                   +           +        |          A shard of weight 0 is absent: its buffer is never read, and
 *                     \       /          |          its sibling passes through as it is. All absent: the gradient
 *                         +              |          is zero, and the step (decay, momentum) is still taken.
 *                           \           /
 *                                 +
 *
 * Optimizers: SGD as torch.optim.SGD defines it (Sutskever et al., "On the importance of initialization and momentum
 * in deep learning", 2013, with PyTorch's placement of the learning rate), with dampening 0.
 */
#ifndef UNTORN_KERNELS_H
#define UNTORN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum kernel_dtype { KERNEL_F32 = 0, KERNEL_F64 = 1 };
enum kernel_optimizer { KERNEL_SGD = 0 };

/* One step's hyperparameters, rounded to the element type before use. */
struct kernel_hyper {
    double lr;
    double momentum;
    double weight_decay;
    uint32_t nesterov;         /* 0 or 1; without momentum it means nothing */
};

/* One range of one step. Every pointer is at the range's first element, aligned to one element. No output overlaps an
 * input or another output. */
struct kernel_range {
    uint64_t count;            /* elements */
    uint32_t shards;
    const void *const *grads;  /* [shards]; those of absent shards may be NULL */
    const double *weights;     /* [shards] examples of the shard / examples of the batch */
    const void *params_in;
    void *params_out;
    const void *const *state_in; /* [kernel_state_count()] each shaped like the parameters; zeros before step one */
    void *const *state_out;      /* both may be NULL where the count is 0 */
};

/* Buffers of state per parameter: for SGD 1 (momentum), or 0 where hyper->momentum is 0. */
unsigned kernel_state_count(enum kernel_optimizer optimizer, const struct kernel_hyper *hyper);

/* Bytes of one element. */
size_t kernel_itemsize(enum kernel_dtype dtype);

/* Take the step for one range. */
void kernel_step(enum kernel_optimizer optimizer, enum kernel_dtype dtype, const struct kernel_hyper *hyper,
                 const struct kernel_range *range);

/* The same tree over scalars (losses, metrics), every one of them present. 0 of none. */
double kernel_tree_sum(uint32_t count, const double *values);

#endif
