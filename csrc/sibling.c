#include "sibling.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

/* The place where the C library keeps the id of this thread; NULL with errno set if it is not known. */
static pid_t *sibling_tid_place(void)
{
    pid_t *place = NULL;
    if (prctl(PR_GET_TID_ADDRESS, &place, 0, 0, 0) == 0 && place != NULL && *place == (pid_t)syscall(SYS_gettid))
        return place;
    errno = ENOTSUP;
    return NULL;
}

pid_t sibling_fork(pid_t *pid)
{
    const unsigned long flags =
        CLONE_PARENT | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
    struct robust_list_head *locks = NULL;
    size_t nbytes = 0;
    pid_t *tid = sibling_tid_place();
    if (tid == NULL)
        return -1;
    const bool has_locks = syscall(SYS_get_robust_list, 0, &locks, &nbytes) == 0 && locks != NULL;
#if defined(__x86_64__)
    const pid_t found = (pid_t)syscall(SYS_clone, flags, NULL, pid, tid, NULL);
#else
    const pid_t found = (pid_t)syscall(SYS_clone, flags, NULL, pid, NULL, tid);
#endif
    if (found == 0 && has_locks)
        syscall(SYS_set_robust_list, locks, nbytes); /* a copy has none until it says so, as in fork() */
    return found;
}
