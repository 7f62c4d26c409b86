/* System calls that fail when a test says so: loaded before the C library (LD_PRELOAD), steered through errno_plan.
 *
 * The calls are those by which untorn can fail halfway; every other one goes through as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
    char call[16];
    int number, skip, times, raise_signal;
} plan;
static int failed;

/* Let `call` fail with errno `number`, `times` times (negative: always) after `skip` that go well; with a signal each time,
 * unless that is 0. Returns how often the plan before this one has failed a call. */
int errno_plan(const char *call, int number, int skip, int times, int raise_signal)
{
    int before = failed;
    strncpy(plan.call, call, sizeof plan.call - 1);
    plan.number = number;
    plan.skip = skip;
    plan.times = times;
    plan.raise_signal = raise_signal;
    failed = 0;
    return before;
}

static int fails(const char *call)
{
    if (plan.times == 0 || strcmp(plan.call, call) != 0 || plan.skip-- > 0)
        return 0;
    plan.skip = 0;
    if (plan.times > 0)
        plan.times--;
    failed++;
    if (plan.raise_signal != 0)
        raise(plan.raise_signal);
    errno = plan.number;
    return plan.number;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    struct flock *lock = argument;
    if (command == F_OFD_SETLK && lock->l_type != F_UNLCK && fails("setlk"))
        return -1;
    if (command == F_OFD_GETLK && fails("getlk"))
        return -1;
    return NEXT(fcntl64)(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return fcntl64(fd, command, argument);
}

int posix_fallocate64(int fd, off64_t offset, off64_t nbytes)
{
    return fails("fallocate") ? plan.number : NEXT(posix_fallocate64)(fd, offset, nbytes);
}

int posix_fallocate(int fd, off_t offset, off_t nbytes)
{
    return posix_fallocate64(fd, offset, nbytes);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (strncmp(path, "/proc/", 6) == 0 && strstr(path, "/fd/") != NULL && fails("open"))
        return -1;
    return NEXT(open64)(path, flags, mode);
}

ssize_t pwrite64(int fd, const void *bytes, size_t nbytes, off64_t offset)
{
    return fails("pwrite") ? -1 : NEXT(pwrite64)(fd, bytes, nbytes, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t nbytes, off_t offset)
{
    return pwrite64(fd, bytes, nbytes, offset);
}

void *mmap64(void *address, size_t nbytes, int protection, int flags, int fd, off64_t offset)
{
    if (fd >= 0 && (flags & MAP_SHARED) != 0 && fails("mmap"))
        return MAP_FAILED;
    return NEXT(mmap64)(address, nbytes, protection, flags, fd, offset);
}

void *mmap(void *address, size_t nbytes, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, nbytes, protection, flags, fd, offset);
}
