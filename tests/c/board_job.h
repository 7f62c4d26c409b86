/* A small training job for the board's tests: parameters of both dtypes in three ranges, two groups of them, the second
 * with fewer buffers of state and without a step now and then, rates that change, clipping if the seed is odd, and a
 * made-up gradient that depends on the weights, the step and the shard; with batches in flight, on the weights and the
 * batch. The reference takes the same steps one after the other, without board, channel or ranges in parallel.
 */
#ifndef UNTORN_TESTS_BOARD_JOB_H
#define UNTORN_TESTS_BOARD_JOB_H

#include <math.h>

#include "board.h"
#include "channel_files.h"

enum { JOB_RANGES = 3, JOB_GROUPS = 2, JOB_STATES = 2, JOB_SCHEMA_NBYTES = 64, JOB_BASE_VERSION = 5 };

static const struct board_group job_groups[JOB_GROUPS] = {
    {KERNEL_ADAM, {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.01}},
    {KERNEL_SGD, {.momentum = 0.5}},
};
static inline uint64_t job_group(unsigned range) { return range == 2; }

struct job {
    struct board_config config;
    struct board_range ranges[JOB_RANGES];
    uint64_t seed, slot_nbytes;
    struct channel_files files;
    struct attachment *publisher;
    struct board board;
    void *memory;
};

/* In [-1, 1), of the job's seed and these. */
static inline double job_number(const struct job *job, uint64_t step, uint64_t shard, uint64_t i)
{
    uint64_t state = job->seed ^ step << 40 ^ shard << 28 ^ i;
    return ldexp((double)(check_random(&state) >> 11), -52) - 1;
}

/* How many gradients make a step. */
static inline uint32_t job_parts(const struct job *job) { return job->config.is_async ? 1 : job->config.shards; }

/* Some shards are empty in some steps; never all of them. With exchange they are those of the last step, or of all
 * others. */
static inline uint64_t job_examples(const struct job *job, uint64_t step, uint32_t shard)
{
    if (job->config.exchange)
        step = step % job->config.steps == job->config.steps - 1;
    uint64_t state = job->seed ^ step << 32 ^ shard;
    return shard == step % job_parts(job) ? 3 : check_random(&state) % 4;
}

static inline double job_param(const struct board_range *range, const uint8_t *slot, uint64_t i)
{
    const uint8_t *first = slot + range->slot_offset;
    return range_dtype(range) == KERNEL_F32 ? (double)((const float *)first)[i] : ((const double *)first)[i];
}

static inline void job_element_set(const struct board_range *range, uint8_t *first, uint64_t i, double value)
{
    if (range_dtype(range) == KERNEL_F32)
        ((float *)first)[i] = (float)value;
    else
        ((double *)first)[i] = value;
}

/* Do a worker's task: read the weights in `slot`, fill `buffer`. */
static inline void job_gradient(const struct job *job, uint64_t step, uint32_t shard, const uint8_t *slot,
                                struct board_buffer *buffer)
{
    uint8_t *grads = (uint8_t *)(buffer + 1);
    buffer->examples = job_examples(job, step, shard);
    const bool absent = buffer->examples == 0; /* then the content of the buffer is not read */
    buffer->loss = absent ? NAN : job_number(job, step, shard, 1u << 27);
    for (unsigned metric = 0; metric < BOARD_METRICS; metric++)
        buffer->metrics[metric] = absent ? NAN : job_number(job, step, shard, (1u << 26) + metric);
    uint64_t number = 0;
    for (unsigned r = 0; r < JOB_RANGES; r++)
        for (uint64_t i = 0; i < job->ranges[r].count; i++) {
            const double noise = job_number(job, step, shard, number++);
            const double value = absent ? NAN : 0.5 * job_param(&job->ranges[r], slot, i) + noise;
            job_element_set(&job->ranges[r], grads + job->ranges[r].grad_offset, i, value);
        }
}

enum job_kind { JOB_SYNC = 0, JOB_ASYNC = 1, JOB_EXCHANGE = 2 };

static inline void job_lay_out(struct job *job, uint32_t shards, uint32_t workers, uint64_t steps, enum job_kind kind)
{
    static const uint64_t counts[JOB_RANGES] = {37, 300, 5};
    const uint64_t first = sizeof(struct slot_header) + JOB_SCHEMA_NBYTES;
    uint64_t end = 0;
    for (unsigned r = 0; r < JOB_RANGES; r++) {
        const uint64_t dtype = r == 1 ? KERNEL_F64 : KERNEL_F32;
        job->ranges[r] = (struct board_range){first + end, end, counts[r], dtype | job_group(r) << 16, 0, 0};
        end = (end + counts[r] * kernel_itemsize((enum kernel_dtype)dtype) + 63) / 64 * 64;
    }
    job->slot_nbytes = first + (1 + JOB_STATES) * end;
    job->config = (struct board_config){
        .shards = shards,
        .ranges = JOB_RANGES,
        .workers = workers,
        .active = workers,
        .is_async = kind == JOB_ASYNC,
        .exchange = kind == JOB_EXCHANGE,
        .groups = JOB_GROUPS,
        .steps = steps,
        .examples = 8,
        .batch_size = 4,
        .buffer_nbytes = end,
        .state_stride = end,
        .base_version = JOB_BASE_VERSION,
        .clip_norm = job->seed % 2 ? 6 : 0, /* less than some of the norms */
    };
}

/* Version base: a slot as the server would publish it. */
static inline void job_weights_begin(const struct job *job, uint8_t *slot)
{
    memset(slot, 0, job->slot_nbytes);
    *(struct slot_header *)slot = (struct slot_header){
        .version = JOB_BASE_VERSION, .nbytes = job->slot_nbytes, .schema_nbytes = JOB_SCHEMA_NBYTES, .schema_id = 1};
    memset(slot + sizeof(struct slot_header), 's', JOB_SCHEMA_NBYTES);
    for (unsigned r = 0; r < JOB_RANGES; r++)
        for (uint64_t i = 0; i < job->ranges[r].count; i++)
            job_element_set(&job->ranges[r], slot + job->ranges[r].slot_offset, i, job_number(job, UINT16_MAX, r, i));
}

/* The second group takes no step in every third one. */
static inline struct kernel_rates job_rates(uint64_t step, uint64_t group)
{
    const double part = 1 / (double)(step + 1);
    if (group == 1 && step % 3 == 1)
        return (struct kernel_rates){.lr = NAN};
    return (struct kernel_rates){.lr = (group == 0 ? 0.1 : 0.2) * part, .shrink = 1 - 0.01 * part, .root_scale = 1.5};
}

static inline struct job job_open(uint64_t seed, uint32_t shards, uint32_t workers, uint64_t steps, uint32_t max_slots,
                                  enum job_kind kind)
{
    struct job job = {.seed = seed};
    job_lay_out(&job, shards, workers, steps, kind);
    job.files = files_make(workers + 2, max_slots, 2);
    job.publisher = files_attach(job.files, ROLE_PUBLISHER);
    uint8_t *address;
    uint64_t capacity;
    unsigned slot;
    CHECK(attachment_pick(job.publisher, job.slot_nbytes, &slot) == STATUS_OK);
    CHECK(attachment_map(job.publisher, slot, &address, &capacity) == STATUS_OK);
    job_weights_begin(&job, address);
    channel_publish(&job.publisher->channel, JOB_BASE_VERSION, slot);
    const uint64_t nbytes = board_nbytes(&job.config);
    job.memory = aligned_alloc(4096, (nbytes + 4095) / 4096 * 4096);
    memset(job.memory, 0, nbytes);
    board_format(&job.board, job.memory, &job.config, job.ranges, job_groups, NULL);
    for (uint64_t step = 0; step < steps; step++)
        for (uint64_t group = 0; group < JOB_GROUPS; group++)
            job.board.rates[step * JOB_GROUPS + group] = job_rates(step, group);
    return job;
}

static inline void job_close(struct job *job)
{
    attachment_close(job->publisher);
    files_close(job->files);
    free(job->memory);
}

/* -- the reference ---------------------------------------------------------------------------------------------- */

struct job_reference {
    uint8_t *slots;                                /* of every version, from the base on: the parts that ranges cover */
    const uint8_t *slot;                           /* of the last */
    double *losses, *examples, *norms, *staleness; /* per step */
};

/* The gradient that the server applied as a step; only with batches in flight. */
struct job_applied {
    uint64_t batch, version;
};

/* The shards of one step, as the kernels take them; the pointers are at the first range. */
struct reference_shards {
    uint8_t *buffers;
    const void **grads;
    double *weights, *terms;
};

static inline struct kernel_range reference_range(const struct job *job, const struct reference_shards *shards,
                                                  unsigned r)
{
    const uint64_t stride = sizeof(struct board_buffer) + job->config.buffer_nbytes;
    for (uint32_t s = 0; s < job_parts(job); s++)
        shards->grads[s] = shards->buffers + s * stride + sizeof(struct board_buffer) + job->ranges[r].grad_offset;
    return (struct kernel_range){.count = job->ranges[r].count,
                                 .shards = job_parts(job),
                                 .grads = shards->grads,
                                 .weights = shards->weights,
                                 .grad_scale = 1};
}

/* As torch.nn.utils.clip_grad_norm_ does it. */
static inline double reference_clip(const struct job *job, uint64_t step, const struct reference_shards *shards,
                                    double *norm)
{
    double squares[JOB_RANGES];
    *norm = 0;
    if (job->config.clip_norm == 0)
        return 1;
    for (unsigned r = 0; r < JOB_RANGES; r++) {
        const struct kernel_range work = reference_range(job, shards, r);
        squares[r] =
            isnan(job_rates(step, job_group(r)).lr) ? 0 : kernel_square_sum(range_dtype(&job->ranges[r]), &work);
    }
    *norm = sqrt(squares[0] + squares[1] + squares[2]);
    return fmin(1, job->config.clip_norm / (*norm + 1e-6));
}

/* `applied`: the batch, and the version that its gradient was computed on; in sync training step and newest version. */
static inline void reference_step(const struct job *job, uint64_t step, struct job_applied applied,
                                  const struct reference_shards *shards, struct job_reference *reference)
{
    const uint64_t stride = sizeof(struct board_buffer) + job->config.buffer_nbytes;
    const uint8_t *from = reference->slots + step * job->slot_nbytes;
    uint8_t *to = reference->slots + (step + 1) * job->slot_nbytes;
    double *examples = &reference->examples[step];
    uint32_t present = 0;
    *examples = 0;
    reference->staleness[step] = (double)(JOB_BASE_VERSION + step - applied.version);
    for (uint32_t s = 0; s < job_parts(job); s++)
        *examples += (double)job_examples(job, applied.batch, s);
    for (uint32_t s = 0; s < job_parts(job); s++) {
        struct board_buffer *buffer = (struct board_buffer *)(shards->buffers + s * stride);
        job_gradient(job, applied.batch, s, reference->slots + (applied.version - JOB_BASE_VERSION) * job->slot_nbytes,
                     buffer);
        shards->weights[s] = (double)buffer->examples / *examples;
        if (buffer->examples != 0)
            shards->terms[present++] = shards->weights[s] * buffer->loss;
    }
    reference->losses[step] = kernel_tree_sum(present, shards->terms);
    const double scale = reference_clip(job, step, shards, &reference->norms[step]);
    for (unsigned r = 0; r < JOB_RANGES; r++) {
        const uint64_t at = job->ranges[r].slot_offset, stride_of_state = job->config.state_stride;
        const void *state_in[] = {from + at + stride_of_state, from + at + 2 * stride_of_state};
        void *state_out[] = {to + at + stride_of_state, to + at + 2 * stride_of_state};
        struct kernel_range work = reference_range(job, shards, r);
        work.grad_scale = scale;
        work.params_in = from + at;
        work.params_out = to + at;
        work.state_in = state_in;
        work.state_out = state_out;
        struct kernel_hyper hyper = job_groups[job_group(r)].hyper;
        hyper.rates = job_rates(step, job_group(r));
        const uint64_t nbytes = work.count * kernel_itemsize(range_dtype(&job->ranges[r]));
        memcpy(to + at, from + at, nbytes); /* what no step changes */
        for (unsigned k = 0; k < JOB_STATES; k++)
            memcpy(state_out[k], state_in[k], nbytes);
        if (!isnan(hyper.rates.lr))
            kernel_step((enum kernel_optimizer)job_groups[job_group(r)].optimizer, range_dtype(&job->ranges[r]), &hyper,
                        &work);
    }
}

/* `applied`: the gradient of each step; NULL in sync training. */
static inline struct job_reference reference_run(const struct job *job, const struct job_applied *applied)
{
    const uint64_t steps = job->config.steps;
    const uint32_t count = job_parts(job);
    struct job_reference reference = {.slots = calloc(steps + 1, job->slot_nbytes),
                                      .losses = calloc(steps, sizeof(double)),
                                      .examples = calloc(steps, sizeof(double)),
                                      .norms = calloc(steps, sizeof(double)),
                                      .staleness = calloc(steps, sizeof(double))};
    const struct reference_shards shards = {calloc(count, sizeof(struct board_buffer) + job->config.buffer_nbytes),
                                            calloc(count, sizeof *shards.grads), calloc(count, sizeof(double)),
                                            calloc(count, sizeof(double))};
    reference.slot = reference.slots + steps * job->slot_nbytes;
    job_weights_begin(job, reference.slots);
    for (uint64_t step = 0; step < steps; step++) {
        const struct job_applied newest = {step, JOB_BASE_VERSION + step};
        reference_step(job, step, applied != NULL ? applied[step] : newest, &shards, &reference);
    }
    free(shards.buffers);
    free(shards.grads);
    free(shards.weights);
    free(shards.terms);
    return reference;
}

static inline void reference_free(struct job_reference *reference)
{
    free(reference->slots);
    free(reference->losses);
    free(reference->examples);
    free(reference->norms);
    free(reference->staleness);
}

/* The job is over: the newest version is the reference's, bit for bit, and so is the log. */
static inline bool job_equals(const struct job *job, const struct job_reference *reference)
{
    const uint64_t latest = channel_latest(&job->publisher->channel);
    uint8_t *slot;
    uint64_t capacity;
    bool equal = CHECK(latest_version(latest) == JOB_BASE_VERSION + job->config.steps) &
                 CHECK(board_step(&job->board) == job->config.steps);
    if (!CHECK(attachment_map(job->publisher, latest_slot(latest), &slot, &capacity) == STATUS_OK))
        return false;
    const struct slot_header *header = (const struct slot_header *)slot;
    equal &= CHECK(header->version == latest_version(latest) && header->nbytes == job->slot_nbytes &&
                   header->schema_nbytes == JOB_SCHEMA_NBYTES && header->schema_id == 1);
    for (unsigned r = 0; r < JOB_RANGES; r++)
        for (unsigned part = 0; part < 1 + JOB_STATES; part++) {
            const uint64_t offset = job->ranges[r].slot_offset + part * job->config.state_stride;
            const uint64_t nbytes = job->ranges[r].count * kernel_itemsize(range_dtype(&job->ranges[r]));
            equal &= CHECK(memcmp(slot + offset, reference->slot + offset, nbytes) == 0, "range %u, part %u", r, part);
        }
    for (uint64_t step = 0; step < job->config.steps; step++)
        equal &= CHECK(memcmp(&job->board.log[step].loss, &reference->losses[step], sizeof(double)) == 0 &&
                           job->board.log[step].examples == reference->examples[step] &&
                           job->board.log[step].staleness == reference->staleness[step] &&
                           job->board.log[step].grad_norm == reference->norms[step],
                       "the log of step %" PRIu64, step);
    return equal;
}

/* The buffer that the server would find in this worker's record; see record_settle_dead. No commit is in progress. */
static inline uint64_t job_buffer_on_record(const struct job *job, uint32_t worker)
{
    const uint64_t record = atomic_load(&job->board.workers[worker].record);
    const uint64_t shard = record >> 22 & 1023, scratch = record >> 11 & 2047, other = record & 2047;
    return (atomic_load(&job->board.shard_tasks[shard].word) & 0xffff) == scratch ? other : scratch;
}

/* Every buffer has one owner: a shard's task word, or a worker, whose scratch and record say the same. */
static inline bool job_buffers_are_owned_once(const struct job *job)
{
    const uint32_t shards = job->config.shards, count = shards + job->config.workers;
    bool *owned = calloc(count, sizeof *owned), once = true;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t buffer = i < shards ? atomic_load(&job->board.shard_tasks[i].word) & 0xffff
                                           : atomic_load(&job->board.workers[i - shards].scratch);
        once &= buffer < count && !owned[buffer];
        once &= i < shards || job_buffer_on_record(job, i - shards) == buffer;
        if (buffer < count)
            owned[buffer] = true;
    }
    free(owned);
    return once;
}

#endif
