/* The board. See board.h for what it promises and how a step goes. */
#include "board.h"

#include <math.h>
#include <string.h>

#include "futex.h"

#define BOARD_MAGIC "untornB2"
/* torch.nn.utils.clip_grad_norm_'s: so that a norm of 0 is no division by 0. */
#define CLIP_EPSILON 1e-6

/* Waiting workers look around by themselves this often: a worker killed right after the last commit of a phase could
 * not move it on. */
static const int64_t LOOK_AROUND_NS = 10000000;

/* -- words ------------------------------------------------------------------------------------------------------ */

static uint64_t task_make(uint64_t step, enum task_state state, uint32_t worker, uint32_t buffer)
{
    return step << 32 | (uint64_t)state << 30 | (uint64_t)worker << 16 | buffer;
}
static uint64_t task_step(uint64_t task) { return task >> 32; }
static enum task_state task_state(uint64_t task) { return (enum task_state)(task >> 30 & 3); }
static uint32_t task_worker(uint64_t task) { return (uint32_t)(task >> 16 & 0x3fff); }
static uint32_t task_buffer(uint64_t task) { return (uint32_t)(task & 0xffff); }
static bool task_is(uint64_t task, uint64_t step, enum task_state state)
{
    return task_step(task) == step && task_state(task) == state;
}

static uint64_t phase_make(uint64_t step, enum phase_kind kind, unsigned slot) { return step << 8 | kind << 6 | slot; }
static uint64_t phase_step(uint64_t phase) { return phase >> 8; }
static enum phase_kind phase_kind(uint64_t phase) { return (enum phase_kind)(phase >> 6 & 3); }
static unsigned phase_slot(uint64_t phase) { return (unsigned)(phase & 63); }

/* -- layout ----------------------------------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t nbytes, uint64_t to) { return (nbytes + to - 1) / to * to; }

static uint64_t section(uint64_t *end, uint64_t nbytes)
{
    uint64_t start = *end;
    *end = round_up(start + nbytes, 64);
    return start;
}

static void sections_place(struct board_header *header, const struct board_config *config)
{
    uint64_t end = 4096;
    header->workers_at = section(&end, config->workers * sizeof(struct board_worker));
    header->shard_tasks_at = section(&end, config->shards * sizeof(struct board_task));
    header->range_tasks_at = section(&end, config->ranges * sizeof(struct board_task));
    header->norm_tasks_at = section(&end, config->ranges * sizeof(struct board_task));
    header->squares_at = section(&end, config->ranges * sizeof(double));
    header->ranges_at = section(&end, config->ranges * sizeof(struct board_range));
    header->log_at = section(&end, config->steps * sizeof(struct board_log));
    header->rates_at = section(&end, config->steps * sizeof(struct kernel_rates));
    header->order_at = section(&end, config->examples * sizeof(int64_t));
    header->names_at = section(&end, 4096);
    header->errors_at = section(&end, (uint64_t)config->workers * BOARD_ERROR_NBYTES);
    header->buffer_stride = round_up(sizeof(struct board_buffer) + config->buffer_nbytes, 4096);
    end = round_up(end, 4096);
    header->buffers_at = section(&end, (config->shards + config->workers) * header->buffer_stride);
    header->nbytes = end;
}

uint64_t board_nbytes(const struct board_config *config)
{
    struct board_header header;
    sections_place(&header, config);
    return header.nbytes;
}

static void board_find(struct board *board, void *memory)
{
    struct board_header *header = memory;
    uint8_t *base = memory;
    *board = (struct board){
        .header = header,
        .workers = (struct board_worker *)(base + header->workers_at),
        .shard_tasks = (struct board_task *)(base + header->shard_tasks_at),
        .range_tasks = (struct board_task *)(base + header->range_tasks_at),
        .norm_tasks = (struct board_task *)(base + header->norm_tasks_at),
        .ranges = (struct board_range *)(base + header->ranges_at),
        .squares = (double *)(base + header->squares_at),
        .log = (struct board_log *)(base + header->log_at),
        .rates = (struct kernel_rates *)(base + header->rates_at),
    };
}

void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges)
{
    struct board_header *header = memory;
    sections_place(header, config);
    header->shards = config->shards;
    header->ranges = config->ranges;
    header->workers = config->workers;
    header->optimizer = config->optimizer;
    header->steps = config->steps;
    header->examples = config->examples;
    header->batch_size = config->batch_size;
    header->buffer_nbytes = config->buffer_nbytes;
    header->state_stride = config->state_stride;
    header->base_version = config->base_version;
    header->clip_norm = config->clip_norm;
    header->hyper = config->hyper;
    board_find(board, memory);
    memcpy(board->ranges, ranges, config->ranges * sizeof *ranges);
    for (uint32_t shard = 0; shard < config->shards; shard++)
        store_relaxed(&board->shard_tasks[shard].word, task_make(0, TASK_FREE, 0, shard));
    for (uint32_t worker = 0; worker < config->workers; worker++) {
        store_relaxed(&board->workers[worker].scratch, config->shards + worker);
        store_relaxed(&board->workers[worker].intent, BOARD_NO_INTENT);
    }
    memcpy(header->magic, BOARD_MAGIC, sizeof header->magic);
}

enum status board_attach(struct board *board, void *memory, uint64_t nbytes)
{
    struct board_header *header = memory;
    if (nbytes < sizeof *header || memcmp(header->magic, BOARD_MAGIC, sizeof header->magic) != 0 ||
        header->nbytes > nbytes)
        return STATUS_FORMAT;
    board_find(board, memory);
    return STATUS_OK;
}

struct board_buffer *board_buffer_at(const struct board *board, uint32_t buffer)
{
    const struct board_header *header = board->header;
    return (struct board_buffer *)((uint8_t *)header + header->buffers_at + buffer * header->buffer_stride);
}

/* -- bells ------------------------------------------------------------------------------------------------------ */

void board_ring(const struct board *board)
{
    add(&board->header->bell, 1); /* pairs with the load_acquire in board_next */
    futex_wake(&board->header->bell, &board->header->sleepers);
}

void board_ring_server(const struct board *board)
{
    add(&board->header->server_bell, 1);
    futex_wake(&board->header->server_bell, &board->header->server_sleepers);
}

/* -- tasks ------------------------------------------------------------------------------------------------------ */

/* Claim the first task of this step that nobody has, looking from `first` on; false if there is none. On return
 * *done says whether every task is done. */
static bool task_claim(struct board_task *tasks, uint32_t count, uint32_t first, uint64_t step, uint32_t worker,
                       uint32_t *index, uint64_t *claim, bool *done)
{
    *done = true;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (first + i) % count;
        uint64_t task = load_acquire(&tasks[at].word); /* pairs with the swap_if of commits */
        if (task_is(task, step, TASK_DONE))
            continue;
        *done = false;
        if (task_step(task) > step || task_is(task, step, TASK_CLAIMED))
            continue; /* somebody else's; or the phase moved on while we looked */
        *claim = task_make(step, TASK_CLAIMED, worker, task_buffer(task));
        if (swap_if(&tasks[at].word, task, *claim)) {
            *index = at;
            return true;
        }
    }
    return false;
}

bool board_commit(const struct board *board, uint32_t worker, const struct turn *turn)
{
    struct board_worker *self = &board->workers[worker];
    shared_u64 *word = &board->shard_tasks[turn->shard].word;
    uint32_t scratch = (uint32_t)load_relaxed(&self->scratch), old = task_buffer(turn->claim);
    /* killed before the swap: board_recover finds our claim; after it: it finds it done, or the step gone by */
    store_release(&self->intent, turn->step << 32 | (uint64_t)turn->shard << 16 | old);
    bool counts = swap_if(word, turn->claim, task_make(turn->step, TASK_DONE, worker, scratch));
    if (counts) {
        store_release(&self->scratch, old);
        store_relaxed(&self->commits, load_relaxed(&self->commits) + 1);
    }
    store_release(&self->intent, BOARD_NO_INTENT);
    return counts;
}

/* -- norms and updates -------------------------------------------------------------------------------------------- */

/* The shards of a step whose gradients are all committed. */
struct shards {
    const struct board_buffer *buffers[BOARD_MAX_SHARDS];
    double weights[BOARD_MAX_SHARDS];
    double examples;
};

static void shards_collect(const struct board *board, struct shards *shards)
{
    uint32_t count = board->header->shards;
    uint64_t examples = 0;
    for (uint32_t i = 0; i < count; i++) {
        shards->buffers[i] = board_buffer_at(board, task_buffer(load_acquire(&board->shard_tasks[i].word)));
        examples += shards->buffers[i]->examples;
    }
    shards->examples = (double)examples;
    for (uint32_t i = 0; i < count; i++) /* a batch of nothing: every shard is absent, and nothing is not a number */
        shards->weights[i] = examples == 0 ? 0 : (double)shards->buffers[i]->examples / shards->examples;
}

static enum kernel_dtype range_dtype(const struct board_range *range)
{
    return (enum kernel_dtype)(range->dtype & 0xff);
}
static enum merge_kind range_kind(const struct board_range *range) { return (enum merge_kind)(range->dtype >> 8); }

/* One range's gradients; `grads` is room for their addresses. */
static struct kernel_range shards_range(const struct board *board, const struct shards *shards, uint32_t index,
                                        const void **grads)
{
    const struct board_range *range = &board->ranges[index];
    for (uint32_t i = 0; i < board->header->shards; i++)
        grads[i] = (const uint8_t *)(shards->buffers[i] + 1) + range->grad_offset;
    return (struct kernel_range){
        .count = range->count,
        .shards = board->header->shards,
        .grads = grads,
        .weights = shards->weights,
        .grad_scale = 1,
    };
}

/* Do every norm task that nobody has; true if all are done. */
static bool norms_run(const struct board *board, uint32_t worker, uint64_t step)
{
    const struct board_header *header = board->header;
    uint32_t index, first = worker * header->ranges / header->workers;
    uint64_t claim;
    struct shards shards;
    const void *grads[BOARD_MAX_SHARDS];
    bool collected = false, done;
    while (task_claim(board->norm_tasks, header->ranges, first, step, worker, &index, &claim, &done)) {
        if (!collected)
            shards_collect(board, &shards);
        collected = true;
        const struct kernel_range work = shards_range(board, &shards, index, grads);
        const struct board_range *range = &board->ranges[index];
        board->squares[index] = range_kind(range) == MERGE_STEP ? kernel_square_sum(range_dtype(range), &work) : 0;
        swap_if(&board->norm_tasks[index].word, claim, task_make(step, TASK_DONE, worker, 0));
        first = index + 1;
    }
    return done;
}

/* The norm of the step's whole gradient; its norm tasks are done. */
static double norm_collect(const struct board *board)
{
    return sqrt(kernel_tree_sum(board->header->ranges, board->squares));
}

static double clip_scale(double clip_norm, double norm)
{
    double scale = clip_norm / (norm + CLIP_EPSILON);
    return scale > 1 ? 1 : scale; /* a norm that is not a number stays one, and every parameter shows it */
}

static double shards_mean(const struct shards *shards, uint32_t count, const double *(*pick)(const struct board_buffer *, int),
                          int which)
{
    double terms[BOARD_MAX_SHARDS];
    uint32_t present = 0;
    for (uint32_t i = 0; i < count; i++) /* an empty shard has measured nothing */
        if (shards->weights[i] != 0)
            terms[present++] = shards->weights[i] * *pick(shards->buffers[i], which);
    return kernel_tree_sum(present, terms);
}

static const double *pick_loss(const struct board_buffer *buffer, int which) { return &buffer->loss; }
static const double *pick_metric(const struct board_buffer *buffer, int which) { return &buffer->metrics[which]; }

static void log_write(const struct board *board, uint64_t step, const struct shards *shards, double norm)
{
    uint32_t count = board->header->shards;
    struct board_log *log = &board->log[step % board->header->steps];
    log->examples = shards->examples;
    log->loss = shards_mean(shards, count, pick_loss, 0);
    log->grad_norm = norm;
    for (int metric = 0; metric < BOARD_METRICS; metric++)
        log->metrics[metric] = shards_mean(shards, count, pick_metric, metric);
}

/* The part of a version that no range covers: header and schema. Done with range 0, so it has one writer. */
static void version_begin(const struct board *board, uint64_t step, const uint8_t *from, uint8_t *to)
{
    const struct slot_header *source = (const struct slot_header *)from;
    struct slot_header *target = (struct slot_header *)to;
    memcpy(to, from, sizeof *source + source->schema_nbytes);
    target->version = board->header->base_version + step + 1;
    target->published_ns = clock_wall_ns();
}

static void range_update(const struct board *board, const struct shards *shards, uint64_t step, uint32_t index,
                         double grad_scale, const uint8_t *from, uint8_t *to)
{
    const struct board_header *header = board->header;
    const struct board_range *range = &board->ranges[index];
    const void *grads[BOARD_MAX_SHARDS], *state_in[KERNEL_MAX_STATES];
    void *state_out[KERNEL_MAX_STATES];
    struct kernel_hyper hyper = header->hyper;
    hyper.rates = board->rates[step % header->steps];
    unsigned states = kernel_state_count((enum kernel_optimizer)header->optimizer, &hyper);
    for (unsigned k = 0; k < states; k++) {
        uint64_t offset = range->slot_offset + (k + 1) * header->state_stride;
        state_in[k] = from + offset;
        state_out[k] = to + offset;
    }
    struct kernel_range work = shards_range(board, shards, index, grads);
    work.grad_scale = grad_scale;
    work.params_in = from + range->slot_offset;
    work.params_out = to + range->slot_offset;
    work.state_in = state_in;
    work.state_out = state_out;
    if (range_kind(range) == MERGE_STEP)
        kernel_step((enum kernel_optimizer)header->optimizer, range_dtype(range), &hyper, &work);
    else
        merge(range_kind(range), range_dtype(range), &work);
}

/* Do every update task that nobody has; true if all are done. */
static bool updates_run(const struct board *board, struct attachment *weights, uint32_t worker, uint64_t phase)
{
    const struct board_header *header = board->header;
    uint64_t step = phase_step(phase);
    uint32_t index, first = worker * header->ranges / header->workers;
    uint64_t claim, capacity;
    uint8_t *from = NULL, *to = NULL;
    struct shards shards;
    double norm = 0;
    bool done;
    while (task_claim(board->range_tasks, header->ranges, first, step, worker, &index, &claim, &done)) {
        if (from == NULL) {
            unsigned slot = latest_slot(channel_latest(&weights->channel));
            if (attachment_map(weights, slot, &from, &capacity) != STATUS_OK ||
                attachment_map(weights, phase_slot(phase), &to, &capacity) != STATUS_OK) {
                store_release(&board->range_tasks[index].word, task_make(step, TASK_FREE, 0, 0));
                return false; /* no memory for a mapping: another worker may do better */
            }
            shards_collect(board, &shards);
            norm = header->clip_norm != 0 ? norm_collect(board) : 0;
        }
        if (index == 0) {
            version_begin(board, step, from, to);
            log_write(board, step, &shards, norm);
        }
        double scale = header->clip_norm != 0 ? clip_scale(header->clip_norm, norm) : 1;
        range_update(board, &shards, step, index, scale, from, to);
        swap_if(&board->range_tasks[index].word, claim, task_make(step, TASK_DONE, worker, 0));
        first = index + 1;
    }
    return done;
}

/* -- phases ----------------------------------------------------------------------------------------------------- */

static void phase_end_update(const struct board *board, struct attachment *weights, uint64_t phase)
{
    uint64_t step = phase_step(phase), latest = channel_latest(&weights->channel);
    uint64_t version = board->header->base_version + step + 1;
    if (latest_version(latest) + 1 == version) /* a second one that tries finds it done */
        channel_publish_if(&weights->channel, latest, version, phase_slot(phase));
    channel_wake(&weights->channel); /* whoever published may have been killed before it woke the waiting */
    if (!swap_if(&board->header->phase, phase, phase_make(step + 1, PHASE_GRADIENT, 0)))
        return;
    board_ring(board);
    if (step + 1 == load_acquire(&board->header->limit))
        board_ring_server(board);
}

/* Every shard's gradient is there, and the norm, where it is wanted. False if there is no free slot. */
static bool phase_begin_update(const struct board *board, struct attachment *weights, uint64_t phase)
{
    uint64_t latest = channel_latest(&weights->channel), capacity;
    uint8_t *from;
    unsigned slot;
    if (attachment_map(weights, latest_slot(latest), &from, &capacity) != STATUS_OK)
        return false;
    uint64_t nbytes = ((const struct slot_header *)from)->nbytes;
    if (attachment_pick_ready(weights, nbytes, &slot) != STATUS_OK)
        return false;
    if (swap_if(&board->header->phase, phase, phase_make(phase_step(phase), PHASE_UPDATE, slot)))
        board_ring(board);
    return true;
}

static bool phase_end_gradient(const struct board *board, struct attachment *weights, uint64_t phase)
{
    if (board->header->clip_norm == 0)
        return phase_begin_update(board, weights, phase);
    if (swap_if(&board->header->phase, phase, phase_make(phase_step(phase), PHASE_NORM, 0)))
        board_ring(board);
    return true;
}

/* Wait for a change after `seen`. False when wait_ns is used up. */
static bool bell_wait(const struct board *board, uint32_t seen, int64_t spin_ns, int64_t end_ns)
{
    struct board_header *header = board->header;
    if (futex_spin(&header->bell, seen, spin_ns))
        return true;
    int64_t left = end_ns - clock_monotonic_ns();
    if (left <= 0)
        return false;
    return futex_sleep(&header->bell, seen, &header->sleepers, left < LOOK_AROUND_NS ? left : LOOK_AROUND_NS) !=
           FUTEX_INTERRUPTED;
}

/* The server is asked for a free slot. */
static void slot_ask(const struct board *board)
{
    store_release(&board->header->need_slot, 1);
    board_ring_server(board);
}

struct turn board_next(const struct board *board, struct attachment *weights, uint32_t worker, uint32_t first,
                       int64_t spin_ns, int64_t wait_ns)
{
    struct board_header *header = board->header;
    int64_t end_ns = clock_monotonic_ns() + wait_ns;
    for (;;) {
        uint32_t seen = load_acquire(&header->bell); /* before looking: a change after it ends the wait at once */
        if (load_acquire(&header->stop) != 0)
            return (struct turn){.kind = TURN_STOP};
        uint64_t phase = load_acquire(&header->phase), step = phase_step(phase);
        struct turn turn = {.kind = TURN_GRADIENT, .step = step};
        bool done = false, has_slot = true;
        if (step >= load_acquire(&header->limit)) {
            if (wait_ns == 0)
                return (struct turn){.kind = TURN_IDLE};
        } else if (phase_kind(phase) == PHASE_UPDATE) {
            if (updates_run(board, weights, worker, phase)) {
                phase_end_update(board, weights, phase);
                continue;
            }
        } else if (phase_kind(phase) == PHASE_NORM) {
            done = norms_run(board, worker, step);
            has_slot = !done || phase_begin_update(board, weights, phase);
        } else if (task_claim(board->shard_tasks, header->shards, first, step, worker, &turn.shard, &turn.claim,
                              &done)) {
            turn.buffer = (uint32_t)load_relaxed(&board->workers[worker].scratch);
            return turn;
        } else if (done) {
            has_slot = phase_end_gradient(board, weights, phase);
        }
        if (done && has_slot)
            continue;
        if (!has_slot) {
            slot_ask(board);
            if (wait_ns == 0)
                return (struct turn){.kind = TURN_NEED_SLOT};
        }
        if (!bell_wait(board, seen, spin_ns, end_ns))
            return (struct turn){.kind = TURN_IDLE};
        if (load_acquire(&header->bell) == seen)
            spin_ns = 0; /* nothing came while we spun, so it may take long: from here on only sleep */
    }
}

/* -- the server ------------------------------------------------------------------------------------------------- */

void board_open(const struct board *board, uint64_t limit)
{
    store_release(&board->header->limit, limit); /* pairs with board_next: the epoch's order and rates come before */
    board_ring(board);
}

void board_stop(const struct board *board)
{
    store_release(&board->header->stop, 1);
    board_ring(board);
}

/* The worker is dead, so its record stands still; only the server calls this. Did its last swap happen? While its
 * claim stands, no. Otherwise yes: nobody but the server takes a claim away, so the step could not go by without it. */
static void intent_settle(const struct board *board, uint32_t worker)
{
    struct board_worker *dead = &board->workers[worker];
    uint64_t intent = load_acquire(&dead->intent);
    if (intent == BOARD_NO_INTENT)
        return;
    uint64_t step = intent >> 32;
    uint32_t shard = (uint32_t)(intent >> 16 & 0xffff), old = (uint32_t)(intent & 0xffff);
    uint64_t task = load_acquire(&board->shard_tasks[shard].word);
    bool stands = task_is(task, step, TASK_CLAIMED) && task_worker(task) == worker;
    if (!stands)
        store_release(&dead->scratch, old);
    store_release(&dead->intent, BOARD_NO_INTENT);
}

static int64_t claims_free(struct board_task *tasks, uint32_t count, uint32_t worker)
{
    int64_t freed = -1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t task = load_acquire(&tasks[i].word);
        if (task_state(task) == TASK_CLAIMED && task_worker(task) == worker &&
            swap_if(&tasks[i].word, task, task_make(task_step(task), TASK_FREE, 0, task_buffer(task))))
            freed = i;
    }
    return freed;
}

int64_t board_recover(const struct board *board, uint32_t worker)
{
    intent_settle(board, worker);
    int64_t shard = claims_free(board->shard_tasks, board->header->shards, worker);
    claims_free(board->norm_tasks, board->header->ranges, worker);
    claims_free(board->range_tasks, board->header->ranges, worker);
    board_ring(board);
    return shard;
}
