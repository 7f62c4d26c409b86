/* Descriptors that are kept for long. None of them is 0, 1 or 2.
 *
 * A program may start with these closed, or close them, as daemons do. The next file opened gets the lowest number that
 * is free, and a C library or a child that writes to the standard error would then write into a channel.
 *
 * Conversely, code that closes descriptors that it does not own (os.closerange in a daemoniser, dup2) lets a kept
 * number become that of another file. So each descriptor is kept together with the identity of its file, which is
 * checked before use: to reserve space in, map, lock or close another file would be worse than any error.
 */
#ifndef UNTORN_DESCRIPTORS_H
#define UNTORN_DESCRIPTORS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
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

/* The file that a descriptor led to when it was kept; zeros if the kernel did not say, and then no check is made. */
struct descriptor_file {
    dev_t device;
    ino_t inode;
};

static inline struct descriptor_file descriptor_file(int fd)
{
    struct stat stat;
    return fstat(fd, &stat) == 0 ? (struct descriptor_file){stat.st_dev, stat.st_ino} : (struct descriptor_file){0};
}

static inline bool descriptor_file_is(const struct descriptor_file *file, const struct stat *stat)
{
    return (stat->st_dev == file->device && stat->st_ino == file->inode) || (file->device == 0 && file->inode == 0);
}

/* fstat of the file that the descriptor led to when it was kept; false, with errno, if it leads to another or none. */
static inline bool descriptor_stat(int fd, const struct descriptor_file *file, struct stat *stat)
{
    if (fstat(fd, stat) != 0)
        return false;
    if (descriptor_file_is(file, stat))
        return true;
    errno = EBADF;
    return false;
}

/* The same as a plain answer. An error that is not about the descriptor is no sign that it leads to another file. */
static inline bool descriptor_is(int fd, const struct descriptor_file *file)
{
    struct stat stat;
    return descriptor_stat(fd, file, &stat) || errno != EBADF;
}

#endif
