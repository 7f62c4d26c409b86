/* The queue's protocol. See queue.h for what it promises and how the memory is laid out.
 *
 * Words and who may change them
 * -----------------------------
 *   slot word   WRITING, OFFERED, TAKEN and HELD name their owner, and only the owner changes them (or, when it is
 *               dead, the process that has its row's lock), but for one step: whoever finds an OFFERED slot in the ring
 *               at the tail makes it READY. FREE, READY and RETURNED belong to nobody: any process may claim or take.
 *   ring        cell p % cells gets (round of p, slot) once for each position p, in order of the rounds.
 *   tail, head  grow one by one.
 *
 * Inserting
 * ---------
 *   I1 t = tail, and everything below is settled        I3 slot word: (k, OFFERED, me) -> (t, READY, nobody)
 *   I2 ring cell of t: an older round -> (t, slot)      I4 tail: t -> t + 1
 *
 * I2 is the moment at which the item is in the queue. I3 and I4 can be made by anybody (tail_settle), and everybody
 * makes them before an own I2 and before calling the queue empty. Killed before I2: the item was never there, and its
 * slot is freed (queue_reap). Killed behind I2: the item is there.
 *
 * The helper's I3 changes the right item. It loads the cell, then the slot's word w, and then finds the tail still at
 * t. Nobody takes a position that is not below the tail, so in between the slot was the offered or the ready item of t
 * and nothing else: if w is OFFERED it is of this item. Its compare-and-swap needs the word to be w still. The word
 * was w before I3, and behind I3 its position is t or larger, and larger than k; so it is w no more.
 *
 * No two items get one position, since a cell takes one compare-and-swap from each older round. A producer that was
 * stopped between I1 and I2 finds the cell changed.
 *
 * Taking
 * ------
 *   T1 h = head < tail       T2 slot word: (h, READY, nobody) -> (h, TAKEN, me)       T3 head: h -> h + 1
 *
 * T2 is the moment at which the item is taken, and records the owner, so a taker that is killed right behind it is
 * known. The word's position is h, so T2 fails if the slot has another item by now. T3 can be made by anybody who finds
 * that the item of h is not READY: it was, since h < tail, and it never will be again.
 *
 * Cells are not overwritten too early: the cell of t was that of t - cells, and t - head <= capacity < cells.
 *
 * Giving back
 * -----------
 * A RETURNED slot is in no cell. `returned` is odd if there may be one: it is changed behind each slot that becomes so,
 * and a taker that searches all slots and finds none makes it even only if it did not change since before the search.
 * A process that is killed between its two stores leaves its row attached; the process that reaps the row changes
 * `returned` before it clears the row. Until then, which is a moment, nobody is told of that slot.
 *
 * Closing
 * -------
 * The cell at the tail gets QUEUE_NO_SLOT instead of a slot. It is the same compare-and-swap as I2, so an item is
 * either before the end, and will be taken, or its producer is told.
 *
 * Waking
 * ------
 * One item is for one consumer, and one place in the ring for one producer: so one is woken (futex_wake_one). What all
 * must know, wakes all: the end, items that several dead had, and slots or pages, which are too few for one that waits
 * and enough for another.
 *
 * Nobody sleeps for longer than a moment while there is an item. A waiting process loads `events`, looks for an item,
 * and sleeps only if `events` did not change. So each event finds it awake, and about to look, or asleep. Each wakes
 * the process that has slept longest; it has not seen that event, or it looked behind it, and the item was gone. A
 * process that is woken looks, and takes the item, if no other one was faster. Two kinds do not: one that a signal
 * handler ends, or that sleeps for coroutines, which may be cancelled or busy, passes the wake on (gate_pass_on); one
 * that is killed or stopped cannot. Therefore, all processes that wait look again ten times a second. They do anyway,
 * for the dead. tests/model/queue_waking_model.py has all of this.
 *
 * A waiting producer costs its consumer a system call, and often the processor, so one place in the ring is not worth a
 * wake. A take is announced once ROOM_BATCH places are free. As all look again ten times a second, a producer is
 * late by at most that where consumers are slow, and then it has no effect on how fast items come, since many wait. A
 * slot or pages that become free are announced if somebody wants them: who lacks them sets `eager`, fences and looks
 * once more; who frees a slot fences and looks at `eager`. One of the two fences is first (Dekker). They wait at the
 * same gate, and a wake for a place is of no use to them. So a take looks at `eager` behind its wake: if the wake went
 * to one that wants a slot, that one set `eager` before it slept, and then all are woken.
 */
#include "queue.h"

#include "futex.h"

static uint32_t ring_index(const struct queue *queue, uint64_t position)
{
    return (uint32_t)(position & (queue->cells - 1));
}

static uint64_t cell_make(const struct queue *queue, uint64_t position, uint32_t slot)
{
    return position / queue->cells << QUEUE_SLOT_BITS | slot;
}

static uint32_t cell_slot(uint64_t cell) { return (uint32_t)(cell & QUEUE_NO_SLOT); }

static bool cell_is_of(const struct queue *queue, uint64_t cell, uint64_t position)
{
    return cell >> QUEUE_SLOT_BITS == position / queue->cells;
}

static const uint64_t ROOM_BATCH = 32;

void gate_announce(struct queue_gate *gate)
{
    shared_add(&gate->events, 1); /* pairs with the waiters' shared_load_acquire */
    futex_wake(&gate->sleepers);
}

void gate_announce_one(struct queue_gate *gate)
{
    shared_add(&gate->events, 1); /* pairs with the waiters' shared_load_acquire */
    futex_wake_one(&gate->sleepers);
}

void gate_pass_on(struct queue_gate *gate) { futex_wake_one(&gate->sleepers); }

/* `waiting` items are left after one was taken. */
static void room_tell(const struct queue *queue, uint64_t waiting)
{
    const uint64_t capacity = queue->capacity;
    const uint64_t batch = capacity < ROOM_BATCH / 2 ? 1 : capacity / 2 < ROOM_BATCH ? capacity / 2 : ROOM_BATCH;
    struct queue_gate *room = &queue->head->room;
    if (waiting + batch > capacity)
        return;
    if (shared_load_relaxed(&room->eager) == 0)
        gate_announce_one(room);
    if (shared_load_relaxed(&room->eager) != 0) /* perhaps since the wake */
        gate_announce(room);
}

void queue_want_slot(const struct queue *queue)
{
    shared_store_relaxed(&queue->head->room.eager, 1);
    fence_full(); /* pairs with slot_tell's */
}

/* A slot has become free. */
static void slot_tell(const struct queue *queue)
{
    struct queue_gate *room = &queue->head->room;
    fence_full(); /* pairs with queue_want_slot's */
    if (shared_load_relaxed(&room->eager) == 0)
        return;
    shared_store_relaxed(&room->eager, 0); /* all are woken, and those that still lack something set it again */
    gate_announce(room);
}

/* -- free slots -------------------------------------------------------------------------------------------------- */

/* The map of free slots is a hint, and only the words count. A bit is set behind the word's change to FREE, and cleared
 * by the process that claimed the slot, before it can be free again. So a clear bit of a free slot is left only by a
 * process that was killed in between, and claiming looks at all words before it says that none is free. */
static void map_set(const struct queue *queue, uint32_t slot)
{
    shared_set(&queue->map[slot / 64], UINT64_C(1) << slot % 64);
}

static bool map_repair(const struct queue *queue)
{
    bool found = false;
    for (uint32_t slot = 0; slot < queue->slot_count; slot++)
        if (word_state(shared_load_acquire(&queue->slots[slot].word)) == QUEUE_FREE) {
            map_set(queue, slot);
            found = true;
        }
    return found;
}

static uint64_t distance(uint64_t a, uint64_t b) { return a < b ? b - a : a - b; }

/* The lowest of the free slots whose pages are nearest: low slots are used again soonest. */
static bool map_search(const struct queue *queue, uint64_t pages, uint32_t *best)
{
    uint64_t nearest = UINT64_MAX;
    for (uint32_t at = 0; at < (queue->slot_count + 63) / 64; at++) {
        uint64_t bits = shared_load_acquire(&queue->map[at]);
        for (; bits != 0; bits &= bits - 1) {
            const uint32_t slot = at * 64 + (uint32_t)__builtin_ctzll(bits);
            if (slot >= queue->slot_count || word_state(shared_load_acquire(&queue->slots[slot].word)) != QUEUE_FREE)
                continue;
            const uint64_t far = distance(slot_pages(queue, slot), pages);
            if (far >= nearest)
                continue;
            nearest = far;
            *best = slot;
            if (far == 0)
                return true;
        }
    }
    return nearest != UINT64_MAX;
}

enum status queue_claim(const struct queue *queue, uint32_t row, uint64_t pages, uint32_t *slot)
{
    for (bool repaired = false;;) {
        if (!map_search(queue, pages, slot)) {
            if (repaired || !map_repair(queue))
                return STATUS_NO_SLOT;
            repaired = true;
            continue;
        }
        shared_u64 *word = &queue->slots[*slot].word;
        const uint64_t found = shared_load_acquire(word);
        if (word_state(found) != QUEUE_FREE ||
            !shared_swap_if(word, found, word_make(word_position(found), QUEUE_WRITING, row)))
            continue; /* another process was faster */
        shared_clear(&queue->map[*slot / 64], UINT64_C(1) << *slot % 64);
        return STATUS_OK;
    }
}

/* -- inserting --------------------------------------------------------------------------------------------------- */

/* Find the position behind the last item, and make I3 and I4 for a producer that did not yet. `ended`: nothing can be
 * put there. */
static enum status tail_settle(const struct queue *queue, uint64_t *tail, bool *ended)
{
    for (;;) {
        const uint64_t t = shared_load_acquire(&queue->head->tail);
        const uint64_t cell = shared_load_acquire(&queue->ring[ring_index(queue, t)]);
        const uint32_t slot = cell_slot(cell);
        *tail = t;
        *ended = false;
        if (!cell_is_of(queue, cell, t)) {
            if (shared_load_acquire(&queue->head->tail) == t)
                return STATUS_OK;
            continue;
        }
        if (slot == QUEUE_NO_SLOT) {
            *ended = true;
            return STATUS_OK;
        }
        if (slot >= queue->slot_count)
            return STATUS_FORMAT;
        const uint64_t word = shared_load_acquire(&queue->slots[slot].word);
        if (shared_load_acquire(&queue->head->tail) != t)
            continue; /* what was loaded may be of different moments */
        if (word_state(word) == QUEUE_OFFERED)
            shared_swap_if(&queue->slots[slot].word, word, word_make(t, QUEUE_READY, 0)); /* I3 */
        else if (word != word_make(t, QUEUE_READY, 0))
            return STATUS_FORMAT;
        shared_swap_if(&queue->head->tail, t, t + 1); /* I4 */
    }
}

/* Return the head, after T3 for takers that did not make it yet: the bound counts only items that wait. */
static enum status head_settle(const struct queue *queue, uint64_t tail, uint64_t *head)
{
    for (;;) {
        const uint64_t h = shared_load_acquire(&queue->head->head);
        *head = h;
        if (h >= tail)
            return STATUS_OK;
        const uint64_t cell = shared_load_acquire(&queue->ring[ring_index(queue, h)]);
        const uint32_t slot = cell_slot(cell);
        if (!cell_is_of(queue, cell, h) || slot >= queue->slot_count) {
            if (shared_load_acquire(&queue->head->head) == h)
                return STATUS_FORMAT;
            continue;
        }
        if (shared_load_acquire(&queue->slots[slot].word) == word_make(h, QUEUE_READY, 0))
            return STATUS_OK;
        shared_swap_if(&queue->head->head, h, h + 1); /* T3 */
    }
}

/* I2: put a slot into the cell of the position behind the last item, which is settled. `done` is false if another
 * process was faster, and so the tail has moved or can be settled. A cell of a later round is one of a later tail. */
static enum status cell_put(const struct queue *queue, uint64_t tail, uint32_t slot, bool *done)
{
    shared_u64 *cell = &queue->ring[ring_index(queue, tail)];
    const uint64_t old = shared_load_acquire(cell), round = tail / queue->cells;
    *done = old >> QUEUE_SLOT_BITS < round && shared_swap_if(cell, old, cell_make(queue, tail, slot));
    if (old >> QUEUE_SLOT_BITS > round && shared_load_acquire(&queue->head->tail) == tail)
        return STATUS_FORMAT;
    return STATUS_OK;
}

enum status queue_insert(const struct queue *queue, uint32_t row, uint32_t slot)
{
    shared_u64 *word = &queue->slots[slot].word;
    const uint64_t found = shared_load_acquire(word);
    if (word_row(found) != row || (word_state(found) != QUEUE_WRITING && word_state(found) != QUEUE_OFFERED))
        return STATUS_NOT_OWNED;
    /* release: the item's bytes come before; pairs with queue_take's shared_load_acquire, by way of I3 */
    if (!shared_swap_if(word, found, word_make(word_position(found), QUEUE_OFFERED, row)))
        return STATUS_NOT_OWNED;
    uint64_t tail, head;
    bool ended, done = false;
    while (!done) {
        enum status status = tail_settle(queue, &tail, &ended); /* I1 */
        if (status != STATUS_OK || ended)
            return status != STATUS_OK ? status : STATUS_ENDED;
        if (tail >= QUEUE_MAX_POSITION)
            return STATUS_FORMAT;
        head = shared_load_acquire(&queue->head->head);
        if (tail - head >= queue->capacity) {
            status = head_settle(queue, tail, &head);
            if (status != STATUS_OK)
                return status;
            if (head <= tail && tail - head >= queue->capacity)
                return STATUS_FULL;
        }
        status = cell_put(queue, tail, slot, &done); /* I2 */
        if (status != STATUS_OK)
            return status;
    }
    enum status status = tail_settle(queue, &tail, &ended);
    gate_announce_one(&queue->head->items);
    return status;
}

enum status queue_close(const struct queue *queue)
{
    uint64_t tail;
    bool ended = false, done = false;
    while (!ended && !done) {
        enum status status = tail_settle(queue, &tail, &ended);
        if (status == STATUS_OK && !ended)
            status = cell_put(queue, tail, QUEUE_NO_SLOT, &done);
        if (status != STATUS_OK)
            return status;
    }
    shared_store_relaxed(&queue->head->closed, 1);
    gate_announce(&queue->head->items);
    gate_announce(&queue->head->room);
    return STATUS_OK;
}

/* -- taking ------------------------------------------------------------------------------------------------------ */

/* Take the RETURNED slot with the lowest position; false if there is none. */
static bool returned_take(const struct queue *queue, uint32_t row, uint32_t *slot)
{
    for (;;) {
        const uint64_t before = shared_load_acquire(&queue->head->returned);
        if (before % 2 == 0)
            return false;
        uint64_t lowest = UINT64_MAX;
        for (uint32_t at = 0; at < queue->slot_count; at++) {
            const uint64_t word = shared_load_acquire(&queue->slots[at].word);
            if (word_state(word) == QUEUE_RETURNED && word < lowest) {
                lowest = word;
                *slot = at;
            }
        }
        if (lowest == UINT64_MAX) {
            if (shared_swap_if(&queue->head->returned, before, before + 1))
                return false;
        } else if (shared_swap_if(&queue->slots[*slot].word, lowest,
                                  word_make(word_position(lowest), QUEUE_TAKEN, row))) {
            return true;
        }
    }
}

static void returned_tell(const struct queue *queue)
{
    shared_u64 *returned = &queue->head->returned;
    uint64_t found = shared_load_acquire(returned);
    while (!shared_swap_if(returned, found, (found | 1) + 2)) /* pairs with returned_take */
        found = shared_load_acquire(returned);
}

/* At the end nothing becomes READY any more. Each item that is not finished is RETURNED or TAKEN whenever its slot is
 * looked at; so if none is found, none is left. */
static enum status end_look(const struct queue *queue, uint32_t row, uint32_t *slot)
{
    bool left = false;
    for (uint32_t at = 0; at < queue->slot_count; at++) {
        const uint64_t word = shared_load_acquire(&queue->slots[at].word);
        *slot = at;
        if (word_state(word) == QUEUE_RETURNED &&
            shared_swap_if(&queue->slots[at].word, word, word_make(word_position(word), QUEUE_TAKEN, row)))
            return STATUS_OK;
        left |= word_state(word) == QUEUE_RETURNED || (word_state(word) == QUEUE_TAKEN && word_row(word) != row);
    }
    return left ? STATUS_EMPTY : STATUS_ENDED;
}

enum status queue_take(const struct queue *queue, uint32_t row, uint32_t *slot)
{
    if (returned_take(queue, row, slot))
        return STATUS_OK;
    for (;;) {
        const uint64_t h = shared_load_acquire(&queue->head->head);
        uint64_t tail = shared_load_acquire(&queue->head->tail);
        if (h >= tail) {
            bool ended;
            enum status status = tail_settle(queue, &tail, &ended);
            if (status != STATUS_OK)
                return status;
            if (h >= tail)
                return ended ? end_look(queue, row, slot) : STATUS_EMPTY;
        }
        const uint64_t cell = shared_load_acquire(&queue->ring[ring_index(queue, h)]);
        if (!cell_is_of(queue, cell, h) || cell_slot(cell) >= queue->slot_count) {
            if (shared_load_acquire(&queue->head->head) == h)
                return STATUS_FORMAT;
            continue;
        }
        *slot = cell_slot(cell);
        const uint64_t ready = word_make(h, QUEUE_READY, 0);
        const bool taken = shared_load_acquire(&queue->slots[*slot].word) == ready &&
                           shared_swap_if(&queue->slots[*slot].word, ready, word_make(h, QUEUE_TAKEN, row)); /* T2 */
        shared_swap_if(&queue->head->head, h, h + 1);                                                        /* T3 */
        if (!taken)
            continue;
        room_tell(queue, tail - h - 1);
        return STATUS_OK;
    }
}

/* Change the word of a slot in one of the given states, which its owner calls. */
static enum status slot_change(const struct queue *queue, uint32_t row, uint32_t slot, unsigned states,
                               enum queue_state state)
{
    shared_u64 *word = &queue->slots[slot].word;
    const uint64_t found = shared_load_acquire(word);
    const uint32_t owner = state == QUEUE_HELD ? row : 0;
    /* release: all uses of the bytes come before; pairs with the shared_load_acquire of the next owner */
    return word_row(found) == row && (states >> word_state(found) & 1) != 0 &&
                   shared_swap_if(word, found, word_make(word_position(found), state, owner))
               ? STATUS_OK
               : STATUS_NOT_OWNED;
}

static bool is_closed(const struct queue *queue)
{
    const uint64_t tail = shared_load_acquire(&queue->head->tail);
    return shared_load_acquire(&queue->ring[ring_index(queue, tail)]) == cell_make(queue, tail, QUEUE_NO_SLOT);
}

enum status queue_finish(const struct queue *queue, uint32_t row, uint32_t slot)
{
    enum status status = slot_change(queue, row, slot, 1u << QUEUE_TAKEN, QUEUE_HELD);
    if (status == STATUS_OK && is_closed(queue))
        gate_announce(&queue->head->items); /* this may have been what others waited for before the end */
    return status;
}

enum status queue_give_back(const struct queue *queue, uint32_t row, uint32_t slot)
{
    enum status status = slot_change(queue, row, slot, 1u << QUEUE_TAKEN, QUEUE_RETURNED);
    if (status == STATUS_OK) {
        returned_tell(queue);
        gate_announce_one(&queue->head->items);
    }
    return status;
}

enum status queue_release(const struct queue *queue, uint32_t row, uint32_t slot)
{
    const unsigned states = 1u << QUEUE_WRITING | 1u << QUEUE_OFFERED | 1u << QUEUE_TAKEN | 1u << QUEUE_HELD;
    enum status status = slot_change(queue, row, slot, states, QUEUE_FREE);
    if (status != STATUS_OK)
        return status;
    map_set(queue, slot);
    slot_tell(queue);
    if (is_closed(queue))
        gate_announce(&queue->head->items);
    return STATUS_OK;
}

enum status queue_unclaim(const struct queue *queue, uint32_t row, uint32_t slot)
{
    enum status status = slot_change(queue, row, slot, 1u << QUEUE_WRITING, QUEUE_FREE);
    if (status == STATUS_OK)
        map_set(queue, slot);
    return status;
}

/* The dead do nothing more. So after the tail is settled, an OFFERED slot of theirs is in no cell, and never will be.
 * A process that is killed in the middle of this leaves the row attached, and the next one does the rest. */
enum status queue_reap(const struct queue *queue, uint32_t row, struct queue_reaped *reaped)
{
    uint64_t tail;
    bool ended;
    enum status status = tail_settle(queue, &tail, &ended);
    if (status != STATUS_OK)
        return status;
    for (uint32_t slot = 0; slot < queue->slot_count; slot++) {
        shared_u64 *word = &queue->slots[slot].word;
        const uint64_t found = shared_load_acquire(word);
        const enum queue_state state = word_state(found);
        if (word_row(found) != row || state == QUEUE_FREE)
            continue;
        const enum queue_state after = state == QUEUE_TAKEN ? QUEUE_RETURNED : QUEUE_FREE;
        if (shared_swap_if(word, found, word_make(word_position(found), after, 0)))
            *(after == QUEUE_RETURNED ? &reaped->returned : &reaped->freed) += 1;
    }
    (void)map_repair(queue);
    returned_tell(queue);
    gate_announce(&queue->head->items);
    gate_announce(&queue->head->room);
    shared_store_relaxed(&queue->rows[row].pid, 0);
    shared_store_release(&queue->rows[row].attached, 0);
    return STATUS_OK;
}

enum status queue_look(const struct queue *queue, uint64_t *waiting, bool *closed)
{
    uint64_t tail, head;
    enum status status = tail_settle(queue, &tail, closed);
    if (status == STATUS_OK)
        status = head_settle(queue, tail, &head);
    if (status != STATUS_OK)
        return status;
    *waiting = head < tail ? tail - head : 0;
    for (uint32_t slot = 0; shared_load_acquire(&queue->head->returned) % 2 != 0 && slot < queue->slot_count; slot++)
        *waiting += word_state(shared_load_acquire(&queue->slots[slot].word)) == QUEUE_RETURNED;
    return STATUS_OK;
}
