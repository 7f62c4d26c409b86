/* Exchanges between boards in one process, without sockets: every cut of up to 17 shards into up to 4 nodes, frames in
 * pieces and in any order that connections allow, nodes ahead of others. After each step every board has the sum that
 * one board would have, bit for bit, and the measurements and raw values of all shards.
 */
#include <math.h>
#include <string.h>

#include "board.h"
#include "channel_files.h"
#include "exchange.h"

enum { NODES = 4, SHARDS = 17, STEPS = 3, RANGES = 6, EPOCH = 2 };

static uint64_t stream;

static double number(void) { return ldexp((double)(check_random(&stream) >> 11), -52) - 1; }

/* The shards of a step, as their workers would compute them. */
struct truth {
    uint64_t counts[2][SHARDS];
    struct board_buffer *buffers[STEPS][SHARDS];
};

struct node {
    struct board board;
    void *memory;
    struct exchange exchange;
    struct frame_output *outputs[NODES]; /* to each peer */
    struct frame_input *inputs[NODES];   /* from each peer */
    uint64_t sent_nbytes;
};

struct cluster {
    struct board_config config;
    struct board_range ranges[RANGES];
    struct truth truth;
    uint32_t nodes, cuts[NODES + 1], parked;
    struct node node[NODES];
};

/* -- making -------------------------------------------------------------------------------------------------------- */

static const enum merge_kind KINDS[RANGES] = {MERGE_MEAN, MERGE_FIRST, MERGE_STEP, MERGE_STEP, MERGE_SUM, MERGE_KEEP};

/* Two ranges of float32 follow one another, the second in the padding's reach of the first. */
static void ranges_make(struct cluster *cluster, uint64_t numbers)
{
    const uint64_t counts[RANGES] = {5, 11, numbers / 64 * 64, numbers % 64 + 7, numbers / 3 + 2, 9};
    static const enum kernel_dtype dtypes[RANGES] = {KERNEL_F64, KERNEL_F32, KERNEL_F32,
                                                     KERNEL_F32, KERNEL_F64, KERNEL_F32};
    uint64_t end = 0;
    for (unsigned r = 0; r < RANGES; r++) {
        const uint64_t itemsize = KINDS[r] == MERGE_FIRST || KINDS[r] == MERGE_KEEP ? 1 : kernel_itemsize(dtypes[r]);
        cluster->ranges[r] = (struct board_range){0, end, counts[r], dtypes[r] | (uint64_t)KINDS[r] << 8, 0, 0};
        end = (end + counts[r] * itemsize + 63) / 64 * 64;
    }
    cluster->config.buffer_nbytes = end;
}

static struct board_buffer *buffer_make(const struct cluster *cluster, uint64_t examples)
{
    struct board_buffer *buffer = malloc(sizeof *buffer + cluster->config.buffer_nbytes);
    uint8_t *grads = (uint8_t *)(buffer + 1);
    memset(buffer, 0, sizeof *buffer + cluster->config.buffer_nbytes);
    buffer->examples = examples;
    buffer->loss = number();
    for (unsigned m = 0; m < 3; m++)
        buffer->metrics[m] = number();
    for (unsigned r = 0; r < RANGES; r++)
        for (uint64_t i = 0; i < cluster->ranges[r].count; i++) {
            uint8_t *first = grads + cluster->ranges[r].grad_offset;
            const double value = examples == 0 ? NAN : check_random(&stream) % 50 == 0 ? -0.0 : number();
            if (KINDS[r] == MERGE_FIRST || KINDS[r] == MERGE_KEEP)
                first[i] = (uint8_t)check_random(&stream);
            else if (range_dtype(&cluster->ranges[r]) == KERNEL_F32)
                ((float *)first)[i] = (float)value;
            else
                ((double *)first)[i] = value;
        }
    return buffer;
}

static void truth_make(struct cluster *cluster)
{
    for (unsigned row = 0; row < 2; row++)
        for (uint32_t s = 0; s < cluster->config.shards; s++)
            cluster->truth.counts[row][s] = check_random(&stream) % 3 * (1 + check_random(&stream) % 5);
    for (uint64_t step = 0; step < STEPS; step++)
        for (uint32_t s = 0; s < cluster->config.shards; s++)
            cluster->truth.buffers[step][s] = buffer_make(cluster, cluster->truth.counts[step % EPOCH == 1][s]);
}

static void node_make(struct cluster *cluster, uint32_t index)
{
    struct node *node = &cluster->node[index];
    uint64_t counts[2 * SHARDS];
    const uint32_t shards = cluster->config.shards;
    const uint64_t nbytes = board_nbytes(&cluster->config);
    for (uint32_t i = 0; i < 2 * shards; i++)
        counts[i] = cluster->truth.counts[i / shards][i % shards];
    node->memory = aligned_alloc(4096, (nbytes + 4095) / 4096 * 4096);
    memset(node->memory, 0, nbytes);
    board_format(&node->board, node->memory, &cluster->config, cluster->ranges, &(struct board_group){0}, NULL);
    board_set_own(&node->board, cluster->cuts[index], cluster->cuts[index + 1]);
    board_set_linked(&node->board);
    board_set_limit(&node->board, STEPS);
    const struct exchange_shape shape = {
        .nodes = cluster->nodes,
        .index = index,
        .shards = shards,
        .cuts = cluster->cuts,
        .counts = counts,
        .ranges = cluster->ranges,
        .range_count = RANGES,
        .buffer_nbytes = cluster->config.buffer_nbytes,
    };
    struct exchange_plan plan;
    CHECK(exchange_shape_error(&shape) == NULL);
    CHECK(exchange_plan_make(&plan, &shape));
    CHECK(exchange_make(&node->exchange, &node->board, &plan, 7) == STATUS_OK);
    for (uint32_t peer = 0; peer < cluster->nodes; peer++) {
        node->outputs[peer] = calloc(1, sizeof *node->outputs[peer]);
        node->inputs[peer] = calloc(1, sizeof *node->inputs[peer]);
        CHECK(frame_output_make(node->outputs[peer], exchange_frames_max(&node->exchange)));
    }
}

static void cluster_make(struct cluster *cluster, uint32_t shards, uint32_t nodes, const uint32_t *cuts,
                         uint64_t numbers)
{
    *cluster = (struct cluster){.nodes = nodes};
    cluster->config = (struct board_config){.shards = shards,
                                            .ranges = RANGES,
                                            .groups = 1,
                                            .workers = 1,
                                            .active = 1,
                                            .exchange = true,
                                            .steps = EPOCH,
                                            .examples = 4,
                                            .batch_size = 2};
    memcpy(cluster->cuts, cuts, (nodes + 1) * sizeof *cuts);
    ranges_make(cluster, numbers);
    truth_make(cluster);
    for (uint32_t k = 0; k < nodes; k++)
        node_make(cluster, k);
}

static void cluster_free(struct cluster *cluster)
{
    for (uint32_t k = 0; k < cluster->nodes; k++) {
        struct node *node = &cluster->node[k];
        for (uint32_t peer = 0; peer < cluster->nodes; peer++) {
            frame_output_free(node->outputs[peer]);
            free(node->outputs[peer]);
            free(node->inputs[peer]);
        }
        exchange_free(&node->exchange);
        free(node->memory);
    }
    for (uint64_t step = 0; step < STEPS; step++)
        for (uint32_t s = 0; s < cluster->config.shards; s++)
            free(cluster->truth.buffers[step][s]);
}

/* -- connections --------------------------------------------------------------------------------------------------- */

static void node_send(void *self, uint32_t peer, struct frame frame, const uint8_t *bytes)
{
    struct node *node = self;
    node->sent_nbytes += sizeof frame + frame.nbytes;
    CHECK(frame_output_add(node->outputs[peer], frame, bytes));
}

static enum frame_verdict node_accept(void *self, uint32_t peer, const struct frame *frame, uint8_t **into,
                                      const char **error)
{
    return exchange_accept(&((struct node *)self)->exchange, peer, frame, into, error);
}

static void node_arrived(void *self, uint32_t peer, const struct frame *frame)
{
    exchange_arrived(&((struct node *)self)->exchange, peer, frame);
}

/* Move some bytes from one node to another. */
static void bytes_move(struct cluster *cluster, uint32_t from, uint32_t to)
{
    struct frame_output *output = cluster->node[from].outputs[to];
    struct frame_input *input = cluster->node[to].inputs[from];
    const struct frame_user user = {node_accept, node_arrived, &cluster->node[to], from};
    const struct iovec room = frame_input_room(input);
    struct iovec pieces[8];
    const int count = frame_output_pieces(output, pieces, 8);
    uint64_t most = check_random(&stream) % 4 == 0 ? 1 + check_random(&stream) % 100 : UINT64_MAX, moved = 0;
    most = most < room.iov_len ? most : room.iov_len;
    for (int i = 0; i < count && moved < most; i++) {
        const uint64_t some = pieces[i].iov_len < most - moved ? pieces[i].iov_len : most - moved;
        memcpy((uint8_t *)room.iov_base + moved, pieces[i].iov_base, some);
        moved += some;
    }
    if (moved == 0)
        return;
    frame_output_sent(output, moved);
    CHECK(frame_input_took(input, moved, &user), "%s", input->error);
}

static void inputs_resume(struct cluster *cluster, uint32_t to)
{
    for (uint32_t from = 0; from < cluster->nodes; from++) {
        const struct frame_user user = {node_accept, node_arrived, &cluster->node[to], from};
        struct frame_input *input = cluster->node[to].inputs[from];
        cluster->parked += input->parked;
        CHECK(frame_input_resume(input, &user), "%s", input->error);
    }
}

static bool node_is_flushed(const struct cluster *cluster, uint32_t index)
{
    for (uint32_t peer = 0; peer < cluster->nodes; peer++)
        if (cluster->node[index].outputs[peer]->count != 0)
            return false;
    return true;
}

/* -- steps --------------------------------------------------------------------------------------------------------- */

/* The workers compute the own shards. */
static void own_compute(struct cluster *cluster, uint32_t index)
{
    struct node *node = &cluster->node[index];
    const uint64_t step = board_step(&node->board);
    for (uint32_t s = cluster->cuts[index]; s < cluster->cuts[index + 1]; s++) {
        const uint64_t task = atomic_load(&node->board.shard_tasks[s].word);
        struct board_buffer *buffer = board_buffer_at(&node->board, task_buffer(task));
        memcpy(buffer, cluster->truth.buffers[step][s], sizeof *buffer + cluster->config.buffer_nbytes);
        atomic_store(&node->board.shard_tasks[s].word, task_make(step, TASK_DONE, 0, task_buffer(task)));
    }
}

static void sum_check(const struct cluster *cluster, const struct node *node, uint64_t step)
{
    const uint32_t shards = cluster->config.shards;
    for (unsigned r = 0; r < RANGES; r++) {
        const struct board_range *range = &cluster->ranges[r];
        if (!range_is_summed(range))
            continue;
        const void *grads[SHARDS];
        double weights[SHARDS], total = 0;
        for (uint32_t s = 0; s < shards; s++)
            total += (double)cluster->truth.counts[step % EPOCH == 1][s];
        for (uint32_t s = 0; s < shards; s++) {
            weights[s] = total == 0 ? 0 : (double)cluster->truth.counts[step % EPOCH == 1][s] / total;
            grads[s] = (const uint8_t *)(cluster->truth.buffers[step][s] + 1) + range->grad_offset;
        }
        const struct kernel_range work = {.count = range->count, .shards = shards, .grads = grads, .weights = weights};
        const uint64_t nbytes = range->count * kernel_itemsize(range_dtype(range));
        void *expected = malloc(nbytes);
        kernel_sum(range_dtype(range), &work, expected);
        CHECK(memcmp(node->board.sum + range->grad_offset, expected, nbytes) == 0, "range %u", r);
        free(expected);
    }
}

static void shards_check(const struct cluster *cluster, const struct node *node, uint64_t step)
{
    for (uint32_t s = 0; s < cluster->config.shards; s++) {
        const uint64_t task = atomic_load(&node->board.shard_tasks[s].word);
        const struct board_buffer *buffer = board_buffer_at(&node->board, task_buffer(task)),
                                  *truth = cluster->truth.buffers[step][s];
        CHECK(task_is(task, step, TASK_DONE) && task_buffer(task) == s, "shard %u: %" PRIx64, s, task);
        CHECK(buffer->examples == truth->examples && memcmp(&buffer->loss, &truth->loss, 17 * sizeof(double)) == 0);
        for (unsigned r = 0; r < 2 && truth->examples != 0; r++)
            CHECK(memcmp((const uint8_t *)(buffer + 1) + cluster->ranges[r].grad_offset,
                         (const uint8_t *)(truth + 1) + cluster->ranges[r].grad_offset,
                         cluster->ranges[r].count * (r == 0 ? sizeof(double) : 1)) == 0);
    }
}

/* One thing that a node may do. */
static void node_turn(struct cluster *cluster, uint32_t index)
{
    struct node *node = &cluster->node[index];
    const struct exchange_sink sink = {node_send, node};
    const uint64_t step = board_step(&node->board);
    switch (check_random(&stream) % 4) {
    case 0:
        if (step < STEPS && check_random(&stream) % 4 == 0)
            own_compute(cluster, index);
        break;
    case 1:
        if (exchange_is_due(&node->exchange) && node_is_flushed(cluster, index)) {
            CHECK(exchange_start(&node->exchange, &sink) == -1);
            inputs_resume(cluster, index);
        }
        break;
    default: exchange_work(&node->exchange, &sink);
    }
    if (!exchange_is_complete(&node->exchange))
        return;
    CHECK(board_incomplete_step(&node->board) == step);
    exchange_finish(&node->exchange);
    CHECK(board_incomplete_step(&node->board) == step + 1);
    sum_check(cluster, node, step);
    shards_check(cluster, node, step);
    atomic_store(&node->board.header->phase, phase_make(step + 1, PHASE_GRADIENT, 0)); /* the workers' update */
    inputs_resume(cluster, index);
}

static bool cluster_is_done(const struct cluster *cluster)
{
    for (uint32_t k = 0; k < cluster->nodes; k++)
        if (board_step(&cluster->node[k].board) < STEPS || !node_is_flushed(cluster, k))
            return false;
    return true;
}

static void cluster_run(struct cluster *cluster)
{
    for (uint64_t turns = 0; !cluster_is_done(cluster); turns++) {
        if (!CHECK(turns < 2000000, "they come to an end"))
            return;
        const uint64_t dice = check_random(&stream);
        const uint32_t from = (uint32_t)(dice % cluster->nodes), to = (uint32_t)((dice >> 32) % cluster->nodes);
        if (from == to)
            node_turn(cluster, from);
        else
            bytes_move(cluster, from, to);
    }
}

static uint32_t cuts_check(uint32_t shards, uint32_t nodes, const uint32_t *cuts, uint64_t numbers, bool *one_hop)
{
    struct cluster cluster;
    cluster_make(&cluster, shards, nodes, cuts, numbers);
    *one_hop = cluster.node[0].exchange.plan.one_hop;
    for (uint32_t k = 1; k < nodes; k++)
        CHECK(cluster.node[k].exchange.plan.one_hop == *one_hop);
    cluster_run(&cluster);
    const uint32_t parked = cluster.parked;
    cluster_free(&cluster);
    return parked;
}

/* Every cut, empty ranges included. */
static void test_every_cut(void)
{
    uint64_t cases = 0, parked = 0;
    bool one_hop;
    for (uint32_t shards = 1; shards <= SHARDS; shards++)
        for (uint32_t a = 0; a <= shards; a++)
            for (uint32_t b = a; b <= shards; b++)
                for (uint32_t c = b; c <= shards; c++) {
                    const uint32_t four[] = {0, a, b, c, shards}, three[] = {0, a, b, shards}, two[] = {0, a, shards};
                    if (SANITIZED && cases++ % 7 != 0)
                        continue;
                    parked += cuts_check(shards, 4, four, 20, &one_hop);
                    CHECK(one_hop);
                    if (c == shards)
                        cuts_check(shards, 3, three, 20, &one_hop);
                    if (b == shards)
                        cuts_check(shards, 2, two, 20, &one_hop);
                }
    CHECK(parked > 100, "%" PRIu64, parked);
}

/* Payloads that are scattered, in chunks. */
static void test_scattered(void)
{
    unsigned scattered = 0;
    for (int round = 0; round < (SANITIZED ? 12 : 80); round++) {
        const uint32_t shards = 1 + (uint32_t)(check_random(&stream) % SHARDS);
        const uint32_t nodes = 2 + (uint32_t)(check_random(&stream) % (NODES - 1));
        uint32_t cuts[NODES + 1] = {0};
        for (uint32_t k = 1; k < nodes; k++)
            cuts[k] = cuts[k - 1] + (uint32_t)(check_random(&stream) % (shards - cuts[k - 1] + 1));
        cuts[nodes] = shards;
        bool one_hop;
        cuts_check(shards, nodes, cuts, 10000 + check_random(&stream) % 40000, &one_hop);
        scattered += !one_hop;
    }
    CHECK(scattered >= (SANITIZED ? 3 : 30), "%u", scattered);
}

/* With one root a node, each node sends 2 (nodes - 1) / nodes of the payload. */
static void test_bytes(void)
{
    static const uint32_t even[] = {0, 4, 8, 12, 16};
    for (uint32_t nodes = 2; nodes <= NODES; nodes++) {
        struct cluster cluster;
        cluster_make(&cluster, 4 * nodes, nodes, even, 60000);
        cluster_run(&cluster);
        for (uint32_t k = 0; k < nodes; k++) {
            const double payload = (double)cluster.node[k].exchange.plan.payload_nbytes;
            CHECK((double)cluster.node[k].sent_nbytes <= 1.03 * STEPS * 2 * payload * (nodes - 1) / nodes);
        }
        cluster_free(&cluster);
    }
}

/* -- shapes that are refused --------------------------------------------------------------------------------------- */

static void test_shapes(void)
{
    const uint32_t cuts[] = {0, 1, 3}, gap[] = {0, 1, 2}, back[] = {0, 4, 3};
    const uint64_t counts[] = {1, 2, 3, 4, 5, 6}, many[] = {UINT64_MAX, 1, 0, 0, 0, 0};
    struct board_range range = {0, 0, 8, KERNEL_F64, 0, 0};
    const struct exchange_shape good = {2, 1, 3, cuts, counts, &range, 1, 64};
    struct exchange_shape shape = good;
    CHECK(exchange_shape_error(&shape) == NULL);
    shape.index = 2;
    CHECK(exchange_shape_error(&shape) != NULL);
    shape = good, shape.nodes = 0;
    CHECK(exchange_shape_error(&shape) != NULL);
    shape = good, shape.shards = 0;
    CHECK(exchange_shape_error(&shape) != NULL);
    shape = good, shape.cuts = gap;
    CHECK(exchange_shape_error(&shape) != NULL);
    shape = good, shape.cuts = back;
    CHECK(exchange_shape_error(&shape) != NULL);
    shape = good, shape.counts = many;
    CHECK(exchange_shape_error(&shape) != NULL);
    const struct board_range bad[] = {{0, 8, 8, KERNEL_F64, 0, 0},
                                      {0, 4, 2, KERNEL_F64, 0, 0},
                                      {0, UINT64_MAX - 7, 1, KERNEL_F64, 0, 0},
                                      {0, 0, UINT64_MAX / 8, KERNEL_F64, 0, 0},
                                      {0, 0, 1, 2, 0, 0},
                                      {0, 0, 1, MERGE_KINDS << 8, 0, 0}};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        range = bad[i];
        CHECK(exchange_shape_error(&good) != NULL, "range %u", i);
    }
    range = (struct board_range){0, UINT64_MAX, UINT64_MAX, MERGE_KEEP << 8, 0, 0};
    CHECK(exchange_shape_error(&good) == NULL, "what is kept does not travel");
}

/* -- outputs that are given up ------------------------------------------------------------------------------------- */

static void test_forgotten_output(void)
{
    for (size_t sent = 0; sent <= 3 * 140; sent += 20) {
        struct frame_output output = {0};
        uint8_t bytes[100], got[3 * 140];
        CHECK(frame_output_make(&output, 3));
        for (uint32_t i = 0; i < 3; i++)
            CHECK(frame_output_add(&output, frame_make(FRAME_ROOT, 1, 2, i, 0, 100), bytes));
        CHECK(!frame_output_add(&output, frame_make(FRAME_ALIVE, 0, 0, 0, 0, 0), NULL), "full");
        memset(bytes, 'a', sizeof bytes);
        frame_output_sent(&output, sent);
        CHECK(frame_output_forget(&output) && frame_output_forget(&output));
        memset(bytes, 'b', sizeof bytes); /* the session's memory is another's now */
        CHECK(output.count == (sent % 140 != 0), "%zu", sent);
        CHECK(frame_output_make(&output, 5));
        struct iovec pieces[8];
        const int count = frame_output_pieces(&output, pieces, 8);
        size_t left = 0;
        for (int i = 0; i < count; left += pieces[i++].iov_len)
            memcpy(got + left, pieces[i].iov_base, pieces[i].iov_len);
        CHECK(left == (140 - sent % 140) % 140);
        for (size_t i = 0; i < left && i < 100; i++)
            CHECK(left <= 100 ? got[i] == 'a' : true);
        frame_output_sent(&output, left);
        CHECK(output.count == 0 && output.sent == 0);
        frame_output_free(&output);
    }
}

int main(void)
{
    check_begin("test_exchange");
    stream = check_stream(0);
    test_shapes();
    test_forgotten_output();
    test_bytes();
    test_scattered();
    test_every_cut();
    return check_end();
}
