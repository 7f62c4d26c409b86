/* The exchange of a session: see exchange.h. */
#include "exchange.h"

#include <stdlib.h>
#include <string.h>

#include "board.h"

enum { MEASURED = 1 + BOARD_METRICS };
_Static_assert(offsetof(struct board_buffer, metrics) == offsetof(struct board_buffer, loss) + sizeof(double),
               "what was measured is one row");
_Static_assert((uint64_t)BOARD_MAX_SHARDS *MEASURED * sizeof(double) <= FRAME_MAX_NBYTES, "META is one frame");
_Static_assert((int)EXCHANGE_MAX_CHUNK <= (int)FRAME_MAX_NBYTES, "a chunk is one frame");

/* -- sizes --------------------------------------------------------------------------------------------------------- */

static uint32_t root_count(const struct exchange_plan *plan) { return plan->root_cuts[plan->nodes]; }
static uint32_t own_root_first(const struct exchange_plan *plan) { return plan->root_cuts[plan->index]; }
static uint32_t own_root_end(const struct exchange_plan *plan) { return plan->root_cuts[plan->index + 1]; }
static uint32_t region_first(const struct exchange_plan *plan) { return plan_region_first(plan, plan->index); }
static uint32_t region_end(const struct exchange_plan *plan) { return plan_region_end(plan, plan->index); }
static uint32_t region_count(const struct exchange_plan *plan) { return region_end(plan) - region_first(plan); }
static uint32_t node_shards(const struct exchange_plan *plan, uint32_t node)
{
    return plan->cuts[node + 1] - plan->cuts[node];
}

static uint64_t region_at(const struct exchange_plan *plan)
{
    return region_count(plan) == 0 ? 0 : plan->chunks[region_first(plan)].at;
}

static uint64_t region_nbytes(const struct exchange_plan *plan)
{
    if (region_count(plan) == 0)
        return 0;
    const struct exchange_chunk *last = &plan->chunks[region_end(plan) - 1];
    return (last->at + last->nbytes - region_at(plan) + 63) / 64 * 64;
}

static uint32_t raw_chunks(const struct exchange_plan *plan)
{
    return (uint32_t)((plan->raw_nbytes + EXCHANGE_MAX_CHUNK - 1) / EXCHANGE_MAX_CHUNK);
}

static uint32_t raw_chunk_nbytes(const struct exchange_plan *plan, uint32_t chunk)
{
    const uint64_t left = plan->raw_nbytes - (uint64_t)chunk * EXCHANGE_MAX_CHUNK;
    return (uint32_t)(left < EXCHANGE_MAX_CHUNK ? left : EXCHANGE_MAX_CHUNK);
}

uint32_t exchange_frames_max(const struct exchange *exchange)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint64_t own_roots = own_root_end(plan) - own_root_first(plan);
    return (uint32_t)(1 + (uint64_t)node_shards(plan, plan->index) * raw_chunks(plan) + own_roots * plan->chunk_count +
                      plan->chunk_count);
}

/* Which of the two tables holds for the step. */
static unsigned step_row(const struct exchange *exchange)
{
    const uint64_t steps = exchange->board.header->steps;
    return steps != 0 && exchange->step % steps == steps - 1;
}

static bool shard_is_present(const struct exchange *exchange, uint32_t shard)
{
    return exchange->plan.weights[step_row(exchange)][shard] != 0;
}

/* -- making
 * ---------------------------------------------------------------------------------------------------------- */

static void *part_take(uint8_t *memory, uint64_t *end, uint64_t count, uint64_t nbytes)
{
    uint8_t *part = memory == NULL ? NULL : memory + *end;
    *end += (count * nbytes + 1 + 63) / 64 * 64; /* at least a byte, so that each is a place */
    return part;
}

/* Place the arrays in `memory`; return how much they need. */
static uint64_t memory_place(struct exchange *exchange, uint8_t *memory)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t own_roots = own_root_end(plan) - own_root_first(plan), roots = root_count(plan);
    uint64_t end = 0;
    exchange->memory = memory;
    exchange->own_roots = part_take(memory, &end, own_roots, plan->payload_nbytes);
    exchange->peer_roots = part_take(memory, &end, roots - own_roots, region_nbytes(plan));
    exchange->raw = part_take(memory, &end, plan->shards, plan->raw_nbytes);
    exchange->measured = part_take(memory, &end, plan->shards, MEASURED * sizeof(double));
    exchange->metrics = part_take(memory, &end, plan->nodes, sizeof *exchange->metrics);
    exchange->roots_came = part_take(memory, &end, roots, region_count(plan));
    exchange->sums_came = part_take(memory, &end, plan->chunk_count, 1);
    exchange->raw_came = part_take(memory, &end, plan->shards, raw_chunks(plan));
    exchange->metas_came = part_take(memory, &end, plan->nodes, 1);
    exchange->missing = part_take(memory, &end, region_count(plan), sizeof *exchange->missing);
    exchange->ready = part_take(memory, &end, region_count(plan), sizeof *exchange->ready);
    exchange->own = part_take(memory, &end, plan->shards, sizeof *exchange->own);
    return end;
}

/* Expect the frames of the step. */
static void step_expect(struct exchange *exchange)
{
    const struct exchange_plan *plan = &exchange->plan;
    const unsigned row = step_row(exchange);
    uint32_t peer_roots = 0;
    exchange->started = false;
    exchange->summed = exchange->folded = exchange->ready_count = 0;
    memset(exchange->roots_came, 0, (uint64_t)root_count(plan) * region_count(plan));
    memset(exchange->sums_came, 0, plan->chunk_count);
    memset(exchange->raw_came, 0, (uint64_t)plan->shards * raw_chunks(plan));
    memset(exchange->metas_came, 0, plan->nodes);
    for (uint32_t i = 0; i < root_count(plan); i++)
        peer_roots += plan->roots[i].node != plan->index && plan->present[row][i];
    for (uint32_t i = 0; i < region_count(plan); i++)
        exchange->missing[i] = peer_roots + 1;
    exchange->still = plan->nodes - 1 + (uint64_t)peer_roots * region_count(plan);
    exchange->still += plan->one_hop ? 0 : plan->chunk_count - region_count(plan);
    for (uint32_t s = 0; s < plan->shards; s++)
        if ((s < plan->cuts[plan->index] || s >= plan->cuts[plan->index + 1]) && shard_is_present(exchange, s))
            exchange->still += raw_chunks(plan);
}

enum status exchange_make(struct exchange *exchange, const struct board *board, struct exchange_plan *plan,
                          uint64_t session)
{
    *exchange = (struct exchange){.plan = *plan, .board = *board, .session = session};
    const uint64_t nbytes = memory_place(exchange, NULL);
    uint8_t *memory = aligned_alloc(64, nbytes);
    if (memory == NULL)
        return STATUS_OS;
    *plan = (struct exchange_plan){0};
    memory_place(exchange, memory);
    exchange->step = board_incomplete_step(board);
    step_expect(exchange);
    return STATUS_OK;
}

void exchange_free(struct exchange *exchange)
{
    free(exchange->memory);
    exchange_plan_free(&exchange->plan);
    *exchange = (struct exchange){0};
}

/* -- the own shards ------------------------------------------------------------------------------------------------ */

bool exchange_is_due(const struct exchange *exchange)
{
    const struct exchange_plan *plan = &exchange->plan;
    const struct board *board = &exchange->board;
    const uint64_t phase = shared_load_acquire(&board->header->phase); /* pairs with its swaps */
    return !exchange->started && plan->nodes > 1 && phase == phase_make(exchange->step, PHASE_GRADIENT, 0) &&
           exchange->step < shared_load_acquire(&board->header->limit) &&
           shards_done(board, exchange->step, plan->cuts[plan->index], plan->cuts[plan->index + 1]);
}

static void sink_send_all(const struct exchange *exchange, const struct exchange_sink *sink, struct frame frame,
                          const uint8_t *bytes)
{
    for (uint32_t i = 1; i < exchange->plan.nodes; i++)
        sink->send(sink->self, (exchange->plan.index + i) % exchange->plan.nodes, frame, bytes);
}

/* Return how many metrics are in use: from there on, all that the shards measured is 0. */
static uint32_t metrics_used(const struct board_buffer *const *buffers, uint32_t count)
{
    static const double none = 0;
    uint32_t used = 0;
    for (uint32_t s = 0; s < count; s++)
        for (uint32_t m = used; m < BOARD_METRICS; m++)
            if (memcmp(&buffers[s]->metrics[m], &none, sizeof none) != 0)
                used = m + 1;
    return used;
}

static void meta_send(struct exchange *exchange, const struct exchange_sink *sink,
                      const struct board_buffer *const *buffers)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t count = node_shards(plan, plan->index), metrics = metrics_used(buffers, count);
    double *row = exchange->measured + (uint64_t)plan->cuts[plan->index] * MEASURED;
    const uint8_t *bytes = (const uint8_t *)row;
    for (uint32_t s = 0; s < count; s++, row += 1 + metrics)
        memcpy(row, &buffers[s]->loss, (1 + metrics) * sizeof *row);
    sink_send_all(exchange, sink,
                  frame_make(FRAME_META, exchange->session, exchange->step, metrics, 0,
                             (uint32_t)(count * (1 + metrics) * sizeof *row)),
                  bytes);
}

/* Copied, since the worker that commits to the shard next gets its buffer. */
static void raw_send(struct exchange *exchange, const struct exchange_sink *sink, uint32_t shard)
{
    const struct exchange_plan *plan = &exchange->plan;
    uint8_t *first = exchange->raw + shard * plan->raw_nbytes, *to = first;
    for (uint32_t i = 0; i < plan->raw_count; to += plan->raw[i++].nbytes)
        memcpy(to, exchange->own[shard] + plan->raw[i].grad_offset, plan->raw[i].nbytes);
    for (uint32_t chunk = 0; chunk < raw_chunks(plan); chunk++) {
        const uint64_t at = (uint64_t)chunk * EXCHANGE_MAX_CHUNK;
        sink_send_all(
            exchange, sink,
            frame_make(FRAME_RAW, exchange->session, exchange->step, shard, at, raw_chunk_nbytes(plan, chunk)),
            first + at);
    }
}

int64_t exchange_start(struct exchange *exchange, const struct exchange_sink *sink)
{
    const struct exchange_plan *plan = &exchange->plan;
    const struct board_buffer *buffers[BOARD_MAX_SHARDS];
    const uint32_t first = plan->cuts[plan->index], end = plan->cuts[plan->index + 1];
    for (uint32_t s = first; s < end; s++) {
        const uint64_t task = shared_load_acquire(&exchange->board.shard_tasks[s].word); /* pairs with board_commit */
        const struct board_buffer *buffer = board_buffer_at(&exchange->board, task_buffer(task));
        if (buffer->examples != plan->counts[step_row(exchange)][s])
            return s;
        buffers[s - first] = buffer;
        exchange->own[s] = (const uint8_t *)(buffer + 1);
    }
    exchange->started = true;
    meta_send(exchange, sink, buffers);
    for (uint32_t s = first; s < end && plan->raw_nbytes != 0; s++)
        if (shard_is_present(exchange, s))
            raw_send(exchange, sink, s);
    return -1;
}

/* -- roots and sums ------------------------------------------------------------------------------------------------ */

static void chunk_came(struct exchange *exchange, uint32_t chunk)
{
    const uint32_t place = chunk - region_first(&exchange->plan);
    if (--exchange->missing[place] == 0)
        exchange->ready[exchange->ready_count++] = chunk;
}

static bool node_folds(const struct exchange_plan *plan, uint32_t node, uint32_t chunk)
{
    return plan->one_hop || plan->chunks[chunk].owner == node;
}

static uint8_t *own_root_at(const struct exchange *exchange, uint32_t root, const struct exchange_chunk *chunk)
{
    const struct exchange_plan *plan = &exchange->plan;
    return exchange->own_roots + (root - own_root_first(plan)) * plan->payload_nbytes + chunk->at;
}

static uint8_t *peer_root_at(const struct exchange *exchange, uint32_t root, const struct exchange_chunk *chunk)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t place = root < own_root_first(plan) ? root : root - (own_root_end(plan) - own_root_first(plan));
    return exchange->peer_roots + place * region_nbytes(plan) + (chunk->at - region_at(plan));
}

static uint64_t chunk_elements(const struct exchange_chunk *chunk)
{
    return chunk->nbytes / kernel_itemsize(chunk->dtype);
}

/* Sum the own roots of the next chunk, and send them to who folds it. */
static void roots_sum(struct exchange *exchange, const struct exchange_sink *sink)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t index = plan->order[exchange->summed++];
    const struct exchange_chunk *chunk = &plan->chunks[index];
    const unsigned row = step_row(exchange);
    const void *grads[BOARD_MAX_SHARDS];
    for (uint32_t root = own_root_first(plan); root < own_root_end(plan); root++) {
        const struct exchange_root *range = &plan->roots[root];
        if (!plan->present[row][root])
            continue;
        for (uint32_t s = range->first; s < range->end; s++)
            grads[s - range->first] = exchange->own[s] + chunk->grad_offset;
        const struct kernel_range work = {.count = chunk_elements(chunk),
                                          .shards = range->end - range->first,
                                          .grads = grads,
                                          .weights = plan->weights[row] + range->first,
                                          .grad_scale = 1};
        uint8_t *sum = own_root_at(exchange, root, chunk);
        kernel_sum(chunk->dtype, &work, sum);
        const struct frame frame =
            frame_make(FRAME_ROOT, exchange->session, exchange->step, root, chunk->at, chunk->nbytes);
        if (plan->one_hop)
            sink_send_all(exchange, sink, frame, sum);
        else if (chunk->owner != plan->index)
            sink->send(sink->self, chunk->owner, frame, sum);
    }
    if (node_folds(plan, plan->index, index))
        chunk_came(exchange, index);
}

static void chunk_fold(struct exchange *exchange, const struct exchange_sink *sink)
{
    const struct exchange_plan *plan = &exchange->plan;
    const struct exchange_chunk *chunk = &plan->chunks[exchange->ready[exchange->folded++]];
    const unsigned row = step_row(exchange);
    const void *values[BOARD_MAX_SHARDS];
    for (uint32_t root = 0; root < root_count(plan); root++) {
        const bool own = plan->roots[root].node == plan->index;
        values[root] = !plan->present[row][root] ? NULL
                       : own                     ? own_root_at(exchange, root, chunk)
                                                 : peer_root_at(exchange, root, chunk);
    }
    const struct kernel_fold fold = {root_count(plan), values, plan->folds};
    uint8_t *sum = exchange->board.sum + chunk->grad_offset;
    kernel_fold(chunk->dtype, chunk_elements(chunk), &fold, sum);
    if (!plan->one_hop)
        sink_send_all(exchange, sink,
                      frame_make(FRAME_SUM, exchange->session, exchange->step, 0, chunk->at, chunk->nbytes), sum);
}

bool exchange_work(struct exchange *exchange, const struct exchange_sink *sink)
{
    if (!exchange->started)
        return false;
    if (exchange->folded < exchange->ready_count)
        chunk_fold(exchange, sink);
    else if (exchange->summed < exchange->plan.chunk_count)
        roots_sum(exchange, sink);
    else
        return false;
    return true;
}

bool exchange_is_waiting(const struct exchange *exchange)
{
    return exchange->started && exchange->summed == exchange->plan.chunk_count;
}

bool exchange_is_complete(const struct exchange *exchange)
{
    return exchange_is_waiting(exchange) && exchange->folded == region_count(&exchange->plan) && exchange->still == 0;
}

/* -- the end of a step --------------------------------------------------------------------------------------------- */

/* Write what a peer's shard measured, and what of it is not summed, as its worker would have. */
static void remote_write(const struct exchange *exchange, uint32_t node, uint32_t shard, struct board_buffer *buffer)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t metrics = exchange->metrics[node];
    const double *row = exchange->measured + (uint64_t)plan->cuts[node] * MEASURED +
                        (uint64_t)(shard - plan->cuts[node]) * (1 + metrics);
    buffer->examples = plan->counts[step_row(exchange)][shard];
    memcpy(&buffer->loss, row, (1 + metrics) * sizeof *row);
    memset(&buffer->metrics[metrics], 0, (BOARD_METRICS - metrics) * sizeof *row);
    if (!shard_is_present(exchange, shard))
        return;
    const uint8_t *from = exchange->raw + shard * plan->raw_nbytes;
    for (uint32_t i = 0; i < plan->raw_count; from += plan->raw[i++].nbytes)
        memcpy((uint8_t *)(buffer + 1) + plan->raw[i].grad_offset, from, plan->raw[i].nbytes);
}

void exchange_finish(struct exchange *exchange)
{
    const struct exchange_plan *plan = &exchange->plan;
    const struct board *board = &exchange->board;
    board_set_summed(board, exchange->step);
    for (uint32_t node = 0; node < plan->nodes; node++)
        for (uint32_t s = plan->cuts[node]; s < plan->cuts[node + 1] && node != plan->index; s++) {
            const uint64_t claim = remote_claim(board, s, exchange->step);
            if (task_state(claim) == TASK_DONE)
                continue; /* a worker here computed it before it became remote: the same bits */
            remote_write(exchange, node, s, board_buffer_at(board, task_buffer(claim)));
            remote_commit(board, s, claim);
        }
    board_ring(board);
    exchange->step++;
    step_expect(exchange);
}

/* -- frames -------------------------------------------------------------------------------------------------------- */

static const char *meta_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into)
{
    const struct exchange_plan *plan = &exchange->plan;
    if (frame->index > BOARD_METRICS || frame->offset != 0 ||
        frame->nbytes != node_shards(plan, peer) * (1 + frame->index) * sizeof(double))
        return "measurements of a wrong size";
    if (exchange->metas_came[peer])
        return "measurements for the second time";
    *into = (uint8_t *)(exchange->measured + (uint64_t)plan->cuts[peer] * MEASURED);
    return NULL;
}

static const char *raw_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint64_t chunk = frame->offset / EXCHANGE_MAX_CHUNK;
    if (frame->index < plan->cuts[peer] || frame->index >= plan->cuts[peer + 1] ||
        !shard_is_present(exchange, frame->index))
        return "values of a shard that is not the peer's";
    if (frame->offset % EXCHANGE_MAX_CHUNK != 0 || chunk >= raw_chunks(plan) ||
        frame->nbytes != raw_chunk_nbytes(plan, (uint32_t)chunk))
        return "values at a wrong place";
    if (exchange->raw_came[frame->index * (uint64_t)raw_chunks(plan) + chunk])
        return "values for the second time";
    *into = exchange->raw + frame->index * plan->raw_nbytes + frame->offset;
    return NULL;
}

static const char *root_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t chunk = plan_chunk_at(plan, frame->offset);
    if (frame->index < plan->root_cuts[peer] || frame->index >= plan->root_cuts[peer + 1] ||
        !plan->present[step_row(exchange)][frame->index])
        return "a root that is not the peer's";
    if (chunk == plan->chunk_count || !node_folds(plan, plan->index, chunk) ||
        frame->nbytes != plan->chunks[chunk].nbytes)
        return "a root at a wrong place";
    if (exchange->roots_came[(uint64_t)frame->index * region_count(plan) + chunk - region_first(plan)])
        return "a root for the second time";
    *into = peer_root_at(exchange, frame->index, &plan->chunks[chunk]);
    return NULL;
}

static const char *sum_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into)
{
    const struct exchange_plan *plan = &exchange->plan;
    const uint32_t chunk = plan_chunk_at(plan, frame->offset);
    if (plan->one_hop || chunk == plan->chunk_count || plan->chunks[chunk].owner != peer || frame->index != 0 ||
        frame->nbytes != plan->chunks[chunk].nbytes)
        return "a sum at a wrong place";
    if (exchange->sums_came[chunk])
        return "a sum for the second time";
    *into = exchange->board.sum + plan->chunks[chunk].grad_offset;
    return NULL;
}

enum frame_verdict exchange_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into,
                                   const char **error)
{
    if (frame->step == exchange->step + 1)
        return FRAME_PARK;
    if (frame->step != exchange->step) {
        *error = frame->step < exchange->step ? "a frame of a step that is over" : "a frame of a step far ahead";
        return FRAME_REFUSE;
    }
    switch ((enum frame_kind)frame->kind) {
    case FRAME_META: *error = meta_accept(exchange, peer, frame, into); break;
    case FRAME_RAW: *error = raw_accept(exchange, peer, frame, into); break;
    case FRAME_ROOT: *error = root_accept(exchange, peer, frame, into); break;
    case FRAME_SUM:
        *error = sum_accept(exchange, peer, frame, into);
        if (*error == NULL && !exchange->started)
            return FRAME_PARK; /* the peers need nothing from here, and the sum buffer may still be read */
        break;
    default: *error = "a frame that has no step";
    }
    return *error == NULL ? FRAME_TAKE : FRAME_REFUSE;
}

void exchange_arrived(struct exchange *exchange, uint32_t peer, const struct frame *frame)
{
    const struct exchange_plan *plan = &exchange->plan;
    exchange->still--;
    switch ((enum frame_kind)frame->kind) {
    case FRAME_META:
        exchange->metas_came[peer] = 1;
        exchange->metrics[peer] = frame->index;
        break;
    case FRAME_RAW:
        exchange->raw_came[frame->index * (uint64_t)raw_chunks(plan) + frame->offset / EXCHANGE_MAX_CHUNK] = 1;
        break;
    case FRAME_ROOT: {
        const uint32_t chunk = plan_chunk_at(plan, frame->offset);
        exchange->roots_came[(uint64_t)frame->index * region_count(plan) + chunk - region_first(plan)] = 1;
        chunk_came(exchange, chunk);
        break;
    }
    default: exchange->sums_came[plan_chunk_at(plan, frame->offset)] = 1;
    }
}
