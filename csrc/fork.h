/* A process's attachments across fork.
 *
 * A child shares its parent's open file descriptions, and so its locks: the child would keep a dead parent's row and
 * publisher lock alive. So before a fork every attachment gets a second description with a row of its own, which holds
 * what the parent holds; the child switches to it. If there is no row left, the child gets copies of the versions that
 * it holds.
 */
#ifndef UNTORN_FORK_H
#define UNTORN_FORK_H

#include "attachment.h"

/* Have forks of this process handle this attachment, until it is forgotten. */
void fork_follow(struct attachment *attachment);
/* Does nothing for an attachment that was never followed. */
void fork_forget(struct attachment *attachment);

#endif
