/* What fork does to a process's attachments.
 *
 * A child shares its parent's open file descriptions, and so its locks: the child would keep a dead parent's row and
 * publisher lock alive. So before a fork every attachment gets a second description with a row of its own, which holds
 * what the parent holds; the child goes over to it. If there is no row left, the child gets copies of what it holds.
 */
#ifndef UNTORN_FORK_H
#define UNTORN_FORK_H

#include "attachment.h"

/* From here on, until it is forgotten, forks of this process see to this attachment. */
void fork_follow(struct attachment *attachment);
/* Of one that was never followed, nothing. */
void fork_forget(struct attachment *attachment);

#endif
