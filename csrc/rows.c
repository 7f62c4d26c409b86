/* Locks of the control file, and reader rows. See rows.h. */
#include "rows.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "futex.h"

enum { LOCK_TRIES = 100 };

static struct flock byte_lock(short type, uint32_t byte)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

/* None of these commands waits, so a signal that comes in between costs a second try. */
static enum status lock_call(int fd, int command, struct flock *lock)
{
    for (int attempt = 0; attempt < LOCK_TRIES; attempt++) {
        if (fcntl(fd, command, lock) == 0)
            return STATUS_OK;
        if (errno != EINTR)
            break;
    }
    return command == F_OFD_SETLK && (errno == EAGAIN || errno == EACCES) ? STATUS_BUSY : STATUS_OS;
}

enum status lock_take(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_WRLCK, byte);
    return lock_call(fd, F_OFD_SETLK, &lock);
}

void lock_drop(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_UNLCK, byte);
    (void)lock_call(fd, F_OFD_SETLK, &lock);
}

enum status lock_look(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_WRLCK, byte);
    enum status status = lock_call(fd, F_OFD_GETLK, &lock);
    return status == STATUS_OK && lock.l_type != F_UNLCK ? STATUS_BUSY : status;
}

/* All bits are set in the row of a reader that was killed in the last resort of channel_pin. */
void row_note_dead(const struct channel *channel, uint32_t row, struct journal *journal)
{
    const struct reader_row *line = &channel->rows[row];
    const uint64_t held = shared_load_relaxed(&line->held);
    struct journal_entry entry = {.kind = JOURNAL_RECLAIMED, .pid = shared_load_relaxed(&line->pid)};
    for (unsigned slot = 0; held != 0 && slot < channel->max_slots; slot++) {
        const uint64_t nbytes = shared_load_relaxed(&channel->control->slots[slot].capacity);
        entry.slots += (held & slot_bit(slot)) != 0 && nbytes != 0;
        entry.nbytes += (held & slot_bit(slot)) != 0 ? nbytes : 0;
    }
    if (entry.slots != 0)
        journal_add(journal, entry);
}

enum status row_take(const struct channel *channel, int fd, uint64_t held, struct journal *journal, uint32_t *taken)
{
    for (uint32_t row = 1; row <= channel->max_readers; row++) {
        enum status status = lock_take(fd, row);
        if (status == STATUS_BUSY)
            continue;
        if (status != STATUS_OK)
            return status;
        struct reader_row *line = &channel->rows[row];
        /* pairs with channel_held; comes before the row's first bit */
        shared_raise_u32(&channel->shared->high_water, row);
        row_note_dead(channel, row, journal);
        shared_store_relaxed(&line->attached_ns, clock_wall_ns());
        shared_store_relaxed(&line->pid, (uint32_t)getpid());
        shared_store_release(&line->held, held); /* pairs with channel_held */
        *taken = row;
        return STATUS_OK;
    }
    return STATUS_NO_ROW;
}
