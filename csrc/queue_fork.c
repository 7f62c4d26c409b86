/* Sides of queues across fork. See queue_side.h. */
#include "queue_fork.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* All sides that are followed. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct queue_side *registry;
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;

static uint8_t *memory_copy(const uint8_t *base, uint64_t length)
{
    void *copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    memcpy(copy, base, length);
    return copy;
}

static int description_duplicate(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return descriptor_keep(open(path, O_RDWR | O_CLOEXEC));
}

/* The small places are one mapping, which ends where the windows begin. */
static uint64_t small_nbytes(const struct queue_side *side)
{
    return side->shared_nbytes - (uint64_t)(side->queue.small - (uint8_t *)side->queue.head);
}

static void fork_prepare_one(struct queue_side *side)
{
    pthread_mutex_lock(&side->lock);
    side->fork_row = 0;
    side->fork_fd = queue_side_has_file(side) && side->queue.head != NULL ? description_duplicate(side->fd) : -1;
    if (side->fork_fd >= 0)
        (void)queue_row_take(&side->queue, side->fork_fd, &side->journal, &side->fork_row);
    side->fork_small = NULL;
    bool small = false;
    for (uint32_t slot = 0; slot < side->queue.slot_count; slot++) {
        const struct queue_window *window = &side->windows[slot];
        const bool windowed = slot_pages(&side->queue, slot) != 0;
        small |= side->used[slot] && !windowed;
        side->fork_copies[slot] =
            side->used[slot] && windowed && window->base != NULL ? memory_copy(window->base, window->length) : NULL;
    }
    if (small)
        side->fork_small = memory_copy(side->queue.small, small_nbytes(side));
}

static void fork_parent_one(struct queue_side *side)
{
    if (side->fork_fd >= 0)
        close(side->fork_fd); /* the child keeps the description, and with it the row, alive */
    side->fork_fd = -1;
    if (side->fork_small != NULL)
        munmap(side->fork_small, small_nbytes(side));
    for (uint32_t slot = 0; slot < side->queue.slot_count; slot++) {
        if (side->fork_copies[slot] != NULL)
            munmap(side->fork_copies[slot], side->windows[slot].length);
        side->fork_copies[slot] = NULL;
    }
    pthread_mutex_unlock(&side->lock);
}

/* Put a copy where views point to; without memory for one, a view that cannot be read is better than a torn one. */
static void memory_replace(uint8_t *base, uint64_t length, uint8_t *copy)
{
    if (copy == NULL || mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, base) == MAP_FAILED)
        mprotect(base, length, PROT_NONE);
}

/* Mappings keep a description, and so its locks, alive. So none of the parent's stays. */
static void fork_child_windows(struct queue_side *side)
{
    for (uint32_t slot = 0; slot < side->queue.slot_count; slot++) {
        struct queue_window *window = &side->windows[slot];
        if (window->base != NULL && side->fork_copies[slot] != NULL)
            memory_replace(window->base, window->length, side->fork_copies[slot]);
        else if (window->base != NULL)
            munmap(window->base, window->length);
        side->fork_copies[slot] = NULL;
        *window = (struct queue_window){0};
    }
}

static void fork_child_shared(struct queue_side *side)
{
    uint8_t *old = (uint8_t *)side->queue.head, *small = side->queue.small;
    const uint64_t length = small_nbytes(side);
    uint8_t *base = side->fork_fd < 0
                        ? MAP_FAILED
                        : mmap(NULL, side->shared_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, side->fork_fd, 0);
    if (base != MAP_FAILED) {
        struct queue *queue = &side->queue;
        queue->rows = (struct queue_row *)(base + ((uint8_t *)queue->rows - old));
        queue->slots = (struct queue_slot *)(base + ((uint8_t *)queue->slots - old));
        queue->ring = (shared_u64 *)(base + ((uint8_t *)queue->ring - old));
        queue->map = (shared_u64 *)(base + ((uint8_t *)queue->map - old));
        queue->small = base + (small - old);
        queue->head = (struct queue_head *)base;
    } else {
        side->queue.head = NULL; /* this side has ended */
    }
    munmap(old, (size_t)(small - old));
    if (side->fork_small != NULL)
        memory_replace(small, length, side->fork_small);
    else
        munmap(small, length);
    side->fork_small = NULL;
}

static void fork_child_one(struct queue_side *side)
{
    fork_child_windows(side);
    if (side->queue.head != NULL)
        fork_child_shared(side);
    if (side->fork_fd >= 0) {
        dup3(side->fork_fd, side->fd, O_CLOEXEC);
        close(side->fork_fd);
        side->fork_fd = -1;
    } else if (queue_side_has_file(side)) {
        close(side->fd);
        side->fd = -1;
    }
    memset(side->used, 0, side->queue.slot_count * sizeof *side->used);
    side->row = side->queue.head != NULL ? side->fork_row : 0;
    if (side->row != 0)
        shared_store_relaxed(&side->queue.rows[side->row].pid, (uint32_t)getpid());
    side->generation++;
    journal_clear(&side->journal);
    pthread_mutex_unlock(&side->lock);
}

static void fork_prepare(void)
{
    pthread_mutex_lock(&registry_lock);
    for (struct queue_side *side = registry; side != NULL; side = side->next)
        fork_prepare_one(side);
}

static void fork_parent(void)
{
    for (struct queue_side *side = registry; side != NULL; side = side->next)
        fork_parent_one(side);
    pthread_mutex_unlock(&registry_lock);
}

static void fork_child(void)
{
    for (struct queue_side *side = registry; side != NULL; side = side->next)
        fork_child_one(side);
    pthread_mutex_unlock(&registry_lock);
}

static void registry_start(void) { pthread_atfork(fork_prepare, fork_parent, fork_child); }

void queue_fork_follow(struct queue_side *side)
{
    pthread_once(&registry_once, registry_start);
    pthread_mutex_lock(&registry_lock);
    side->next = registry;
    if (registry != NULL)
        registry->previous = side;
    registry = side;
    pthread_mutex_unlock(&registry_lock);
}

/* Look under the lock: a neighbour may be coming or going. */
void queue_fork_forget(struct queue_side *side)
{
    pthread_mutex_lock(&registry_lock);
    if (side->next != NULL)
        side->next->previous = side->previous;
    if (side->previous != NULL)
        side->previous->next = side->next;
    else if (registry == side)
        registry = side->next;
    pthread_mutex_unlock(&registry_lock);
}
