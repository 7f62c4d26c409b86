/* Virtual nodes on one machine, joined by a switch.
 *
 *   nodes run COUNT [KEPT ...]    prints the pid of each node's first process, then obeys the lines of standard input,
 *                                 each answered by "ok", perhaps after other lines; ends all nodes at the input's end
 *   nodes enter PID COMMAND ...   runs a command in the node with this first process
 *
 *   delay SECONDS | rate BITS_PER_S | connect NODE NODE 0|1 | counters | kill NODE | start NODE
 */
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node.h"
#include "switch.h"

static struct node_options options;
static struct node_network networks[SWITCH_NODES_MAX];
static pid_t firsts[SWITCH_NODES_MAX]; /* 0: this node is off */

/* Begins to end every process of the node. Waiting for that would stop the switch. */
static void strike(int node)
{
    if (firsts[node] != 0)
        kill(firsts[node], SIGKILL);
}

static void stop(int node)
{
    strike(node);
    if (firsts[node] != 0)
        waitpid(firsts[node], NULL, 0);
    firsts[node] = 0;
}

static void start(int node)
{
    stop(node);
    firsts[node] = node_start(&networks[node], node, &options);
    printf("%d\n", (int)firsts[node]);
}

static void print_counters(int node)
{
    struct switch_counters counted = switch_counters(node);
    printf("%lu %lu %lu %lu %lu %lu %lu\n", counted.sent_bytes, counted.sent_payload, counted.sent_packets,
           counted.received_bytes, counted.received_payload, counted.received_packets, counted.dropped_packets);
}

static int node_checked(int node)
{
    if (node < 0 || node >= options.count)
        errx(1, "node %d: there are nodes 0 to %d", node, options.count - 1);
    return node;
}

static void obey(const char *line)
{
    double number;
    int first, second, connected;
    if (sscanf(line, "delay %lf", &number) == 1)
        switch_set_delay((int64_t)(number * 1e9));
    else if (sscanf(line, "rate %lf", &number) == 1)
        switch_set_rate(number);
    else if (sscanf(line, "connect %d %d %d", &first, &second, &connected) == 3)
        switch_connect(node_checked(first), node_checked(second), connected);
    else if (strcmp(line, "counters\n") == 0)
        for (int i = 0; i < options.count; i++)
            print_counters(i);
    else if (sscanf(line, "kill %d", &first) == 1)
        strike(node_checked(first));
    else if (sscanf(line, "start %d", &first) == 1)
        start(node_checked(first));
    else
        errx(1, "unknown command: %s", line);
    printf("ok\n");
    fflush(stdout);
}

/* Returns false at the end of the input. One line at a time: each waits for its answer. */
static bool obey_next(void)
{
    char line[256];
    ssize_t length = read(STDIN_FILENO, line, sizeof line - 1);
    if (length <= 0)
        return false;
    line[length] = 0;
    obey(line);
    return true;
}

static int run(int count, char **kept)
{
    if (count < 1 || count > SWITCH_NODES_MAX)
        errx(1, "the number of nodes must be 1 to %d, not %d", SWITCH_NODES_MAX, count);
    options.count = count;
    for (int i = 0; kept[i]; i++) {
        if (i == NODE_KEPT_MAX - 1)
            errx(1, "at most %d directories can be kept", NODE_KEPT_MAX - 1);
        options.kept[i] = kept[i];
    }
    prctl(PR_SET_TIMERSLACK, 1000UL); /* ns: the kernel's default of 50 us is as long as a packet's way */
    signal(SIGINT, SIG_IGN);          /* Ctrl-C is for the test, which closes the input */
    for (int i = 0; i < count; i++) {
        networks[i] = node_network_make(i);
        switch_add(networks[i].tun, networks[i].address);
    }
    for (int i = 0; i < count; i++)
        start(i);
    printf("ok\n");
    fflush(stdout);
    while (switch_run_until_readable(STDIN_FILENO) && obey_next())
        ;
    for (int i = 0; i < count; i++)
        strike(i);
    for (int i = 0; i < count; i++)
        stop(i);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[1], "run") == 0)
        return run(atoi(argv[2]), argv + 3);
    if (argc >= 4 && strcmp(argv[1], "enter") == 0)
        return node_enter(atoi(argv[2]), argv + 3);
    errx(2, "usage: nodes run COUNT [KEPT ...] | nodes enter PID COMMAND ...");
}
