/* The windows of a queue's slots: the memory of items that are too large for a small place.
 *
 * Which slot has how many pages of the limit is in queue_space.c. Here is what one process does for it: it reserves the
 * pages in the file, gives them back, and maps them. The caller holds the side's lock, and owns the slot.
 */
#ifndef UNTORN_QUEUE_WINDOW_H
#define UNTORN_QUEUE_WINDOW_H

#include "queue_side.h"

/* Where a slot's window begins in the file. */
uint64_t queue_window_offset(const struct queue *queue, uint32_t slot);
/* Map at least this much of a slot's window. Nothing here points into an older mapping: this process owns the slot now,
 * and did not before. */
enum status queue_window_map(struct queue_side *side, uint32_t slot, uint64_t length);
/* Give a slot exactly these pages, if need be those of free slots. STATUS_NO_ROOM, STATUS_NO_SPACE. */
enum status queue_window_fit(struct queue_side *side, uint32_t slot, uint64_t pages);

#endif
