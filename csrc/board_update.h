/* The arithmetic of a step. See board.h. */
#ifndef UNTORN_BOARD_UPDATE_H
#define UNTORN_BOARD_UPDATE_H

#include "attachment.h"
#include "board_layout.h"

/* Do every norm task of this step that no worker has; true if all are done. */
bool norms_run(const struct board *board, uint32_t worker, uint64_t step);
/* Do every update task of this step that no worker has, into this slot; true if all are done. `refused`: there was no
 * memory to map the weights, and a task that this worker had claimed is free again. */
bool updates_run(const struct board *board, struct attachment *weights, uint32_t worker, uint64_t step, unsigned slot,
                 bool *refused);
/* Do the whole update of one batch in flight, norm included, into this slot. */
enum status inflight_update(const struct board *board, struct attachment *weights, uint32_t index, uint64_t step,
                            uint64_t staleness, unsigned slot);

#endif
