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

/* The gradient of the block at `start`: in a buffer of the tree, or in the only shard's own. */
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

/* Block by block, so that the gradient's sum stays in the first-level cache and memory is passed over once. */
static void NAME(range_step)(const struct kernel_hyper *hyper, const struct kernel_range *range, unsigned states,
                             block_step *step)
{
    struct NAME(tree) tree; /* left uninitialised: a wide tree is large, and a block writes what it reads */
    tree.depth = 0;
    for (unsigned level = 0; level < TREE_LEVELS; level++)
        tree.node[level] = tree.memory[level];
    const size_t block_count = BLOCK_BYTES / sizeof(REAL);
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
        step(hyper, &block);
    }
}

/* The flags are constants where this is called, so each combination becomes a loop without branches. */
ALWAYS_INLINE static void NAME(sgd_loop)(const struct kernel_hyper *hyper, const struct block *block, bool decays,
                                         bool has_momentum, bool nesterov)
{
    const size_t count = block->count;
    const REAL lr = (REAL)hyper->lr, momentum = (REAL)hyper->momentum, weight_decay = (REAL)hyper->weight_decay;
    const REAL *grad = block->grad, *params_in = block->params_in, *momentum_in = block->state_in[0];
    REAL *params_out = block->params_out, *momentum_out = block->state_out[0];
    INDEPENDENT_ELEMENTS
    for (size_t i = 0; i < count; i++) {
        REAL direction = grad[i];
        if (decays)
            direction = direction + weight_decay * params_in[i];
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
    const bool decays = hyper->weight_decay != 0;
    if (hyper->momentum == 0 && !decays)
        NAME(sgd_loop)(hyper, block, false, false, false);
    else if (hyper->momentum == 0)
        NAME(sgd_loop)(hyper, block, true, false, false);
    else if (hyper->nesterov && !decays)
        NAME(sgd_loop)(hyper, block, false, true, true);
    else if (hyper->nesterov)
        NAME(sgd_loop)(hyper, block, true, true, true);
    else if (!decays)
        NAME(sgd_loop)(hyper, block, false, true, false);
    else
        NAME(sgd_loop)(hyper, block, true, true, false);
}
