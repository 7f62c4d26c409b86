/* The channel's protocol. See channel.h for what it promises and how the memory is laid out. */
#include "channel.h"

#include "futex.h"

enum { PIN_TRIES = 4 };

/* Store with release, although bits are being set: the word also tells which slots were released before, perhaps by
 * another thread of this process, and a scan that sees this store must come after those threads' reads. Pairs with
 * channel_held. */
static void row_hold(struct reader_row *row, uint64_t held) { shared_store_release(&row->held, held); }

/* Why a pinned slot is never written
 * ----------------------------------
 * Reader: R1 load latest -> L; R2 store bit of L; R3 fence; R4 load latest -> L'.  It keeps the pin if L' == L.
 * Writer: W1 store latest; W2 fence; W3 load every held word; W4 write a slot that is not latest and not held.
 *
 * The fences R3 and W2 are in one order.
 *   R3 before W2: the writer's W3 sees the bit, so this scan and all later ones leave the slot alone until R unpins.
 *   W2 before R3: R4 sees the latest of W1 or a newer one. If that is still L, then L is what this scan calls the
 *     latest, so W4 does not write it; and before the next scan comes another W2, which is then after R3.
 * A slot may be pinned, published over and pinned again in between: the version is part of the word, so L' == L means
 * that nothing was published between R1 and R4.
 *
 * The last resort needs no validation: with all bits set and fenced, any slot that a *later* scan could pick is held;
 * a scan that went before picked one slot that was not latest then. R4 loads that scan's latest, or the very version
 * that the scan's slot became, which is complete. Either way the loaded slot is whole, and its bit is already set.
 *
 * A version may say in its header that it changes an older one, its base. Readers pin the version alone: a writer takes
 * the base of every slot that is latest or held for held too (attachment_taken). The header is written before the slot
 * becomes the latest and does not change while it is held, and the base is taken in the scan that picks the slot for
 * the header: by the version before, as the latest, or since this publisher reserved it (attachment_reserve), which
 * ends after the version that refers to it is the latest. So in every scan from then on, one of these says so.
 */
uint64_t channel_pin(const struct channel *channel, struct reader_row *row)
{
    const uint64_t before = shared_load_relaxed(&row->held); /* this reader is the only writer */
    for (int attempt = 0; attempt < PIN_TRIES; attempt++) {
        uint64_t latest = channel_latest(channel); /* pairs with channel_publish */
        row_hold(row, before | slot_bit(latest_slot(latest)));
        fence_full(); /* pairs with channel_held's */
        if (channel_latest(channel) == latest)
            return latest;
    }
    row_hold(row, UINT64_MAX);
    fence_full(); /* pairs with channel_held's */
    uint64_t latest = channel_latest(channel);
    row_hold(row, before | slot_bit(latest_slot(latest)));
    return latest;
}

/* A scan sees the word before this store, with the bit of the version, or from it on, with both: they are one word. */
void channel_hold(struct reader_row *row, unsigned slot)
{
    row_hold(row, shared_load_relaxed(&row->held) | slot_bit(slot));
}

void channel_unpin(struct reader_row *row, unsigned slot)
{
    /* release: all reads of the slot come before; pairs with channel_held's shared_load_acquire */
    shared_store_release(&row->held, shared_load_relaxed(&row->held) & ~slot_bit(slot));
}

/* A fork copies the parent's held word into a row for the child, then counts a hand-off, and only then can the parent
 * release. A scan could pass the child's row before the copy and the parent's after the release, and miss both: it then
 * sees the count change and looks again. */
uint64_t channel_held(const struct channel *channel)
{
    fence_full(); /* pairs with channel_pin's; comes after the last publication in happens-before order */
    for (;;) {
        uint64_t handoffs = shared_load_acquire(&channel->shared->handoffs);
        uint32_t high_water = shared_load_acquire(&channel->shared->high_water);
        if (high_water > channel->max_readers) /* the shared row is never trusted */
            high_water = channel->max_readers;
        uint64_t held = 0;
        for (uint32_t i = 1; i <= high_water; i++)
            held |= shared_load_acquire(&channel->rows[i].held); /* pairs with channel_unpin */
        if (shared_load_acquire(&channel->shared->handoffs) == handoffs)
            return held;
    }
}

uint64_t channel_taken(const struct channel *channel)
{
    uint64_t taken = channel_held(channel) | slot_bit(latest_slot(channel_latest(channel)));
    if (channel->max_slots < CHANNEL_MAX_SLOTS)
        taken |= ~(slot_bit(channel->max_slots) - 1);
    return taken;
}

void channel_wake(const struct channel *channel) { futex_wake(&channel->shared->sleepers); }

void channel_publish(const struct channel *channel, uint64_t version, unsigned slot)
{
    shared_store_release(&channel->control->latest, latest_make(version, slot)); /* pairs with channel_latest */
    channel_wake(channel);
}

bool channel_publish_if(const struct channel *channel, uint64_t expected, uint64_t version, unsigned slot)
{
    /* pairs with channel_latest */
    if (!shared_swap_if(&channel->control->latest, expected, latest_make(version, slot)))
        return false;
    channel_wake(channel);
    return true;
}

static bool extent_overlaps(const struct control *control, uint64_t start, uint64_t nbytes, uint64_t *end)
{
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        uint64_t offset = shared_load_relaxed(&control->slots[slot].offset);
        uint64_t capacity = shared_load_relaxed(&control->slots[slot].capacity);
        if (capacity != 0 && start < offset + capacity && offset < start + nbytes) {
            *end = offset + capacity;
            return true;
        }
    }
    return false;
}

uint64_t channel_find_gap(const struct control *control, uint64_t start, uint64_t nbytes, uint64_t page)
{
    uint64_t end; /* moves past one extent at a time: at most 64 rounds */
    const uint64_t most = (uint64_t)INT64_MAX / page * page;
    while (start < most && extent_overlaps(control, start, nbytes, &end))
        start = end < most ? (end + page - 1) / page * page : most; /* a damaged entry may end anywhere */
    return start;
}
