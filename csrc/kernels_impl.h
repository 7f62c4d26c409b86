/* The kernels for one element type: kernels.c includes this once per type, with KERNEL_REAL and KERNEL_NAME() defined.
 *
 * The functions marked CLONED are the only loops over elements. Each element of a loop is independent of the others,
 * so the compiler may use vectors of any width without changing a bit.
 */

/* out = weight * grad */
CLONED static void KERNEL_NAME(leaf_weigh)(size_t count, KERNEL_REAL *restrict out, const KERNEL_REAL *restrict grad,
                                           KERNEL_REAL weight)
{
    for (size_t i = 0; i < count; i++)
        out[i] = weight * grad[i];
}

/* Two leaves and their merge in one pass, for they are half of the tree. */
CLONED static void KERNEL_NAME(leaves_merge)(size_t count, KERNEL_REAL *restrict out,
                                             const KERNEL_REAL *restrict left_grad, KERNEL_REAL left_weight,
                                             const KERNEL_REAL *restrict right_grad, KERNEL_REAL right_weight)
{
    for (size_t i = 0; i < count; i++)
        out[i] = left_weight * left_grad[i] + right_weight * right_grad[i];
}

/* left += right */
CLONED static void KERNEL_NAME(node_merge)(size_t count, KERNEL_REAL *restrict left, const KERNEL_REAL *restrict right)
{
    for (size_t i = 0; i < count; i++)
        left[i] = left[i] + right[i];
}

/* The nodes still to be merged, left to right: each the root of a perfect subtree, smaller than the one before it. */
struct KERNEL_NAME(tree) {
    unsigned depth;
    bool present[TREE_LEVELS];
    KERNEL_REAL *node[TREE_LEVELS];
    KERNEL_REAL memory[TREE_LEVELS][BLOCK_BYTES / sizeof(KERNEL_REAL)];
};

/* The rest stays uninitialised: a wide tree is large, and a block writes the nodes before it reads them. */
static void KERNEL_NAME(tree_begin)(struct KERNEL_NAME(tree) *tree)
{
    tree->depth = 0;
    for (unsigned level = 0; level < TREE_LEVELS; level++)
        tree->node[level] = tree->memory[level];
}

/* Compute the node over shards `left` and `left + 1` of one block into `out`; false if both are absent. */
static bool KERNEL_NAME(pair_sum)(const struct kernel_range *range, uint64_t left, uint64_t start, size_t count,
                                  KERNEL_REAL *out)
{
    const uint64_t right = left + 1;
    const double left_weight = range->weights[left];
    const double right_weight = right < range->shards ? range->weights[right] : 0;
    if (left_weight != 0 && right_weight != 0)
        KERNEL_NAME(leaves_merge)(count, out, (const KERNEL_REAL *)range->grads[left] + start, (KERNEL_REAL)left_weight,
                                  (const KERNEL_REAL *)range->grads[right] + start, (KERNEL_REAL)right_weight);
    else if (left_weight != 0)
        KERNEL_NAME(leaf_weigh)(count, out, (const KERNEL_REAL *)range->grads[left] + start, (KERNEL_REAL)left_weight);
    else if (right_weight != 0)
        KERNEL_NAME(leaf_weigh)(count, out, (const KERNEL_REAL *)range->grads[right] + start,
                                (KERNEL_REAL)right_weight);
    else
        return false;
    return true;
}

/* Replace the two rightmost nodes by their sum. */
static void KERNEL_NAME(tree_fold)(struct KERNEL_NAME(tree) *tree, size_t count)
{
    const unsigned right = --tree->depth, left = right - 1;
    if (!tree->present[right])
        return;
    if (tree->present[left]) {
        KERNEL_NAME(node_merge)(count, tree->node[left], tree->node[right]);
        return;
    }
    KERNEL_REAL *spare = tree->node[left];
    tree->node[left] = tree->node[right];
    tree->node[right] = spare;
    tree->present[left] = true;
}

/* Return the gradient of the block at `start`: in the tree's first buffer, or in the only shard's own. */
static const KERNEL_REAL *KERNEL_NAME(tree_sum)(struct KERNEL_NAME(tree) *tree, const struct kernel_range *range,
                                                uint64_t start, size_t count)
{
    if (range->shards == 1 && range->weights[0] == 1)
        return (const KERNEL_REAL *)range->grads[0] + start;
    /* A binary counter: after k pairs the nodes are the bits of k, and a carry is a merge. */
    for (uint64_t pair = 0; 2 * pair < range->shards; pair++) {
        tree->present[tree->depth] = KERNEL_NAME(pair_sum)(range, 2 * pair, start, count, tree->node[tree->depth]);
        tree->depth++;
        for (uint64_t carry = pair; carry & 1; carry >>= 1)
            KERNEL_NAME(tree_fold)(tree, count);
    }
    while (tree->depth > 1)
        KERNEL_NAME(tree_fold)(tree, count);
    const bool present = tree->depth == 1 && tree->present[0];
    tree->depth = 0;
    if (!present)
        memset(tree->node[0], 0, count * sizeof(KERNEL_REAL));
    return tree->node[0];
}

static void KERNEL_NAME(range_sum)(const struct kernel_range *range, KERNEL_REAL *sum)
{
    struct KERNEL_NAME(tree) tree;
    const size_t block_count = BLOCK_BYTES / sizeof(KERNEL_REAL);
    for (uint64_t start = 0; start < range->count; start += block_count) {
        const uint64_t left = range->count - start;
        const size_t count = left < block_count ? (size_t)left : block_count;
        KERNEL_NAME(tree_begin)(&tree);
        tree.node[0] = sum + start; /* where the root is made, unless an absent sibling moves it */
        const KERNEL_REAL *root = KERNEL_NAME(tree_sum)(&tree, range, start, count);
        if (root != sum + start)
            memcpy(sum + start, root, count * sizeof(KERNEL_REAL));
    }
}

/* out = left + right */
CLONED static void KERNEL_NAME(nodes_add)(size_t count, KERNEL_REAL *restrict out, const KERNEL_REAL *restrict left,
                                          const KERNEL_REAL *restrict right)
{
    for (size_t i = 0; i < count; i++)
        out[i] = left[i] + right[i];
}

/* Fold one block into `sum`. A node is where the caller has it, or in the memory of its level. */
static void KERNEL_NAME(block_fold)(struct KERNEL_NAME(tree) *tree, const struct kernel_fold *fold, uint64_t start,
                                    size_t count, KERNEL_REAL *sum)
{
    const KERNEL_REAL *node[TREE_LEVELS];
    unsigned depth = 0;
    KERNEL_NAME(tree_begin)(tree);
    tree->node[0] = sum;
    for (uint32_t i = 0; i < fold->nodes; i++) {
        node[depth++] = fold->values[i] == NULL ? NULL : (const KERNEL_REAL *)fold->values[i] + start;
        for (uint8_t folds = fold->folds[i]; folds > 0; folds--) {
            const unsigned right = --depth, left = right - 1;
            if (node[right] == NULL)
                continue;
            if (node[left] == NULL) { /* the memory goes with the node that may be in it */
                KERNEL_REAL *spare = tree->node[left];
                tree->node[left] = tree->node[right];
                tree->node[right] = spare;
                node[left] = node[right];
            } else if (node[left] == tree->node[left]) {
                KERNEL_NAME(node_merge)(count, tree->node[left], node[right]);
            } else {
                KERNEL_NAME(nodes_add)(count, tree->node[left], node[left], node[right]);
                node[left] = tree->node[left];
            }
        }
    }
    if (depth == 0 || node[0] == NULL)
        memset(sum, 0, count * sizeof(KERNEL_REAL));
    else if (node[0] != sum)
        memcpy(sum, node[0], count * sizeof(KERNEL_REAL));
}

static void KERNEL_NAME(nodes_fold)(uint64_t total, const struct kernel_fold *fold, KERNEL_REAL *sum)
{
    struct KERNEL_NAME(tree) tree;
    const size_t block_count = BLOCK_BYTES / sizeof(KERNEL_REAL);
    for (uint64_t start = 0; start < total; start += block_count) {
        const uint64_t left = total - start;
        const size_t count = left < block_count ? (size_t)left : block_count;
        KERNEL_NAME(block_fold)(&tree, fold, start, count, sum + start);
    }
}

/* out = scale * grad + weight_decay * params; `out` may be `grad`. Multiplying by 1 changes nothing, but without decay
 * nothing is added: 0 * infinity is not 0. */
CLONED static void KERNEL_NAME(grad_prepare)(size_t count, KERNEL_REAL *out, const KERNEL_REAL *grad, KERNEL_REAL scale,
                                             const KERNEL_REAL *params, KERNEL_REAL weight_decay, bool decays)
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
static void KERNEL_NAME(range_step)(const struct kernel_hyper *hyper, const struct kernel_range *range, unsigned states,
                                    block_step *step)
{
    struct KERNEL_NAME(tree) tree;
    KERNEL_NAME(tree_begin)(&tree);
    const size_t block_count = BLOCK_BYTES / sizeof(KERNEL_REAL);
    const bool decays = hyper->weight_decay != 0, prepares = decays || range->grad_scale != 1;
    for (uint64_t start = 0; start < range->count; start += block_count) {
        const uint64_t left = range->count - start;
        struct block block = {.count = left < block_count ? (size_t)left : block_count};
        block.grad = KERNEL_NAME(tree_sum)(&tree, range, start, block.count);
        block.params_in = (const KERNEL_REAL *)range->params_in + start;
        block.params_out = (KERNEL_REAL *)range->params_out + start;
        for (unsigned i = 0; i < states; i++) {
            block.state_in[i] = (const KERNEL_REAL *)range->state_in[i] + start;
            block.state_out[i] = (KERNEL_REAL *)range->state_out[i] + start;
        }
        if (prepares) {
            KERNEL_NAME(grad_prepare)(block.count, tree.node[0], block.grad, (KERNEL_REAL)range->grad_scale,
                                      block.params_in, (KERNEL_REAL)hyper->weight_decay, decays);
            block.grad = tree.node[0];
        }
        step(hyper, &block);
    }
}

CLONED static void KERNEL_NAME(squares_add)(size_t count, const KERNEL_REAL *restrict grad, double *restrict sums)
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

static void KERNEL_NAME(range_squares)(const struct kernel_range *range, double *sums)
{
    struct KERNEL_NAME(tree) tree;
    KERNEL_NAME(tree_begin)(&tree);
    const size_t block_count = BLOCK_BYTES / sizeof(KERNEL_REAL);
    for (uint64_t start = 0; start < range->count; start += block_count) {
        const uint64_t left = range->count - start;
        const size_t count = left < block_count ? (size_t)left : block_count;
        KERNEL_NAME(squares_add)(count, KERNEL_NAME(tree_sum)(&tree, range, start, count), sums);
    }
}

/* x - x is 0, of an infinity or a NaN it is NaN, and a NaN stays in a sum. */
CLONED static bool KERNEL_NAME(numbers_are_finite)(size_t count, const KERNEL_REAL *numbers)
{
    KERNEL_REAL lane[SQUARE_SUMS] = {0};
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
ALWAYS_INLINE static void KERNEL_NAME(sgd_loop)(const struct kernel_hyper *hyper, const struct block *block,
                                                bool has_momentum, bool nesterov)
{
    const size_t count = block->count;
    const KERNEL_REAL lr = (KERNEL_REAL)hyper->rates.lr, momentum = (KERNEL_REAL)hyper->momentum;
    const KERNEL_REAL *grad = block->grad, *params_in = block->params_in, *momentum_in = block->state_in[0];
    KERNEL_REAL *params_out = block->params_out, *momentum_out = block->state_out[0];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        KERNEL_REAL direction = grad[i];
        if (has_momentum) {
            const KERNEL_REAL velocity = momentum * momentum_in[i] + direction;
            momentum_out[i] = velocity;
            direction = nesterov ? direction + momentum * velocity : velocity;
        }
        params_out[i] = params_in[i] - lr * direction;
    }
}

CLONED static void KERNEL_NAME(sgd_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->momentum == 0)
        KERNEL_NAME(sgd_loop)(hyper, block, false, false);
    else if (hyper->nesterov)
        KERNEL_NAME(sgd_loop)(hyper, block, true, true);
    else
        KERNEL_NAME(sgd_loop)(hyper, block, true, false);
}

/* old + weight * (new - old), counted from the nearer end as torch.lerp does. */
struct KERNEL_NAME(lerp) {
    bool from_old;
    KERNEL_REAL factor;
};

static inline struct KERNEL_NAME(lerp) KERNEL_NAME(lerp_of)(double weight)
{
    const KERNEL_REAL rounded = (KERNEL_REAL)weight;
    const bool from_old = rounded < (KERNEL_REAL)0.5;
    return (struct KERNEL_NAME(lerp)){from_old, from_old ? rounded : -(1 - rounded)};
}

ALWAYS_INLINE static KERNEL_REAL KERNEL_NAME(lerp_at)(struct KERNEL_NAME(lerp) lerp, KERNEL_REAL old, KERNEL_REAL new)
{
    return (lerp.from_old ? old : new) + lerp.factor * (new - old);
}

ALWAYS_INLINE static void KERNEL_NAME(adam_loop)(const struct kernel_hyper *hyper, const struct block *block,
                                                 bool amsgrad)
{
    const size_t count = block->count;
    const KERNEL_REAL lr = (KERNEL_REAL)hyper->rates.lr, shrink = (KERNEL_REAL)hyper->rates.shrink,
                      eps = (KERNEL_REAL)hyper->eps;
    const KERNEL_REAL root_scale = (KERNEL_REAL)hyper->rates.root_scale;
    const KERNEL_REAL beta2 = (KERNEL_REAL)hyper->beta2, fresh = (KERNEL_REAL)(1 - hyper->beta2);
    const struct KERNEL_NAME(lerp) lerp = KERNEL_NAME(lerp_of)(1 - hyper->beta1);
    const KERNEL_REAL *grad = block->grad, *params_in = block->params_in;
    const KERNEL_REAL *mean_in = block->state_in[0], *square_in = block->state_in[1], *peak_in = block->state_in[2];
    KERNEL_REAL *params_out = block->params_out;
    KERNEL_REAL *mean_out = block->state_out[0], *square_out = block->state_out[1], *peak_out = block->state_out[2];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        const KERNEL_REAL mean = KERNEL_NAME(lerp_at)(lerp, mean_in[i], grad[i]);
        KERNEL_REAL square = beta2 * square_in[i] + fresh * grad[i] * grad[i];
        mean_out[i] = mean;
        square_out[i] = square;
        if (amsgrad) {
            square = peak_in[i] > square ? peak_in[i] : square; /* a NaN stays one */
            peak_out[i] = square;
        }
        params_out[i] = shrink * params_in[i] - lr * mean / (root_scale * KERNEL_SQRT(square) + eps);
    }
}

CLONED static void KERNEL_NAME(adam_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->amsgrad)
        KERNEL_NAME(adam_loop)(hyper, block, true);
    else
        KERNEL_NAME(adam_loop)(hyper, block, false);
}

ALWAYS_INLINE static void KERNEL_NAME(rmsprop_loop)(const struct kernel_hyper *hyper, const struct block *block,
                                                    bool has_momentum, bool centered)
{
    const size_t count = block->count;
    const unsigned mean = has_momentum ? 2 : 1;
    const KERNEL_REAL lr = (KERNEL_REAL)hyper->rates.lr, momentum = (KERNEL_REAL)hyper->momentum,
                      eps = (KERNEL_REAL)hyper->eps;
    const KERNEL_REAL alpha = (KERNEL_REAL)hyper->beta2, fresh = (KERNEL_REAL)(1 - hyper->beta2);
    const struct KERNEL_NAME(lerp) lerp = KERNEL_NAME(lerp_of)(1 - hyper->beta2);
    const KERNEL_REAL *grad = block->grad, *params_in = block->params_in;
    const KERNEL_REAL *square_in = block->state_in[0], *momentum_in = block->state_in[1],
                      *mean_in = block->state_in[mean];
    KERNEL_REAL *params_out = block->params_out;
    KERNEL_REAL *square_out = block->state_out[0], *momentum_out = block->state_out[1],
                *mean_out = block->state_out[mean];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        KERNEL_REAL square = alpha * square_in[i] + fresh * grad[i] * grad[i];
        square_out[i] = square;
        if (centered) {
            const KERNEL_REAL average = KERNEL_NAME(lerp_at)(lerp, mean_in[i], grad[i]);
            mean_out[i] = average;
            square = square - average * average;
            square = square < 0 ? 0 : square; /* by rounding; a NaN stays one */
        }
        const KERNEL_REAL root = KERNEL_SQRT(square) + eps;
        if (has_momentum) {
            const KERNEL_REAL velocity = momentum * momentum_in[i] + grad[i] / root;
            momentum_out[i] = velocity;
            params_out[i] = params_in[i] - lr * velocity;
        } else {
            params_out[i] = params_in[i] - lr * grad[i] / root;
        }
    }
}

CLONED static void KERNEL_NAME(rmsprop_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    if (hyper->momentum == 0 && !hyper->centered)
        KERNEL_NAME(rmsprop_loop)(hyper, block, false, false);
    else if (hyper->momentum == 0)
        KERNEL_NAME(rmsprop_loop)(hyper, block, false, true);
    else if (!hyper->centered)
        KERNEL_NAME(rmsprop_loop)(hyper, block, true, false);
    else
        KERNEL_NAME(rmsprop_loop)(hyper, block, true, true);
}

CLONED static void KERNEL_NAME(adagrad_step)(const struct kernel_hyper *hyper, const struct block *block)
{
    const size_t count = block->count;
    const KERNEL_REAL lr = (KERNEL_REAL)hyper->rates.lr, eps = (KERNEL_REAL)hyper->eps;
    const KERNEL_REAL *grad = block->grad, *params_in = block->params_in, *square_in = block->state_in[0];
    KERNEL_REAL *params_out = block->params_out, *square_out = block->state_out[0];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        const KERNEL_REAL square = square_in[i] + grad[i] * grad[i];
        square_out[i] = square;
        params_out[i] = params_in[i] - lr * grad[i] / (KERNEL_SQRT(square) + eps);
    }
}
