/* What is a process's own: after a fork the child has copies of its memory, and has its descriptors closed.
 *
 * A child of the server, or of a worker, has the mapping of the board: whatever it does on its way out would be done to
 * its parent's training. And a lock that it inherits would outlive its parent.
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
    struct descriptor_file file; /* what it led to; set by own_add */
    struct own *previous, *next;
};

void own_add(struct own *own);
void own_remove(struct own *own);

/* For descriptors alone. */
int own_descriptor(int fd); /* 0, or -1 for want of memory */
void own_descriptor_end(int fd);

#endif
