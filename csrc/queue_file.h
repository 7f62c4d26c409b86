/* The file of a queue: laid out once, and checked by everyone who opens it. */
#ifndef UNTORN_QUEUE_FILE_H
#define UNTORN_QUEUE_FILE_H

#include "queue.h"

struct queue_sizes {
    uint32_t max_processes, capacity;
    uint64_t nbytes;
};

/* Lay out an empty file for a queue of these sizes, and reserve what all its items share. STATUS_TOO_LARGE: they need
 * more address space of a file than there is. */
enum status queue_file_format(int fd, const uint8_t id[QUEUE_ID_NBYTES], const struct queue_sizes *sizes);

/* Read the identity with read(), not through a mapping: then garbage of any length is an error, not a signal. All
 * offsets follow from the sizes, so they are compared with those of a file that this process would make. */
enum status queue_file_check(int fd, const uint8_t *id, struct queue_head *head);

#endif
