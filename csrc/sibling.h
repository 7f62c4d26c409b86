/* Forking a sibling: a copy of this process whose parent is this process's parent.
 *
 * The parent waits for the copy and learns its exit status as for a child that it started itself, whatever becomes of
 * this process afterwards. The C library has no function for that, and its fork() also runs the handlers that libraries
 * have registered with pthread_atfork(); this runs none. They exist to put right the locks and pools of threads that
 * the copy does not have, so the caller must be the only thread of this process.
 */
#ifndef UNTORN_SIBLING_H
#define UNTORN_SIBLING_H

#include <sys/types.h>

/* As fork(): the id of the copy, 0 in the copy, -1 with errno set. ENOTSUP: this C library or kernel does not say where
 * it keeps the thread's id, which has to change in the copy. The kernel writes the id to `*pid` before the copy runs,
 * so a process that shares that memory learns of the copy even if this process is killed before the call returns. */
pid_t sibling_fork(pid_t *pid);

#endif
