/* The windows of a queue's slots, as one process maps and reserves them. See queue_window.h. */
#include "queue_window.h"

#include <sys/mman.h>

#include "slots.h"
#include "space.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Windows of at least this size are touched in one call when they are reserved. */
static const uint64_t POPULATE_NBYTES = 64 << 10;

uint64_t queue_window_offset(const struct queue *queue, uint32_t slot)
{
    return queue->windows_offset + slot * queue->window_nbytes;
}

static void window_drop(struct queue_side *side, uint32_t slot)
{
    struct queue_window *window = &side->windows[slot];
    if (window->base != NULL)
        munmap(window->base, window->length);
    *window = (struct queue_window){0};
}

enum status queue_window_map(struct queue_side *side, uint32_t slot, uint64_t length)
{
    struct queue_window *window = &side->windows[slot];
    if (window->base != NULL && window->length >= length)
        return STATUS_OK;
    struct stat stat;
    if (!descriptor_stat(side->fd, &side->file, &stat))
        return STATUS_OS;
    if ((uint64_t)stat.st_size < queue_window_offset(&side->queue, slot) + length)
        return STATUS_FORMAT; /* somebody shortened the file */
    window_drop(side, slot);
    void *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, side->fd,
                      (off_t)queue_window_offset(&side->queue, slot));
    if (base == MAP_FAILED)
        return STATUS_OS;
    *window = (struct queue_window){base, length};
    return STATUS_OK;
}

/* Give back what is reserved of a window behind its first `pages`. A process that is killed while it reserves or gives
 * back leaves QUEUE_DIRTY, and the next owner gives back all that should not be there. */
static void window_trim(struct queue_side *side, uint32_t slot, uint64_t pages)
{
    const struct queue *queue = &side->queue;
    shared_u64 *backed = &queue->slots[slot].backed;
    const uint64_t found = shared_load_relaxed(backed), before = found & ~QUEUE_DIRTY, page = queue->page_nbytes;
    const bool dirty = (found & QUEUE_DIRTY) != 0;
    if (before <= pages && !dirty)
        return;
    const uint64_t rest = before < pages ? before : pages;
    const uint64_t start = rest * page, end = dirty ? queue->window_nbytes : before * page;
    shared_store_release(backed, rest | QUEUE_DIRTY);
    if (start < end)
        space_release(side->fd, queue_window_offset(queue, slot) + start, end - start);
    shared_store_release(backed, rest);
}

/* Take the pages of one free slot that has some; false if none has. */
static bool space_reclaim(struct queue_side *side)
{
    const struct queue *queue = &side->queue;
    uint32_t slot;
    if (queue_claim(queue, side->row, UINT32_MAX, &slot) != STATUS_OK)
        return false;
    const bool some = slot_pages(queue, slot) != 0;
    if (some) {
        window_trim(side, slot, 0);
        (void)space_change(queue, slot, 0);
    }
    (void)queue_unclaim(queue, side->row, slot);
    return some;
}

/* Reserve the pages that are not yet. */
static enum status window_reserve(struct queue_side *side, uint32_t slot, uint64_t pages)
{
    const struct queue *queue = &side->queue;
    shared_u64 *backed = &queue->slots[slot].backed;
    const uint64_t before = shared_load_relaxed(backed), page = queue->page_nbytes;
    if (before >= pages)
        return STATUS_OK;
    shared_store_release(backed, before | QUEUE_DIRTY);
    enum status status =
        space_reserve(side->fd, queue_window_offset(queue, slot) + before * page, (pages - before) * page);
    shared_store_release(backed, status == STATUS_OK ? pages : before); /* a failed reservation leaves nothing */
    if (status != STATUS_OK)
        return status;
    status = queue_window_map(side, slot, pages * page);
    if (status == STATUS_OK && (pages - before) * page >= POPULATE_NBYTES)
        (void)madvise(side->windows[slot].base + before * page, (pages - before) * page, MADV_POPULATE_WRITE);
    return status;
}

enum status queue_window_fit(struct queue_side *side, uint32_t slot, uint64_t pages)
{
    const struct queue *queue = &side->queue;
    window_trim(side, slot, pages);
    while (!space_change(queue, slot, pages))
        if (!space_reclaim(side))
            return STATUS_NO_ROOM;
    if (pages == 0)
        return STATUS_OK;
    enum status status = window_reserve(side, slot, pages);
    while (status == STATUS_NO_SPACE && space_reclaim(side)) /* the file system lacks what free slots keep */
        status = window_reserve(side, slot, pages);
    if (status == STATUS_OK)
        status = queue_window_map(side, slot, pages * queue->page_nbytes);
    if (status != STATUS_OK) {
        int cause = errno;
        (void)space_change(queue, slot, shared_load_relaxed(&queue->slots[slot].backed)); /* not more: it succeeds */
        errno = cause;
    }
    return status;
}
