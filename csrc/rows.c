/* Locks of the control file, and reader rows. See rows.h. */
#include "rows.h"

#include <fcntl.h>
#include <unistd.h>

#include "futex.h"

static struct flock byte_lock(short type, uint32_t byte)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

bool lock_take(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_WRLCK, byte);
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

void lock_drop(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_UNLCK, byte);
    fcntl(fd, F_OFD_SETLK, &lock);
}

bool lock_is_held_elsewhere(int fd, uint32_t byte)
{
    struct flock lock = byte_lock(F_WRLCK, byte);
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void commons_raise_high(struct reader_commons *commons, uint32_t row)
{
    uint32_t high = load_relaxed(&commons->high);
    while (high < row && !atomic_compare_exchange_weak_explicit(&commons->high, &high, row, memory_order_release,
                                                                memory_order_relaxed)) {
    } /* pairs with channel_held; comes before the row's first bit */
}

uint32_t row_take(const struct channel *channel, int fd, uint64_t held)
{
    for (uint32_t row = 1; row <= channel->max_readers; row++) {
        if (!lock_take(fd, row))
            continue;
        struct reader_row *line = &channel->rows[row];
        commons_raise_high(channel->commons, row);
        line->attached_ns = clock_wall_ns();
        store_relaxed(&line->pid, (uint32_t)getpid());
        store_release(&line->held, held); /* pairs with channel_held */
        return row;
    }
    return 0;
}
