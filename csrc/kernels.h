/* Optimizer steps in one pass: sum the shards' gradients, update the state and the parameters, out of place.
 *
 * Guarantees:
 *   - Every element is computed alone, with one rounding per operation, in an order that the number of shards fixes.
 *     So its bits do not depend on how a step is cut into ranges, on the vector width, on alignment, or on the
 *     caller's floating-point mode (a library built with -ffast-math may have set flush-to-zero in one process and
 *     not in another). Only a NaN's payload may differ. Square roots and divisions are correctly rounded on every
 *     processor; powers and logarithms are not, so they are not used: kernel_rates has the numbers that need them,
 *     and kernel_rates_at makes powers of products.
 *   - The sum of squares of a range is no element's own: it has an order that the range's length fixes.
 *   - Inputs are only read: a step that is run twice, or killed half-way and run again, gives the same result.
 *   - No allocation, no system call, no lock, no global state; it may run in any number of threads.
 *
 * The sum is a fixed pairwise tree over the shard index: n leaves split at the largest power of two below n. Its
 * rounding error grows with log n rather than n (Higham, "The accuracy of floating point summation", 1993), and a
 * subtree that is summed elsewhere, for example on another node, has the same bits.
 *
 *     shard      0     1     2     3     4          leaf = weight * gradient, the weight rounded to the element type
 *                 \   /       \   /      |
 *                   +           +        |          A shard of weight 0 is absent: its buffer is never read, and
 *                     \       /          |          its sibling passes through as it is. All absent: the gradient
 *                         +              |          is zero, and the step (decay, momentum) is still taken.
 *                           \           /
 *                                 +
 *
 * Before the optimizer sees it, the sum is multiplied by grad_scale, and weight_decay times the parameter is added.
 *
 * Optimizers, each as torch.optim defines it; m, v, ... are state, g the gradient, w the parameter:
 *   SGD      (Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013; dampening 0)
 *              m = momentum m + g;  w -= lr m                              Nesterov: w -= lr (g + momentum m)
 *   Adam     (Kingma and Ba, 2015; AMSGrad: Reddi et al., 2018; AdamW: Loshchilov and Hutter, 2019)
 *              m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;   AMSGrad: u = max(u, v), and u for v below
 *              w = shrink w - lr m / (root_scale sqrt(v) + eps)            sparse Adam: the same, with other rates
 *   RMSprop  (Tieleman and Hinton, 2012; centered: Graves, 2013)
 *              v = beta2 v + (1 - beta2) g^2;  d = g / (sqrt(v) + eps);    momentum: b = momentum b + d, and b for d
 *              w -= lr d                             centered: a += (1 - beta2) (g - a), and max(v - a^2, 0) for v
 *   Adagrad  (Duchi, Hazan and Singer, 2011)
 *              v = v + g^2;  w -= lr g / (sqrt(v) + eps)
 */
#ifndef UNTORN_KERNELS_H
#define UNTORN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kernel_dtype { KERNEL_F32 = 0, KERNEL_F64 = 1 };
enum kernel_optimizer {
    KERNEL_SGD = 0,
    KERNEL_ADAM = 1,
    KERNEL_RMSPROP = 2,
    KERNEL_ADAGRAD = 3,
    KERNEL_SPARSE_ADAM = 4
};
enum { KERNEL_OPTIMIZERS = 5, KERNEL_MAX_STATES = 3 };

/* The numbers that may change from step to step; the caller computes them in double. An lr that is NaN says that no
 * step is taken, which is for the caller of kernel_step() to see. */
struct kernel_rates {
    double lr;         /* Adam: learning rate / (1 - beta1^t), t from 1; Adagrad: / (1 + (t - 1) lr_decay);
                          * sparse Adam: that of Adam, times sqrt(1 - beta2^t) */
    double shrink;     /* Adam: 1 - learning rate * decay, for AdamW's decay; 1 for none */
    double root_scale; /* Adam: 1 / sqrt(1 - beta2^t); sparse Adam: 1 */
    double rate;       /* the learning rate itself, and t: only kernel_rates_at reads them */
    double step;
};

/* One step's hyperparameters, rounded to the element type before use. An optimizer reads those that it has. */
struct kernel_hyper {
    double momentum;
    double weight_decay; /* added to the gradient, as an L2 penalty would */
    double beta1, beta2; /* RMSprop: beta2 is its alpha; Adagrad: beta1 is its lr_decay */
    double eps;
    uint32_t nesterov; /* 0 or 1; without effect if there is no momentum */
    uint32_t centered, amsgrad;
    struct kernel_rates rates;
};

/* One range of one step. Every pointer is at the range's first element, aligned to one element. No output overlaps an
 * input or another output. */
struct kernel_range {
    uint64_t count; /* elements */
    uint32_t shards;
    const void *const *grads; /* [shards]; those of absent shards may be NULL */
    const double *weights;    /* [shards] examples of the shard / examples of the batch */
    double grad_scale;        /* of the sum; 1 for none */
    const void *params_in;
    void *params_out;
    const void *const *state_in; /* [kernel_state_count()] each shaped like the parameters; before step one zeros,
                                    * or for Adagrad any value */
    void *const *state_out;      /* both may be NULL where the count is 0 */
};

/* Buffers of state per parameter. SGD: m, if there is momentum. Adam: m, v, and u for AMSGrad. RMSprop: v, then b if
 * there is momentum, then a if centered. Adagrad: v. */
unsigned kernel_state_count(enum kernel_optimizer optimizer, const struct kernel_hyper *hyper);

/* Return the rates of the same step for parameters that take their t-th step in it, since they have skipped some. */
struct kernel_rates kernel_rates_at(enum kernel_optimizer optimizer, const struct kernel_hyper *hyper, uint64_t t);

/* Return the size of one element. */
size_t kernel_itemsize(enum kernel_dtype dtype);

/* Take the step for one range. */
void kernel_step(enum kernel_optimizer optimizer, enum kernel_dtype dtype, const struct kernel_hyper *hyper,
                 const struct kernel_range *range);

/* Write the shards' sum to `sum`, which overlaps no gradient. Reads only the gradients and weights. */
void kernel_sum(enum kernel_dtype dtype, const struct kernel_range *range, void *sum);

/* The part of a tree above some of its nodes. Replace the two rightmost nodes by their sum folds[i] times, after node i
 * was put to the right of those that are left. In the end one is left. */
struct kernel_fold {
    uint32_t nodes;
    const void *const *values; /* [nodes] NULL: every shard below the node is absent, so its sibling passes through */
    const uint8_t *folds;      /* [nodes] */
};
enum { KERNEL_MAX_DEPTH = 32 }; /* the number of nodes that may wait */
/* Write the sum of a tree's nodes to `sum`, which overlaps none of them; zeros if all are absent. */
void kernel_fold(enum kernel_dtype dtype, uint64_t count, const struct kernel_fold *fold, void *sum);

/* Return the sum over the range of the squares of the shards' sum, in double. Reads only the gradients and weights. */
double kernel_square_sum(enum kernel_dtype dtype, const struct kernel_range *range);

/* Copy `count` numbers; `target` is aligned, `source` need not be. Return whether all of them are finite. */
bool kernel_copy_finite(enum kernel_dtype dtype, uint64_t count, void *target, const void *source);

/* Add `count` rows of this many elements to the rows of `target` with these indices, one after the other. Return
 * whether every result is finite. */
bool kernel_rows_add(enum kernel_dtype dtype, uint64_t count, uint64_t row, const int64_t *indices, const void *values,
                     void *target);

/* Sum scalars (losses, metrics), all of them present, in the same tree. Return 0 if there are none. */
double kernel_tree_sum(uint32_t count, const double *values);

#endif
