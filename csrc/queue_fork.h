/* A process's sides of queues across fork: see queue_side.h. */
#ifndef UNTORN_QUEUE_FORK_H
#define UNTORN_QUEUE_FORK_H

#include "queue_side.h"

/* Have forks of this process handle this side, until it is forgotten. */
void queue_fork_follow(struct queue_side *side);
/* Does nothing for a side that was never followed. */
void queue_fork_forget(struct queue_side *side);
/* Take a row whose lock is free, as the owner of `fd`; STATUS_NO_ROW. What a dead owner left is undone first, and noted
 * in the journal. */
enum status queue_row_take(const struct queue *queue, int fd, struct journal *journal, uint32_t *row);

#endif
