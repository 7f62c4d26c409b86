/* The kernels for one element type: kernels.c includes this once per type, with REAL and NAME() defined.
 *
 * The functions marked CLONED are the only loops over elements. Each element of a loop is independent of the others,
 * so the compiler may use vectors of any width without changing a bit.
 */

/* out = weight * grad */
CLONED static void NAME(leaf_weigh)(size_t count, REAL *restrict out, const REAL *restrict grad, REAL weight)
{
    for (size_t i = 0; i < count; i++)
        out[i] = weight * grad[i];
}

/* Two leaves and their merge in one pass, for they are half of the tree. */
CLONED static void NAME(leaves_merge)(size_t count, REAL *restrict out, const REAL *restrict left_grad,
                                      REAL left_weight, const REAL *restrict right_grad, REAL right_weight)
{
    for (size_t i = 0; i < count; i++)
        out[i] = left_weight * left_grad[i] + right_weight * right_grad[i];
}

/* left += right */
CLONED static void NAME(node_merge)(size_t count, REAL *restrict left, const REAL *restrict right)
{
    for (size_t i = 0; i < count; i++)
        left[i] = left[i] + right[i];
}

/* The nodes still to be merged, left to right: each the root of a perfect subtree, smaller than the one before it. */
struct NAME(tree) {
    unsigned depth;
    bool present[TREE_LEVELS];
    REAL *node[TREE_LEVELS];
    REAL memory[TREE_LEVELS][BLOCK_BYTES / sizeof(REAL)];
};

/* Left uninitialised but for this: a wide tree is large, and a block writes what it reads. */
static void NAME(tree_begin)(struct NAME(tree) *tree)
{
    tree->depth = 0;
    for (unsigned level = 0; level < TREE_LEVELS; level++)
        tree->node[level] = tree->memory[level];
}

/* The node over shards `left` and `left + 1` of one block: into `out`, or false if both are absent. */
static bool NAME(pair_sum)(const struct kernel_range *range, uint64_t left, uint64_t start, size_t count, REAL *out)
{
    const uint64_t right = left + 1;
    const double left_weight = range->weights[left];
    const double right_weight = right < range->shards ? range->weights[right] : 0;
    if (left_weight != 0 && right_weight != 0)
        NAME(leaves_merge)(count, out, (const REAL *)range->grads[left] + start, (REAL)left_weight,
                           (const REAL *)range->grads[right] + start, (REAL)right_weight);
    else if (left_weight != 0)
        NAME(leaf_weigh)(count, out, (const REAL *)range->grads[left] + start, (REAL)left_weight);
    else if (right_weight != 0)
        NAME(leaf_weigh)(count, out, (const REAL *)range->grads[right] + start, (REAL)right_weight);
    else
        return false;
    return true;
}

/* Replace the two rightmost nodes by their sum. */
static void NAME(tree_fold)(struct NAME(tree) *tree, size_t count)
{
    const unsigned right = --tree->depth, left = right - 1;
    if (!tree->present[right])
        return;
    if (tree->present[left]) {
        NAME(node_merge)(count, tree->node[left], tree->node[right]);
        return;
    }
    REAL *spare = tree->node[left];
    tree->node[left] = tree->node[right];
    tree->node[right] = spare;
    tree->present[left] = true;
}

/* The gradient of the block at `start`: in the tree's first buffer, or in the only shard's own. */
static const REAL *NAME(tree_sum)(struct NAME(tree) *tree, const struct kernel_range *range, uint64_t start,
                                  size_t count)
{
    if (range->shards == 1 && range->weights[0] == 1)
        return (const REAL *)range->grads[0] + start;
    /* A binary counter: after k pairs the nodes are the bits of k, and a carry is a merge. */
    for (uint64_t pair = 0; 2 * pair < range->shards; pair++) {
        tree->present[tree->depth] = NAME(pair_sum)(range, 2 * pair, start, count, tree->node[tree->depth]);
        tree->depth++;
        for (uint64_t carry = pair; carry & 1; carry >>= 1)
            NAME(tree_fold)(tree, count);
    }
    while (tree->depth > 1)
        NAME(tree_fold)(tree, count);
    const bool present = tree->depth == 1 && tree->present[0];
    tree->depth = 0;
    if (!present)
        memset(tree->node[0], 0, count * sizeof(REAL));
    return tree->node[0];
}

/* out = scale * grad + weight_decay * params; `out` may be `grad`. Multiplying by 1 changes nothing, but without decay
 * nothing is added: 0 * infinity is not 0. */
CLONED static void NAME(grad_prepare)(size_t count, REAL *out, const REAL *grad, REAL scale, const REAL *params,
                                      REAL weight_decay, bool decays)
{
    if (decays) {
        INDEPENDENT_ELEMENTS
        for (size_t i = 0; i < count; i++)
            out[i] = scale * grad[i] + weight_decay * params[i];
    } else {
        INDEPENDENT_ELEMENTS
        for (size_t i = 0; i < count; i++)
            out[i] = scale * grad[i];
    }
}

/* Block by block, so that the gradient's sum stays in the first-level cache and memory is passed over once. */
static void NAME(range_step)(const struct kernel_hyper *hyper, const struct kernel_range *range, unsigned states,
                             block_step *step)
{
    struct NAME(tree) tree;
    NAME(tree_begin)(&tree);
    const size_t block_count = BLOCK_BYTES / sizeof(REAL);
    const bool decays = hyper->weight_decay != 0, prepares = decays || range->grad_scale != 1;
    for (uint64_t start = 0; start < range->count; start += block_count) {
        const uint64_t left = range->count - start;
        struct block block = {.count = left < block_count ? (size_t)left : block_count};
        block.grad = NAME(tree_sum)(&tree, range, start, block.count);
        block.params_in = (const REAL *)range->params_in + start;
        block.params_out = (REAL *)range->params_out + start;
        for (unsigned i = 0; i < states; i++) {
            block.state_in[i] = (const REAL *)range->state_in[i] + start;
            block.state_out[i] = (REAL *)range->state_out[i] + start;
        }
        if (prepares) {
            NAME(grad_prepare)(block.count, tree.node[0], block.grad, (REAL)range->grad_scale, block.params_in,
                               (REAL)hyper->weight_decay, decays);
            block.grad = tree.node[0];
        }
        step(hyper, &block);
    }
}

CLONED static void NAME(squares_add)(size_t count, const REAL *restrict grad, double *restrict sums)
{
    double lane[SQUARE_SUMS];
    size_t i = 0;
    memcpy(lane, sums, sizeof lane);
    for (; i + SQUARE_SUMS <= count; i += SQUARE_SUMS)
        for (unsigned k = 0; k < SQUARE_SUMS; k++)
            lane[k] = lane[k] + (double)grad[i + k] * (double)grad[i + k];
    for (unsigned k = 0; i < count; i++, k++)
        lane[k] = lane[k] + (double)grad[i] * (double)grad[i];
    memcpy(sums, lane, sizeof lane);
}

static void NAME(range_squares)(const struct kernel_range *range, double *sums)
{
    struct NAME(tree) tree;
    NAME(tree_begin)(&tree);
    const size_t block_count = BLOCK_BYTES / sizeof(REAL);
    for (uint64_t start = 0; start < range->count; start += block_count) {
        const uint64_t left = range->count - start;
        const size_t count = left < block_count ? (size_t)left : block_count;
        NAME(squares_add)(count, NAME(tree_sum)(&tree, range, start, count), sums);
    }
}

/* x - x is 0, of an infinity or a NaN it is NaN, and a NaN stays in a sum. */
CLONED static bool NAME(numbers_are_finite)(size_t count, const REAL *numbers)
{
    REAL lane[SQUARE_SUMS] = {0};
    size_t i = 0;
    for (; i + SQUARE_SUMS <= count; i += SQUARE_SUMS)
        for (unsigned k = 0; k < SQUARE_SUMS; k++)
            lane[k] += numbers[i + k] - numbers[i + k];
    for (unsigned k = 0; i < count; i++, k++)
        lane[k] += numbers[i] - numbers[i];
    for (unsigned k = 1; k < SQUARE_SUMS; k++)
        lane[0] += lane[k];
    return lane[0] == 0;
}

/* The flags are constants where a loop is called, so each combination becomes a loop without branches. */
ALWAYS_INLINE static void NAME(sgd_loop)(const struct kernel_hyper *hyper, const struct block *block, bool has_momentum,
                                         bool nesterov)
{
    const size_t count = block->count;
    const REAL lr = (REAL)hyper->rates.lr, momentum = (REAL)hyper->momentum;
    const REAL *grad = block->grad, *params_in = block->params_in, *momentum_in = block->state_in[0];
    REAL *params_out = block->params_out, *momentum_out = block->state_out[0];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        REAL direction = grad[i];
        if (has_momentum) {
            const REAL velocity = momentum * momentum_in[i] + direction;
            momentum_out[i] = velocity;
            direction = nesterov ? direction + momentum * velocity : velocity;
        }
        params_out[i] = params_in[i] - lr * direction;
    }
}

CLONED static void NAME(sgd_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->momentum == 0)
        NAME(sgd_loop)(hyper, block, false, false);
    else if (hyper->nesterov)
        NAME(sgd_loop)(hyper, block, true, true);
    else
        NAME(sgd_loop)(hyper, block, true, false);
}

/* old + weight * (new - old), counted from the nearer end as torch.lerp does. */
struct NAME(lerp) {
    bool from_old;
    REAL factor;
};

static inline struct NAME(lerp) NAME(lerp_of)(double weight)
{
    const REAL rounded = (REAL)weight;
    const bool from_old = rounded < (REAL)0.5;
    return (struct NAME(lerp)){from_old, from_old ? rounded : -(1 - rounded)};
}

ALWAYS_INLINE static REAL NAME(lerp_at)(struct NAME(lerp) lerp, REAL old, REAL new)
{
    return (lerp.from_old ? old : new) + lerp.factor * (new - old);
}

ALWAYS_INLINE static void NAME(adam_loop)(const struct kernel_hyper *hyper, const struct block *block, bool amsgrad)
{
    const size_t count = block->count;
    const REAL lr = (REAL)hyper->rates.lr, shrink = (REAL)hyper->rates.shrink, eps = (REAL)hyper->eps;
    const REAL root_scale = (REAL)hyper->rates.root_scale;
    const REAL beta2 = (REAL)hyper->beta2, fresh = (REAL)(1 - hyper->beta2);
    const struct NAME(lerp) lerp = NAME(lerp_of)(1 - hyper->beta1);
    const REAL *grad = block->grad, *params_in = block->params_in;
    const REAL *mean_in = block->state_in[0], *square_in = block->state_in[1], *peak_in = block->state_in[2];
    REAL *params_out = block->params_out;
    REAL *mean_out = block->state_out[0], *square_out = block->state_out[1], *peak_out = block->state_out[2];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        const REAL mean = NAME(lerp_at)(lerp, mean_in[i], grad[i]);
        REAL square = beta2 * square_in[i] + fresh * grad[i] * grad[i];
        mean_out[i] = mean;
        square_out[i] = square;
        if (amsgrad) {
            square = peak_in[i] > square ? peak_in[i] : square; /* a NaN stays one */
            peak_out[i] = square;
        }
        params_out[i] = shrink * params_in[i] - lr * mean / (root_scale * SQRT(square) + eps);
    }
}

CLONED static void NAME(adam_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->amsgrad)
        NAME(adam_loop)(hyper, block, true);
    else
        NAME(adam_loop)(hyper, block, false);
}

ALWAYS_INLINE static void NAME(rmsprop_loop)(const struct kernel_hyper *hyper, const struct block *block,
                                             bool has_momentum, bool centered)
{
    const size_t count = block->count;
    const unsigned mean = has_momentum ? 2 : 1;
    const REAL lr = (REAL)hyper->rates.lr, momentum = (REAL)hyper->momentum, eps = (REAL)hyper->eps;
    const REAL alpha = (REAL)hyper->beta2, fresh = (REAL)(1 - hyper->beta2);
    const struct NAME(lerp) lerp = NAME(lerp_of)(1 - hyper->beta2);
    const REAL *grad = block->grad, *params_in = block->params_in;
    const REAL *square_in = block->state_in[0], *momentum_in = block->state_in[1], *mean_in = block->state_in[mean];
    REAL *params_out = block->params_out;
    REAL *square_out = block->state_out[0], *momentum_out = block->state_out[1], *mean_out = block->state_out[mean];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        REAL square = alpha * square_in[i] + fresh * grad[i] * grad[i];
        square_out[i] = square;
        if (centered) {
            const REAL average = NAME(lerp_at)(lerp, mean_in[i], grad[i]);
            mean_out[i] = average;
            square = square - average * average;
            square = square < 0 ? 0 : square; /* by rounding; a NaN stays one */
        }
        const REAL root = SQRT(square) + eps;
        if (has_momentum) {
            const REAL velocity = momentum * momentum_in[i] + grad[i] / root;
            momentum_out[i] = velocity;
            params_out[i] = params_in[i] - lr * velocity;
        } else {
            params_out[i] = params_in[i] - lr * grad[i] / root;
        }
    }
}

CLONED static void NAME(rmsprop_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->momentum == 0 && !hyper->centered)
        NAME(rmsprop_loop)(hyper, block, false, false);
    else if (hyper->momentum == 0)
        NAME(rmsprop_loop)(hyper, block, false, true);
    else if (!hyper->centered)
        NAME(rmsprop_loop)(hyper, block, true, false);
    else
        NAME(rmsprop_loop)(hyper, block, true, true);
}

CLONED static void NAME(adagrad_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    const size_t count = block->count;
    const REAL lr = (REAL)hyper->rates.lr, eps = (REAL)hyper->eps;
    const REAL *grad = block->grad, *params_in = block->params_in, *square_in = block->state_in[0];
    REAL *params_out = block->params_out, *square_out = block->state_out[0];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        const REAL square = square_in[i] + grad[i] * grad[i];
        square_out[i] = square;
        params_out[i] = params_in[i] - lr * grad[i] / (SQRT(square) + eps);
    }
}
