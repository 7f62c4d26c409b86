/* Which slot has how many pages of the queue's limit: see queue.h.
 *
 * Why no item that fits is refused. The bytes of a larger item lie in its slot's window, and a window has the address
 * space of the largest item. So an item is in one piece wherever others lie: what gets fragmented is the file's address
 * space, which is endless, and not its memory. A slot has exactly the pages of its item. Free slots keep theirs, for
 * the next item of that size costs no page faults then; they are taken from them when another slot needs them. So an
 * item is refused only if the pages of the items that exist, and its own, are more than the limit.
 *
 * The sum over all slots never exceeds the limit, whoever is killed when. `space` names the last change, by its number
 * and the slot whose pages it changes, or QUEUE_NO_SLOT once it is made:
 *
 *   S1 settle the last change                 S4 space: (n, none) -> (n + 1, my slot)
 *   S2 my slot's `want`                       S5 my slot's pages: (older, p) -> (n + 1, want)
 *   S3 add up all slots' pages                S6 space: (n + 1, my slot) -> (n + 1, none)
 *
 * If S4 succeeds, no change began since S1, and so none was made: the sum of S3 is that of S4. S5 and S6 can be made by
 * anybody, and are made before anything else (S1). S5 changes the pages once, since its word says which change was the
 * last; the helper's `want` is that of this change, as it loads it while `space` names the change, and the owner writes
 * another only behind S1. Killed before S4: nothing changed. Killed behind it: the slot has the pages, and when the
 * owner's death is noticed it is free and keeps them.
 *
 * The pages that a slot has are a right to reserve them in the file. `backed` says how many of them are reserved: it is
 * raised behind the reservation, and lowered before the pages are given back.
 */
#include "queue.h"

static uint64_t space_settle(const struct queue *queue)
{
    shared_u64 *space = &queue->head->space;
    for (;;) {
        const uint64_t found = shared_load_acquire(space);
        const uint32_t slot = (uint32_t)(found & QUEUE_NO_SLOT), number = (uint32_t)(found >> QUEUE_SLOT_BITS);
        if (slot == QUEUE_NO_SLOT)
            return found;
        if (slot >= queue->slot_count) { /* damage: the slot does not exist */
            shared_swap_if(space, found, found | QUEUE_NO_SLOT);
            continue;
        }
        shared_u64 *pages = &queue->slots[slot].pages;
        const uint64_t before = shared_load_acquire(pages), want = shared_load_acquire(&queue->slots[slot].want);
        if (shared_load_acquire(space) != found)
            continue; /* what was loaded may be of different moments */
        if (before >> 32 != number)
            shared_swap_if(pages, before, (uint64_t)number << 32 | (want & UINT32_MAX)); /* S5 */
        shared_swap_if(space, found, found | QUEUE_NO_SLOT);                             /* S6 */
    }
}

static uint64_t pages_sum(const struct queue *queue)
{
    uint64_t sum = 0;
    for (uint32_t slot = 0; slot < queue->slot_count; slot++)
        sum += slot_pages(queue, slot);
    return sum;
}

bool space_change(const struct queue *queue, uint32_t slot, uint64_t pages)
{
    for (;;) {
        const uint64_t settled = space_settle(queue);          /* S1 */
        shared_store_release(&queue->slots[slot].want, pages); /* S2 */
        const uint64_t before = slot_pages(queue, slot);
        if (before == pages)
            return true;
        if (pages > before) {
            const uint64_t sum = pages_sum(queue); /* S3 */
            if (shared_load_acquire(&queue->head->space) != settled)
                continue;
            if (sum - before + pages > queue->limit_pages)
                return false;
        }
        const uint64_t next = ((settled >> QUEUE_SLOT_BITS) + 1) << QUEUE_SLOT_BITS | slot;
        if (shared_swap_if(&queue->head->space, settled, next)) { /* S4 */
            space_settle(queue);
            if (slot_pages(queue, slot) == pages) /* or its last change had the same 32 bits of a number: once more */
                return true;
        }
    }
}
