/* One process's side of a queue. See queue_side.h for what it promises. */
#include "queue_side.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "futex.h"
#include "queue_fork.h"
#include "queue_window.h"
#include "rows.h"
#include "slots.h"
#include "space.h"

static const int64_t QUEUE_SPIN_NS = 20000;
static const uint64_t LOOK_INTERVAL_NS = 50000000;
static const uint64_t PAUSE_NS = 250000000; /* more than the interval at which processes that wait look */

/* -- coming and going -------------------------------------------------------------------------------------------- */

static void queue_point(struct queue *queue, uint8_t *base, const struct queue_head *head)
{
    *queue = (struct queue){
        .head = (struct queue_head *)base,
        .rows = (struct queue_row *)(base + head->rows_offset),
        .slots = (struct queue_slot *)(base + head->slots_offset),
        .ring = (shared_u64 *)(base + head->ring_offset),
        .map = (shared_u64 *)(base + head->map_offset),
        .small = base + head->small_offset,
        .max_processes = head->max_processes,
        .capacity = head->capacity,
        .slot_count = head->slots,
        .cells = head->cells,
        .small_nbytes = head->small_nbytes,
        .limit_pages = head->limit_pages,
        .page_nbytes = head->page_nbytes,
        .window_nbytes = head->window_nbytes,
        .windows_offset = head->windows_offset,
    };
}

static enum status side_map(struct queue_side *side, const uint8_t *id)
{
    struct queue_head head;
    enum status status = queue_file_check(side->fd, id, &head);
    if (status != STATUS_OK)
        return status;
    side->shared_nbytes = head.windows_offset;
    void *base = mmap(NULL, side->shared_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, side->fd, 0);
    if (base == MAP_FAILED)
        return STATUS_OS;
    queue_point(&side->queue, base, &head);
    side->windows = calloc(head.slots, sizeof *side->windows);
    side->used = calloc(head.slots, sizeof *side->used);
    side->fork_copies = calloc(head.slots, sizeof *side->fork_copies);
    errno = ENOMEM;
    return side->windows != NULL && side->used != NULL && side->fork_copies != NULL ? STATUS_OK : STATUS_OS;
}

/* Undo what a dead process left, and note it. The caller has the lock of its row. */
static enum status dead_reap(const struct queue *queue, uint32_t row, struct journal *journal)
{
    struct queue_reaped reaped = {0};
    const uint32_t pid = shared_load_relaxed(&queue->rows[row].pid);
    enum status status = queue_reap(queue, row, &reaped);
    if (reaped.returned != 0 || reaped.freed != 0)
        journal_add(journal,
                    (struct journal_entry){
                        .kind = JOURNAL_REAPED, .pid = pid, .slots = reaped.freed, .returned = reaped.returned});
    return status;
}

enum status queue_row_take(const struct queue *queue, int fd, struct journal *journal, uint32_t *taken)
{
    for (uint32_t row = 1; row <= queue->max_processes; row++) {
        enum status status = lock_take(fd, row);
        if (status == STATUS_BUSY)
            continue;
        if (status != STATUS_OK)
            return status;
        struct queue_row *line = &queue->rows[row];
        if (shared_load_acquire(&line->attached) != 0)
            status = dead_reap(queue, row, journal); /* its last owner died: the kernel gave us its lock */
        if (status != STATUS_OK)
            return status;
        shared_raise_u32(&queue->head->high_water, row);
        shared_store_relaxed(&line->attached_ns, clock_wall_ns());
        shared_store_relaxed(&line->pid, (uint32_t)getpid());
        shared_store_relaxed(&line->waits, 0);
        shared_store_release(&line->attached, 1); /* before a slot names the row */
        *taken = row;
        return STATUS_OK;
    }
    return STATUS_NO_ROW;
}

enum status queue_side_open(int fd, const uint8_t *id, struct queue_side **result)
{
    struct queue_side *side = calloc(1, sizeof *side);
    if (side == NULL) {
        close(fd);
        errno = ENOMEM;
        return STATUS_OS;
    }
    side->fd = descriptor_keep(fd);
    side->file = descriptor_file(side->fd);
    side->fork_fd = -1;
    pthread_mutex_init(&side->lock, NULL);
    enum status status = side->fd >= 0 ? side_map(side, id) : STATUS_OS;
    if (status == STATUS_OK)
        status = queue_row_take(&side->queue, side->fd, &side->journal, &side->row);
    if (status != STATUS_OK) {
        int cause = errno;
        queue_side_close(side);
        errno = cause;
        return status;
    }
    queue_fork_follow(side);
    *result = side;
    return STATUS_OK;
}

bool queue_side_has_file(const struct queue_side *side) { return descriptor_is(side->fd, &side->file); }

void queue_side_close(struct queue_side *side)
{
    queue_fork_forget(side);
    const struct queue *queue = &side->queue;
    if (side->row != 0) {
        shared_store_relaxed(&queue->rows[side->row].pid, 0);
        shared_store_release(&queue->rows[side->row].attached, 0); /* nothing names this row: all places have ended */
    }
    for (uint32_t slot = 0; side->windows != NULL && slot < queue->slot_count; slot++)
        if (side->windows[slot].base != NULL)
            munmap(side->windows[slot].base, side->windows[slot].length);
    if (queue->head != NULL)
        munmap(queue->head, side->shared_nbytes);
    if (queue_side_has_file(side))
        close(side->fd); /* and the kernel releases the lock */
    pthread_mutex_destroy(&side->lock);
    free(side->windows);
    free(side->used);
    free(side->fork_copies);
    free(side);
}

/* -- places ------------------------------------------------------------------------------------------------------ */

/* A forked child that found no row at the fork may find one now. */
static enum status side_ready(struct queue_side *side)
{
    if (side->queue.head == NULL) {
        errno = EBADF;
        return STATUS_OS;
    }
    if (side->row != 0)
        return STATUS_OK;
    if (!queue_side_has_file(side)) {
        errno = EBADF;
        return STATUS_OS;
    }
    return queue_row_take(&side->queue, side->fd, &side->journal, &side->row);
}

static enum status slot_claim(struct queue_side *side, uint64_t pages, uint32_t *slot)
{
    enum status status = queue_claim(&side->queue, side->row, pages, slot);
    if (status != STATUS_OK)
        return status;
    status = queue_window_fit(side, *slot, pages);
    if (status != STATUS_OK) {
        int cause = errno;
        (void)queue_unclaim(&side->queue, side->row, *slot);
        errno = cause;
    }
    return status;
}

static enum status begin_locked(struct queue_side *side, uint64_t nbytes, bool windowed, struct queue_place *place)
{
    const struct queue *queue = &side->queue;
    enum status status = side_ready(side);
    if (status != STATUS_OK)
        return status;
    const uint64_t page = queue->page_nbytes;
    const uint64_t pages = !windowed && nbytes <= queue->small_nbytes ? 0 : nbytes / page + (nbytes % page != 0);
    if (pages > queue->limit_pages)
        return STATUS_TOO_LARGE;
    if (!queue_side_has_file(side)) {
        errno = EBADF;
        return STATUS_OS;
    }
    status = slot_claim(side, pages, &place->slot);
    if (status == STATUS_NO_SLOT || status == STATUS_NO_ROOM) {
        queue_want_slot(queue);
        status = slot_claim(side, pages, &place->slot);
    }
    if (status != STATUS_OK)
        return status;
    place->generation = side->generation;
    place->orphaned = false;
    place->address =
        pages == 0 ? queue->small + (uint64_t)place->slot * queue->small_nbytes : side->windows[place->slot].base;
    place->nbytes = pages == 0 ? queue->small_nbytes : pages * page;
    side->used[place->slot] = true;
    return STATUS_OK;
}

enum status queue_side_begin(struct queue_side *side, uint64_t nbytes, bool windowed, struct queue_place *place)
{
    pthread_mutex_lock(&side->lock);
    enum status status = begin_locked(side, nbytes, windowed, place);
    pthread_mutex_unlock(&side->lock);
    return status;
}

enum status queue_side_put(struct queue_side *side, const struct queue_place *place)
{
    pthread_mutex_lock(&side->lock);
    enum status status = STATUS_NOT_OWNED;
    if (place->generation == side->generation)
        status = queue_insert(&side->queue, side->row, place->slot);
    if (status == STATUS_OK)
        side->used[place->slot] = false;
    pthread_mutex_unlock(&side->lock);
    return status;
}

enum status queue_side_seal(struct queue_side *side, struct queue_place *place)
{
    enum status status = STATUS_NOT_OWNED;
    pthread_mutex_lock(&side->lock);
    struct queue_window *window = &side->windows[place->slot];
    if (place->generation == side->generation && window->base == place->address) {
        void *base = mmap(window->base, window->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, side->fd,
                          (off_t)queue_window_offset(&side->queue, place->slot));
        status = base == MAP_FAILED ? STATUS_OS : STATUS_OK;
        if (status == STATUS_OK) {
            place->nbytes = window->length;
            place->orphaned = true;
            *window = (struct queue_window){0};
        }
    }
    pthread_mutex_unlock(&side->lock);
    return status;
}

static enum status take_locked(struct queue_side *side, struct queue_place *place)
{
    const struct queue *queue = &side->queue;
    enum status status = side_ready(side);
    if (status == STATUS_OK)
        status = queue_take(queue, side->row, &place->slot);
    if (status != STATUS_OK)
        return status;
    const uint64_t pages = slot_pages(queue, place->slot);
    if (pages != 0) /* a window's slot has exactly its item's pages, a small one none */
        status = pages <= queue->limit_pages ? queue_window_map(side, place->slot, pages * queue->page_nbytes)
                                             : STATUS_FORMAT;
    if (status != STATUS_OK) {
        int cause = errno;
        (void)queue_give_back(queue, side->row, place->slot);
        errno = cause;
        return status;
    }
    place->generation = side->generation;
    place->orphaned = false;
    place->address =
        pages == 0 ? queue->small + (uint64_t)place->slot * queue->small_nbytes : side->windows[place->slot].base;
    place->nbytes = pages == 0 ? queue->small_nbytes : pages * queue->page_nbytes;
    side->used[place->slot] = true;
    return STATUS_OK;
}

enum status queue_side_finish(struct queue_side *side, const struct queue_place *place)
{
    pthread_mutex_lock(&side->lock);
    enum status status = STATUS_NOT_OWNED;
    if (place->generation == side->generation)
        status = queue_finish(&side->queue, side->row, place->slot);
    pthread_mutex_unlock(&side->lock);
    return status;
}

void queue_side_end(struct queue_side *side, const struct queue_place *place, enum queue_end end)
{
    pthread_mutex_lock(&side->lock);
    if (place->generation == side->generation && end != QUEUE_END_GONE) {
        side->used[place->slot] = false;
        if (end == QUEUE_END_FREE || queue_give_back(&side->queue, side->row, place->slot) != STATUS_OK)
            (void)queue_release(&side->queue, side->row, place->slot);
    }
    pthread_mutex_unlock(&side->lock);
    if (place->orphaned)
        munmap(place->address, place->nbytes);
}

enum status queue_side_map_private(struct queue_side *side, const struct queue_place *place, uint8_t **base)
{
    pthread_mutex_lock(&side->lock);
    const bool shared =
        place->generation == side->generation && place->nbytes >= side->queue.page_nbytes && queue_side_has_file(side);
    void *memory =
        mmap(NULL, place->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | (shared ? 0 : MAP_ANONYMOUS),
             shared ? side->fd : -1, shared ? (off_t)queue_window_offset(&side->queue, place->slot) : 0);
    if (memory != MAP_FAILED && !shared)
        memcpy(memory, place->address, place->nbytes);
    pthread_mutex_unlock(&side->lock);
    if (memory == MAP_FAILED)
        return STATUS_OS;
    *base = memory;
    return STATUS_OK;
}

/* -- the dead ---------------------------------------------------------------------------------------------------- */

/* The lock of a dead row is ours while we reap it, so the row is nobody's, and two processes do not reap at a time. */
static bool row_reap(struct queue_side *side, uint32_t row)
{
    if (lock_take(side->fd, row) != STATUS_OK)
        return false; /* its owner is alive, or the kernel did not say that it is dead */
    const bool dead = shared_load_acquire(&side->queue.rows[row].attached) != 0;
    if (dead)
        (void)dead_reap(&side->queue, row, &side->journal);
    lock_drop(side->fd, row);
    return dead;
}

static unsigned reap_locked(struct queue_side *side, bool all)
{
    const struct queue *queue = &side->queue;
    unsigned reaped = 0;
    if (side_ready(side) != STATUS_OK || !queue_side_has_file(side))
        return 0;
    uint64_t owners[QUEUE_MAX_PROCESSES / 64 + 1] = {0};
    for (uint32_t slot = 0; !all && slot < queue->slot_count; slot++) {
        const uint32_t row = word_row(shared_load_acquire(&queue->slots[slot].word));
        owners[row / 64] |= UINT64_C(1) << row % 64;
    }
    const uint32_t high_water = shared_load_acquire(&queue->head->high_water);
    for (uint32_t row = 1; row <= high_water && row <= queue->max_processes; row++)
        if (row != side->row && (all || (owners[row / 64] >> row % 64 & 1) != 0) &&
            shared_load_acquire(&queue->rows[row].attached) != 0)
            reaped += row_reap(side, row);
    return reaped;
}

unsigned queue_side_reap(struct queue_side *side, bool all)
{
    pthread_mutex_lock(&side->lock);
    unsigned reaped = reap_locked(side, all);
    pthread_mutex_unlock(&side->lock);
    return reaped;
}

/* A process that is killed between the two steps delays the next look by a moment. A number from the future is that of
 * a container with another clock. */
static unsigned look_locked(struct queue_side *side)
{
    shared_u64 *looked = &side->queue.head->looked_ns;
    const uint64_t found = shared_load_relaxed(looked), now = (uint64_t)clock_monotonic_ns();
    const bool paused = now - side->used_ns >= PAUSE_NS;
    side->used_ns = now;
    if ((!paused && now >= found && now - found < LOOK_INTERVAL_NS) || side_ready(side) != STATUS_OK)
        return 0;
    return shared_swap_if(looked, found, now) || paused ? reap_locked(side, true) : 0;
}

unsigned queue_side_look(struct queue_side *side)
{
    pthread_mutex_lock(&side->lock);
    unsigned reaped = side->queue.head != NULL ? look_locked(side) : 0;
    pthread_mutex_unlock(&side->lock);
    return reaped;
}

enum status queue_side_row_alive(struct queue_side *side, uint32_t row, bool *alive)
{
    *alive = true;
    if (row == side->row)
        return STATUS_OK;
    if (!queue_side_has_file(side)) {
        errno = EBADF;
        return STATUS_OS;
    }
    enum status status = lock_look(side->fd, row);
    *alive = status != STATUS_OK;
    return status == STATUS_BUSY ? STATUS_OK : status;
}

enum status queue_side_take(struct queue_side *side, struct queue_place *place)
{
    pthread_mutex_lock(&side->lock);
    if (side->queue.head != NULL)
        (void)look_locked(side);
    enum status status = take_locked(side, place);
    pthread_mutex_unlock(&side->lock);
    return status;
}

/* -- waiting ----------------------------------------------------------------------------------------------------- */

enum status queue_side_wait(struct queue_side *side, bool for_room, uint64_t seen, int64_t timeout_ns)
{
    if (side->queue.head == NULL)
        return STATUS_TIMEOUT;
    struct queue_gate *gate = for_room ? &side->queue.head->room : &side->queue.head->items;
    const shared_u32 *low = (const shared_u32 *)&gate->events; /* both architectures are little-endian */
    const int64_t spin_ns = timeout_ns < QUEUE_SPIN_NS ? timeout_ns : QUEUE_SPIN_NS;
    if (futex_spin(low, (uint32_t)seen, spin_ns))
        return STATUS_OK;
    struct queue_row *row = side->row != 0 ? &side->queue.rows[side->row] : NULL;
    if (row != NULL)
        shared_store_relaxed(&row->waits, for_room ? 2 : 1);
    enum futex_result result = futex_sleep(low, (uint32_t)seen, &gate->sleepers, timeout_ns);
    if (row != NULL)
        shared_store_relaxed(&row->waits, 0);
    if (result == FUTEX_INTERRUPTED)
        return STATUS_INTERRUPTED;
    return shared_load_acquire(&gate->events) != seen ? STATUS_OK : STATUS_TIMEOUT;
}
