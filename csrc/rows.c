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

enum status row_take(const struct channel *channel, int fd, uint64_t held, uint32_t *taken)
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
        shared_store_relaxed(&line->attached_ns, clock_wall_ns());
        shared_store_relaxed(&line->pid, (uint32_t)getpid());
        shared_store_release(&line->held, held); /* pairs with channel_held */
        *taken = row;
        return STATUS_OK;
    }
    return STATUS_NO_ROW;
}
