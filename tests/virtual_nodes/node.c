#include "node.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char DEVICE[] = "eth0";
enum {
    FAILED = 1,
    PACKETS_WAITING = 10000, /* a short queue would lose packets whenever the switch has to wait for a processor */
    OWN = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC,
};

/* -- the network -------------------------------------------------------------------------------------------- */

static void check(bool done, const char *what)
{
    if (!done)
        err(FAILED, "%s", what);
}

static uint32_t address_of(int index) { return htonl(UINT32_C(0x0a4d0001) + (uint32_t)index); /* 10.77.0.1 */ }

static void set_address(int fd, struct ifreq *request, unsigned long command, uint32_t address)
{
    struct sockaddr_in with = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    memcpy(&request->ifr_addr, &with, sizeof with);
    check(ioctl(fd, command, request) == 0, "the address of a TUN device");
}

static void bring_up(int fd, const char *device)
{
    struct ifreq request = {0};
    strcpy(request.ifr_name, device);
    check(ioctl(fd, SIOCGIFFLAGS, &request) == 0, device);
    request.ifr_flags |= IFF_UP;
    check(ioctl(fd, SIOCSIFFLAGS, &request) == 0, device);
}

static int tun_open(void)
{
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    check(tun >= 0, "/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    strcpy(request.ifr_name, DEVICE);
    check(ioctl(tun, TUNSETIFF, &request) == 0, "TUNSETIFF");
    int header = sizeof(struct virtio_net_hdr);
    check(ioctl(tun, TUNSETVNETHDRSZ, &header) == 0, "TUNSETVNETHDRSZ");
    check(ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) == 0, "TUNSETOFFLOAD");
    return tun;
}

struct node_network node_network_make(int index)
{
    check(unshare(CLONE_NEWNET) == 0, "a network name space");
    struct node_network made = {.tun = tun_open(), .address = address_of(index)};
    made.name_space = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    check(made.name_space >= 0, "/proc/self/ns/net");
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    check(control >= 0, "socket");
    struct ifreq request = {.ifr_qlen = PACKETS_WAITING};
    strcpy(request.ifr_name, DEVICE);
    check(ioctl(control, SIOCSIFTXQLEN, &request) == 0, "SIOCSIFTXQLEN");
    set_address(control, &request, SIOCSIFADDR, made.address);
    set_address(control, &request, SIOCSIFNETMASK, htonl(UINT32_C(0xffffff00)));
    bring_up(control, DEVICE);
    bring_up(control, "lo");
    close(control);
    return made;
}

/* -- the first process -------------------------------------------------------------------------------------- */

static void mount_tmpfs(const char *at, const char *options)
{
    check(mount("tmpfs", at, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0, at);
}

/* Cover a file of the system with this text; one that does not exist is needed by nobody. */
static void cover(const char *path, const char *with, const char *text)
{
    FILE *file = fopen(with, "w");
    check(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0, with);
    check(mount(with, path, NULL, MS_BIND, NULL) == 0 || errno == ENOENT, path);
}

static void cover_names(const struct node_options *options)
{
    char text[8192] = "127.0.0.1 localhost\n";
    for (int i = 0; i < options->count; i++) {
        struct in_addr address = {address_of(i)};
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s node%d\n", inet_ntoa(address), i);
    }
    cover("/etc/hosts", "/tmp/.hosts", text);
    cover("/etc/resolv.conf", "/tmp/.resolv.conf", "");
}

static void make_directories(const char *path)
{
    for (size_t i = 1; i <= strlen(path); i++) {
        char part[PATH_MAX];
        if (path[i] != '/' && path[i] != '\0')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        check(mkdir(part, 0755) == 0 || errno == EEXIST, part);
    }
}

/* Give the node its own /tmp and /dev/shm. Directories to keep are opened before they are covered. */
static void mount_own(const struct node_options *options)
{
    int kept[NODE_KEPT_MAX];
    check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private mounts");
    check(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0, "/proc");
    for (int i = 0; options->kept[i]; i++) {
        kept[i] = open(options->kept[i], O_PATH | O_CLOEXEC);
        check(kept[i] >= 0, options->kept[i]);
    }
    mount_tmpfs("/tmp", "size=4g,mode=1777");
    mount_tmpfs("/dev/shm", "size=8g,mode=1777");
    for (int i = 0; options->kept[i]; i++) {
        char from[64];
        snprintf(from, sizeof from, "/proc/self/fd/%d", kept[i]);
        make_directories(options->kept[i]);
        check(mount(from, options->kept[i], NULL, MS_BIND | MS_REC, NULL) == 0, options->kept[i]);
    }
    check(mkdir("/tmp/home", 0700) == 0, "/tmp/home");
    cover_names(options);
}

static void reap_for_ever(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    for (;;) {
        int signal_number;
        sigwait(&child, &signal_number);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

static void block_child_signals(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
}

/* Process 1 of the node; a signal from inside does nothing to it. */
static void be_first(int index, const struct node_options *options, const int ready[2])
{
    char name[16];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ready[0]);
    snprintf(name, sizeof name, "node%d", index);
    prctl(PR_SET_NAME, name);
    check(sethostname(name, strlen(name)) == 0, "sethostname");
    block_child_signals();
    mount_own(options);
    check(write(ready[1], "", 1) == 1, "the process that starts a node"); /* fails if it had died before */
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    close_range(STDERR_FILENO + 1, ~0U, 0);
    reap_for_ever();
}

pid_t node_start(const struct node_network *network, int index, const struct node_options *options)
{
    int ends[2];
    char byte;
    check(pipe2(ends, O_CLOEXEC) == 0, "pipe");
    check(setns(network->name_space, CLONE_NEWNET) == 0, "setns");
    pid_t pid = (pid_t)syscall(SYS_clone, OWN | SIGCHLD, NULL, NULL, NULL, NULL); /* without a stack: as fork */
    check(pid >= 0, "a node's name spaces");
    if (pid == 0)
        be_first(index, options, ends);
    close(ends[1]);
    if (read(ends[0], &byte, 1) != 1)
        errx(FAILED, "node %d did not start; its message is above", index);
    close(ends[0]);
    return pid;
}

/* -- commands in a node ------------------------------------------------------------------------------------- */

static volatile sig_atomic_t command_pid;

static void forward(int signal_number) { kill((pid_t)command_pid, signal_number); }

static void die_of(int signal_number)
{
    signal(signal_number, SIG_DFL);
    prctl(PR_SET_DUMPABLE, 0); /* one core file is enough */
    raise(signal_number);
}

/* `alive` reads its end when the parent has died. Pids do not tell: a parent outside the node is 0, alive or dead. */
static void run_command(const int alive[2], char **command)
{
    close(alive[1]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct pollfd polled = {.fd = alive[0]};
    if (poll(&polled, 1, 0) != 0) /* it died before */
        _exit(FAILED);
    execvp(command[0], command);
    err(127, "%s", command[0]);
}

int node_enter(pid_t first, char **command)
{
    char here[PATH_MAX];
    check(getcwd(here, sizeof here) != NULL, "the current directory");
    int node = (int)syscall(SYS_pidfd_open, first, 0);
    check(node >= 0, "pidfd_open");
    check(setns(node, OWN | CLONE_NEWNET) == 0, "setns");
    close(node);
    check(chdir(here) == 0, here);
    int alive[2];
    check(pipe2(alive, O_CLOEXEC) == 0, "pipe");
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0)
        run_command(alive, command);
    command_pid = pid;
    signal(SIGTERM, forward);
    signal(SIGINT, forward);
    int status;
    while (waitpid(pid, &status, 0) < 0)
        check(errno == EINTR, "waitpid");
    if (WIFSIGNALED(status))
        die_of(WTERMSIG(status));
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); /* the signal may be blocked */
}
