/* A virtual node: a network name space with a TUN device, and a first process in its own name spaces of mounts,
 * process ids, host names and System V objects. All of it is anonymous: it is gone with the processes and descriptors
 * that use it. */
#ifndef NODE_H
#define NODE_H

#include <stdint.h>
#include <sys/types.h>

enum { NODE_KEPT_MAX = 16 };

struct node_options {
    int count;                       /* of all nodes, for their /etc/hosts */
    const char *kept[NODE_KEPT_MAX]; /* directories that stay visible under the node's own /tmp; ends with NULL */
};

struct node_network {
    int name_space, tun; /* descriptors */
    uint32_t address;    /* in network byte order */
};

/* Make the network of the node with this index. Exits with a message on failure, as all of these do. */
struct node_network node_network_make(int index);

/* Start the node's first process, which adopts and reaps orphans, and dies with the process that calls this. Returns
 * its pid when the node is ready. When it is dead and waited for, no process of the node is left. */
pid_t node_start(const struct node_network *network, int index, const struct node_options *options);

/* Run a command in the name spaces of a node, in the current directory; return its exit status. This process forwards
 * SIGTERM and SIGINT, the command is killed with this process, and this process dies of the signal that the command
 * died of. */
int node_enter(pid_t first, char **command);

#endif
