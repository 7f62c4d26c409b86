/* Descriptors that are kept. None of them is 0, 1 or 2.
 *
 * A program may start with these closed, or close them, as daemons do. The next file opened gets the lowest number that
 * is free, and whatever writes to the standard error, a C library or a child, would then write into a channel.
 */
#ifndef UNTORN_DESCRIPTORS_H
#define UNTORN_DESCRIPTORS_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { DESCRIPTOR_FIRST = 3 };

/* The same description under a number that may be kept. Takes `fd` over; -1 with errno set if it failed. */
static inline int descriptor_keep(int fd)
{
    if (fd < 0 || fd >= DESCRIPTOR_FIRST)
        return fd;
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, DESCRIPTOR_FIRST), cause = errno;
    close(fd);
    errno = cause;
    return kept;
}

#endif
