/* Memory and descriptors that forked children must not share: after a fork the child has copies of this memory, and
 * these descriptors are closed in it.
 *
 * A child of the server, or of a worker, inherits the mapping of the board: without this, its actions at exit would
 * affect its parent's training. And a lock that it inherits would outlive its parent.
 */
#ifndef UNTORN_OWN_H
#define UNTORN_OWN_H

#include <stdint.h>

#include "descriptors.h"

/* Memory that maps the file `fd` from its start, shared; or, without memory, the descriptor `fd`. */
struct own {
    void *memory;
    uint64_t nbytes;
    int fd;
    struct descriptor_file file; /* the file that it led to; set by own_add */
    struct own *previous, *next;
};

void own_add(struct own *own);
void own_remove(struct own *own);

/* The same for a descriptor without memory. */
int own_descriptor(int fd); /* 0, or -1 without memory */
void own_descriptor_end(int fd);

#endif
