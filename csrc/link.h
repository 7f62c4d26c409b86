/* A node's link: a thread that exchanges the sums of a board with the links of other nodes, over connected sockets.
 *
 *     Python thread            link thread                                   peers' links
 *     link_begin  ---------->  exchange.h: frames for peers    ---------->   sockets, one for each pair of nodes
 *     link_end    ---------->  frames from peers               <----------
 *     link_problem <---------  a peer is closed, silent or sends garbage
 *                                |  ^
 *     workers     ---------->  board: own shards are done;  remote shards, the sum
 *
 * The thread holds no lock while it works, and takes requests between two pieces of work. It never runs Python code.
 * It sleeps in one of two ways. While own shards are missing, it sleeps on the board's link bell, which workers ring,
 * and looks at the sockets now and then; so a worker's commit wakes it without a detour. Otherwise it waits for peers,
 * in poll.
 *
 * A peer that breaks changes nothing for the others: the first problem is reported, and the exchange goes on as far as
 * it can. Connections live longer than sessions. A frame of an older session is forgotten, one of a later session or
 * step waits in its connection.
 */
#ifndef UNTORN_LINK_H
#define UNTORN_LINK_H

#include "exchange.h"

struct link;

enum link_trouble { LINK_FINE = 0, LINK_CLOSED, LINK_SILENT, LINK_GARBAGE, LINK_OS };

struct link_problem {
    enum link_trouble trouble;
    uint32_t peer; /* or this node itself */
    int error;     /* errno, or 0 */
    char text[200];
};

/* Of each peer, and of the whole link. */
struct link_counters {
    uint64_t sent_nbytes, received_nbytes;
};
struct link_totals {
    uint64_t steps, wait_ns; /* wait_ns: for peers, after the own roots were sent */
};

/* Start a link of `count` nodes, this one being `index`; sockets[index] is not used. The sockets are duplicated. NULL
 * with errno. */
struct link *link_open(uint32_t index, const int *sockets, uint32_t count, int64_t timeout_ns);
/* End the session, the thread and the connections. Doing it again does nothing; neither does it in a forked child,
 * which has none of them. Return the owner of the session's board, or NULL. */
void *link_stop(struct link *link);
/* The same, and free the link. */
void *link_free(struct link *link);
/* Begin a session, at the board's first incomplete step. The link takes the plan over. STATUS_BUSY: a session has not
 * ended. STATUS_OTHER: the number is not higher than that of the session before. STATUS_OS: errno; EPIPE: a peer's
 * connection is broken; EBADF: the link is closed. `owner` keeps the board's memory, for link_end to give back. */
enum status link_begin(struct link *link, const struct board *board, struct exchange_plan *plan, uint64_t session,
                       void *owner, uint64_t *step);
/* End the session, and give back the owner of its board: when it returns, the board is not touched any more. Returns
 * whether all that was to be sent was sent within the time. Without a session it does nothing. */
bool link_end(struct link *link, int64_t timeout_ns, void **owner);

/* Readable from the first problem on. */
int link_fileno(const struct link *link);
struct link_problem link_problem(struct link *link);
struct link_counters link_counters(const struct link *link, uint32_t peer);
struct link_totals link_totals(const struct link *link);
uint32_t link_nodes(const struct link *link);
uint32_t link_index(const struct link *link);
/* Return whether this process is a forked child of the link's. */
bool link_is_forked(const struct link *link);

#endif
