/* The places of a channel's slots: in the data file, and in this process. For attachment.c and picking.c only.
 *
 * Guarantees: only bytes that are in the file at that moment are mapped, and a mapping that drafts point into stays
 * until the last of them is gone.
 */
#ifndef UNTORN_SLOTS_H
#define UNTORN_SLOTS_H

#include "attachment.h"

uint64_t page_round(uint64_t nbytes);
/* Return whether a slot may lie there in a file of that size. */
bool extent_is_inside(uint64_t offset, uint64_t capacity, uint64_t file_nbytes);
/* Map the slot, unless it is mapped as it lies now. Its extent cannot change: the caller holds it, or is its writer. */
enum status slot_map(struct attachment *attachment, unsigned slot);
void mapping_drop(struct attachment *attachment, unsigned slot);

#endif
