#include "lifeline.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

static unsigned lifeline_grace_s; /* written before the handler is set */

static void lifeline_lost(int number)
{
    (void)number;
    const int before = errno;
    const struct sigaction end = {.sa_handler = SIG_DFL};
    sigaction(SIGALRM, &end, NULL);
    alarm(lifeline_grace_s);
    errno = before;
}

int lifeline_follow(int fd, unsigned grace_s)
{
    const struct sigaction lost = {.sa_handler = lifeline_lost, .sa_flags = SA_RESTART};
    lifeline_grace_s = grace_s;
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || sigaction(SIGIO, &lost, NULL) != 0 || fcntl(fd, F_SETOWN, getpid()) != 0 ||
        fcntl(fd, F_SETFL, flags | O_ASYNC) != 0)
        return -1;
    struct pollfd end = {.fd = fd}; /* its last writer may have gone before */
    if (poll(&end, 1, 0) > 0)
        lifeline_lost(SIGIO);
    return 0;
}
