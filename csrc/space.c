/* Reserving room in a file. See space.h. */
#include "space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef TMPFS_MAGIC
#define TMPFS_MAGIC 0x01021994
#endif

/* A reservation of less than this is made without asking how much memory there is. */
static const uint64_t LARGE_NBYTES = 64 << 20;
/* The number of tries of the smallest segment before the caller is asked to handle its signals. */
enum { SEGMENT_TRIES = 10 };

/* Return the memory that the kernel could still give, swap included; UINT64_MAX if it does not say. */
static uint64_t memory_available(void)
{
    char line[128];
    unsigned long long kilobytes, total = 0;
    bool found = false;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        bool available = sscanf(line, "MemAvailable: %llu", &kilobytes) == 1;
        if (available || sscanf(line, "SwapFree: %llu", &kilobytes) == 1)
            total += kilobytes;
        found |= available;
    }
    if (file != NULL)
        fclose(file);
    return found ? total * 1024 : UINT64_MAX;
}

/* Files in memory have no limit of their own, or one that is more than there is: reserving would go on until the kernel
 * kills a process. */
static bool memory_is_short(int fd, uint64_t nbytes)
{
    struct statfs stat;
    return nbytes >= LARGE_NBYTES && fstatfs(fd, &stat) == 0 && stat.f_type == TMPFS_MAGIC &&
           memory_available() < nbytes;
}

enum status space_status(void)
{
    switch (errno) {
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EFBIG: return STATUS_NO_SPACE;
    default: return STATUS_OS;
    }
}

/* A file system may take back all of a call that a signal interrupts. So after a signal the next segment is half as
 * large, down to a page, and the space reserved before stays: a steady stream of signals slows this down, but cannot
 * stop it. */
static enum status segments_reserve(int fd, uint64_t offset, uint64_t nbytes)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = offset + nbytes;
    uint64_t segment = nbytes;
    for (int tries = 0; offset < end;) {
        if (segment > end - offset)
            segment = end - offset;
        errno = posix_fallocate(fd, (off_t)offset, (off_t)segment);
        if (errno == 0) {
            offset += segment;
            tries = 0;
        } else if (errno != EINTR) {
            return space_status();
        } else if (segment > page) {
            segment = segment / 2 / page * page < page ? page : segment / 2 / page * page;
        } else if (++tries == SEGMENT_TRIES) {
            return STATUS_INTERRUPTED;
        }
    }
    return STATUS_OK;
}

enum status space_reserve(int fd, uint64_t offset, uint64_t nbytes)
{
    if (memory_is_short(fd, nbytes)) {
        errno = ENOMEM;
        return STATUS_NO_SPACE;
    }
    enum status status = segments_reserve(fd, offset, nbytes);
    if (status != STATUS_OK) {
        int cause = errno;
        space_release(fd, offset, nbytes);
        errno = cause;
    }
    return status;
}

void space_release(int fd, uint64_t offset, uint64_t nbytes)
{
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)nbytes);
}
