/* The writing side of an attachment: a slot that nobody can read, with room, in space that was reserved. See
 * attachment.h.
 *
 *     pick    look at the data file -> drop what a dead publisher left -> a free slot that is large enough
 *             -> none: take dead readers' rows back -> none: reserve a new extent for an empty slot
 *             -> none: every slot is held
 */
#include "attachment.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include "descriptors.h"
#include "slots.h"
#include "space.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static bool slot_find(const struct control *control, uint64_t free, uint64_t least, uint64_t most, unsigned *found)
{
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        uint64_t capacity = shared_load_acquire(&control->slots[slot].capacity);
        if ((free & slot_bit(slot)) != 0 && capacity >= least && capacity <= most) {
            *found = slot;
            return true;
        }
    }
    return false;
}

/* Give a free slot's space back. The capacity goes first: a publisher killed here leaves a slot without space. */
static void slot_release(struct attachment *a, unsigned slot)
{
    struct slot_extent *extent = &a->channel.control->slots[slot];
    uint64_t capacity = shared_load_relaxed(&extent->capacity);
    if (capacity == 0)
        return;
    shared_store_release(&extent->capacity, 0);
    mapping_drop(a, slot);
    space_release(a->data_fd, shared_load_relaxed(&extent->offset), capacity);
}

/* Note that the channel has more slots than ever, or a quarter more bytes than when this was last noted: so a value
 * that grows a little with each version fills no log. Every channel gets two slots, which is no growth. */
static void growth_note(struct attachment *a)
{
    struct journal_entry entry = {.kind = JOURNAL_GREW};
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        const uint64_t nbytes = shared_load_relaxed(&a->channel.control->slots[slot].capacity);
        entry.slots += nbytes != 0;
        entry.nbytes += nbytes;
    }
    const bool begins = a->told_slots < 2;
    if (entry.slots <= a->told_slots && entry.nbytes < a->told_nbytes + a->told_nbytes / 4)
        return;
    a->told_slots = entry.slots > a->told_slots ? entry.slots : a->told_slots;
    a->told_nbytes = entry.nbytes > a->told_nbytes ? entry.nbytes : a->told_nbytes;
    if (!begins)
        journal_add(&a->journal, entry);
}

static enum status slot_reserve(struct attachment *a, unsigned slot, uint64_t nbytes)
{
    struct control *control = a->channel.control;
    uint64_t length = page_round(nbytes);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t offset = channel_find_gap(control, page_round(sizeof(struct data_header)), length, page);
    enum status status = space_reserve(a->data_fd, offset, length);
    if (status != STATUS_OK)
        return status;
    shared_store_release(&control->slots[slot].offset, offset);
    shared_store_release(&control->slots[slot].capacity, length);
    if (offset + length > a->reserved_nbytes)
        a->reserved_nbytes = offset + length;
    growth_note(a);
    status = slot_map(a, slot);
    if (status == STATUS_OK) /* touch the pages in one call; an older kernel touches them one by one later */
        (void)madvise(a->maps[slot].base, length, MADV_POPULATE_WRITE);
    return status;
}

/* Give back all space of the data file, behind its header, that belongs to no slot. The extents lie inside the file. */
static void gaps_punch(struct attachment *a, uint64_t file_nbytes)
{
    const struct slot_extent *slots = a->channel.control->slots;
    for (uint64_t start = page_round(sizeof(struct data_header)), next; start < file_nbytes; start = next) {
        bool covered = false;
        next = file_nbytes;
        for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS && !covered; slot++) {
            uint64_t offset = shared_load_relaxed(&slots[slot].offset),
                     capacity = shared_load_relaxed(&slots[slot].capacity);
            covered = capacity != 0 && offset <= start && start < offset + capacity;
            if (covered)
                next = offset + capacity;
            else if (capacity != 0 && offset > start && offset < next)
                next = offset;
        }
        if (!covered)
            space_release(a->data_fd, start, next - start);
    }
}

/* Give up the extents that a publisher found when it came.
 *
 * After a crash of the machine the slot table may be a mixture of several moments: lines of it reach the disk in any
 * order. Then entries overlap one another, or the latest. The latest's own entry is right, since it was on the disk
 * before `latest` (a durable publisher saw to it), and so are those of slots that living readers hold: they pinned them
 * since. All others are cleared, and their bytes are not written: the space that this publisher reserves overlaps with
 * no entry that is left. One that is taken now is cleared later, when it is free; a reader's row may still say of a
 * moment before the crash what it holds. Nobody can use an entry that leaves the file. */
static void inherited_drop(struct attachment *a, uint64_t free)
{
    struct stat stat;
    if (a->inherited == 0 || !descriptor_stat(a->data_fd, &a->data_file, &stat))
        return;
    bool dropped = a->inherited == UINT64_MAX; /* the first time: space that was reserved for no slot yet goes, too */
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        struct slot_extent *extent = &a->channel.control->slots[slot];
        uint64_t offset = shared_load_relaxed(&extent->offset), capacity = shared_load_relaxed(&extent->capacity);
        bool exists = slot < a->channel.max_slots && extent_is_inside(offset, capacity, (uint64_t)stat.st_size);
        bool empty = capacity == 0;
        if ((a->inherited & slot_bit(slot)) == 0 || (exists && !empty && (free & slot_bit(slot)) == 0))
            continue;
        a->inherited &= ~slot_bit(slot);
        if (empty)
            continue;
        shared_store_release(&extent->capacity, 0);
        mapping_drop(a, slot);
        dropped = true;
    }
    if (dropped)
        gaps_punch(a, (uint64_t)stat.st_size);
}

/* The slots that may not be written: those of channel_taken(), those that another thread writes, and the bases of the
 * versions in them. */
static uint64_t attachment_taken(const struct attachment *a)
{
    const uint64_t taken = channel_taken(&a->channel) | a->reserved;
    uint64_t bases = 0;
    for (unsigned slot = 0; slot < a->channel.max_slots; slot++)
        bases |= (taken & slot_bit(slot)) != 0 ? a->bases[slot] : 0;
    return taken | bases;
}

/* The slots that this publisher may write, or give space to. */
static uint64_t slots_free(struct attachment *a)
{
    uint64_t free = ~attachment_taken(a);
    inherited_drop(a, free);
    return free & ~a->inherited;
}

enum status attachment_pick_ready(struct attachment *a, uint64_t nbytes, unsigned *slot)
{
    uint64_t free = ~attachment_taken(a);
    return slot_find(a->channel.control, free, nbytes, UINT64_MAX, slot) ? STATUS_OK : STATUS_NO_SLOT;
}

/* Somebody shortened the data file. Slots that are free and not in it any more have no space from here on. Those that
 * are held keep their entries until they are free, as inherited ones do, so that nothing is put there; the next use of
 * their bytes is a signal, which cannot be avoided. */
static enum status truncated_drop(struct attachment *a, uint64_t file_nbytes)
{
    uint64_t free = ~attachment_taken(a);
    bool lost = false;
    a->reserved_nbytes = file_nbytes;
    if (file_nbytes < sizeof(struct data_header)) /* otherwise nobody could attach any more */
        (void)attachment_format_data(a->data_fd, a->channel.control->id);
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        struct slot_extent *extent = &a->channel.control->slots[slot];
        uint64_t offset = shared_load_relaxed(&extent->offset), capacity = shared_load_relaxed(&extent->capacity);
        if (capacity == 0 || extent_is_inside(offset, capacity, file_nbytes))
            continue;
        lost |= slot == latest_slot(channel_latest(&a->channel));
        a->inherited |= slot_bit(slot);
        if ((free & slot_bit(slot)) == 0)
            continue;
        shared_store_release(&extent->capacity, 0);
        mapping_drop(a, slot);
    }
    return lost ? STATUS_TRUNCATED : STATUS_OK;
}

/* Find out what others have done to the data file, or to its descriptor, with one system call per version. */
static enum status data_look(struct attachment *a)
{
    struct stat stat;
    if (!descriptor_stat(a->data_fd, &a->data_file, &stat))
        return STATUS_OS;
    if (a->role != ROLE_PUBLISHER)
        return STATUS_OK;
    if (a->named && stat.st_nlink == 0)
        return STATUS_UNLINKED;
    return (uint64_t)stat.st_size < a->reserved_nbytes ? truncated_drop(a, (uint64_t)stat.st_size) : STATUS_OK;
}

static enum status pick_locked(struct attachment *a, uint64_t nbytes, unsigned *slot)
{
    struct control *control = a->channel.control;
    if (a->role == ROLE_PUBLISHER && a->forked)
        return STATUS_FORKED;
    enum status status = data_look(a);
    if (status != STATUS_OK)
        return status;
    if (a->inherited == UINT64_MAX)
        attachment_reclaim(a); /* a row may say what its owner held before a crash */
    uint64_t free = slots_free(a);
    bool ready = slot_find(control, free, nbytes, UINT64_MAX, slot);
    if (!ready && attachment_reclaim(a) != 0) { /* the dead first: memory must not grow with kills */
        free = slots_free(a);
        ready = slot_find(control, free, nbytes, UINT64_MAX, slot);
    }
    for (unsigned other = 0; other < CHANNEL_MAX_SLOTS; other++) {
        bool small = shared_load_relaxed(&control->slots[other].capacity) < nbytes;
        bool extra = other >= control->keep_slots && !(ready && other == *slot);
        if ((free & slot_bit(other)) != 0 && (small || extra))
            slot_release(a, other);
    }
    if (ready)
        return STATUS_OK;
    if (!slot_find(control, free, 0, 0, slot))
        return STATUS_NO_SLOT;
    return slot_reserve(a, *slot, nbytes);
}

enum status attachment_pick(struct attachment *a, uint64_t nbytes, unsigned *slot)
{
    pthread_mutex_lock(&a->lock);
    enum status status = pick_locked(a, nbytes, slot);
    pthread_mutex_unlock(&a->lock);
    return status;
}

/* The extent is written first, so that no other is put there. Without the space behind it nobody uses it. */
static enum status extent_claim(struct attachment *a, uint64_t nbytes, unsigned *slot, uint64_t *offset)
{
    struct control *control = a->channel.control;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (a->role != ROLE_PUBLISHER || a->forked)
        return STATUS_FORKED;
    if (!attachment_has_data(a))
        return STATUS_OS;
    if (!slot_find(control, slots_free(a), 0, 0, slot))
        return STATUS_NO_SLOT;
    *offset = channel_find_gap(control, page_round(sizeof(struct data_header)), nbytes, page);
    shared_store_release(&control->slots[*slot].offset, *offset);
    shared_store_release(&control->slots[*slot].capacity, nbytes);
    a->reserved |= slot_bit(*slot);
    return STATUS_OK;
}

enum status attachment_reserve(struct attachment *a, uint64_t nbytes, unsigned *slot)
{
    const uint64_t length = page_round(nbytes);
    uint64_t offset;
    pthread_mutex_lock(&a->lock);
    enum status status = extent_claim(a, length, slot, &offset);
    pthread_mutex_unlock(&a->lock);
    if (status != STATUS_OK)
        return status;
    status = space_reserve(a->data_fd, offset, length); /* takes long */
    pthread_mutex_lock(&a->lock);
    if (status == STATUS_OK) {
        if (offset + length > a->reserved_nbytes)
            a->reserved_nbytes = offset + length;
        growth_note(a);
        status = slot_map(a, *slot);
    }
    if (status != STATUS_OK) {
        int cause = errno;
        slot_release(a, *slot);
        a->reserved &= ~slot_bit(*slot);
        errno = cause;
    }
    pthread_mutex_unlock(&a->lock);
    return status;
}

void attachment_unreserve(struct attachment *a, unsigned slot)
{
    pthread_mutex_lock(&a->lock);
    a->reserved &= ~slot_bit(slot);
    pthread_mutex_unlock(&a->lock);
}

uint64_t attachment_claim_spare(struct attachment *a, uint64_t most, uint64_t *nbytes)
{
    uint64_t claimed;
    *nbytes = 0;
    pthread_mutex_lock(&a->lock);
    const uint64_t free = a->role == ROLE_PUBLISHER && !a->forked ? slots_free(a) : 0;
    for (unsigned slot = 0; slot < a->channel.max_slots; slot++) {
        const uint64_t capacity = shared_load_relaxed(&a->channel.control->slots[slot].capacity);
        if ((free & slot_bit(slot)) == 0 || capacity <= most)
            continue;
        a->spare |= slot_bit(slot);
        *nbytes += capacity;
    }
    a->reserved |= a->spare;
    claimed = a->spare;
    pthread_mutex_unlock(&a->lock);
    return claimed;
}

/* The extent is there until the space is gone, so nothing else is put into that meanwhile. A slot that was claimed
 * twice, since a caller was interrupted, is released once. */
static void spare_release(struct attachment *a, unsigned slot)
{
    struct slot_extent *extent = &a->channel.control->slots[slot];
    pthread_mutex_lock(&a->lock);
    const bool mine = (a->spare & slot_bit(slot)) != 0 && !a->forked;
    const uint64_t offset = shared_load_relaxed(&extent->offset), capacity = shared_load_relaxed(&extent->capacity);
    const struct slot_mapping map = mine && a->loans[slot] == 0 ? a->maps[slot] : (struct slot_mapping){0};
    if (map.base != NULL)
        a->maps[slot] = (struct slot_mapping){0};
    else if (mine)
        mapping_drop(a, slot);
    a->spare &= ~slot_bit(slot);
    pthread_mutex_unlock(&a->lock);
    if (!mine)
        return;
    if (map.base != NULL)
        munmap(map.base, map.length);
    space_release(a->data_fd, offset, capacity);
    pthread_mutex_lock(&a->lock);
    shared_store_release(&extent->capacity, 0);
    a->reserved &= ~slot_bit(slot);
    pthread_mutex_unlock(&a->lock);
}

void attachment_release_spare(struct attachment *a, uint64_t claimed)
{
    for (unsigned slot = 0; slot < a->channel.max_slots; slot++)
        if ((claimed & slot_bit(slot)) != 0)
            spare_release(a, slot);
}

static enum status grow_locked(struct attachment *a, uint64_t nbytes)
{
    unsigned slot;
    uint64_t free = ~attachment_taken(a);
    if (slot_find(a->channel.control, free, nbytes, UINT64_MAX, &slot))
        return STATUS_OK;
    if (attachment_reclaim(a) != 0 && slot_find(a->channel.control, ~attachment_taken(a), nbytes, UINT64_MAX, &slot))
        return STATUS_OK;
    if (!slot_find(a->channel.control, free, 0, 0, &slot))
        return STATUS_NO_SLOT;
    return attachment_has_data(a) ? slot_reserve(a, slot, nbytes) : STATUS_OS;
}

enum status attachment_grow(struct attachment *a, uint64_t nbytes)
{
    pthread_mutex_lock(&a->lock);
    enum status status = grow_locked(a, nbytes);
    pthread_mutex_unlock(&a->lock);
    return status;
}
