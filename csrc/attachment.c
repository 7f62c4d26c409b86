/* One process's side of a channel. See attachment.h for what it promises. */
#include "attachment.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "descriptors.h"
#include "fork.h"
#include "futex.h"
#include "rows.h"
#include "slots.h"

static const int64_t WAIT_SPIN_NS = 20000;

/* -- open and close --------------------------------------------------------------------------------------------- */

uint64_t attachment_control_nbytes(uint32_t max_readers)
{
    return page_round(sizeof(struct control)) + page_round((uint64_t)(max_readers + 1) * CHANNEL_LINE);
}

enum status attachment_format(int control_fd, const uint8_t id[16], uint32_t max_readers, uint32_t max_slots,
                              uint32_t keep_slots)
{
    struct control control = {
        .layout = CHANNEL_LAYOUT,
        .byte_order = CHANNEL_BYTE_ORDER,
        .max_readers = max_readers,
        .max_slots = max_slots,
        .keep_slots = keep_slots,
        .rows_offset = page_round(sizeof(struct control)),
        .created_ns = clock_wall_ns(),
    };
    memcpy(control.magic, CHANNEL_MAGIC, sizeof control.magic);
    memcpy(control.id, id, sizeof control.id);
    return pwrite(control_fd, &control, sizeof control, 0) == (ssize_t)sizeof control ? STATUS_OK : STATUS_OS;
}

enum status attachment_format_data(int data_fd, const uint8_t id[16])
{
    struct data_header header = {.layout = CHANNEL_LAYOUT, .byte_order = CHANNEL_BYTE_ORDER}, found = {0};
    static const struct data_header nothing;
    memcpy(header.magic, CHANNEL_DATA_MAGIC, sizeof header.magic);
    memcpy(header.id, id, sizeof header.id);
    ssize_t got = pread(data_fd, &found, sizeof found, 0);
    if (got < 0)
        return STATUS_OS;
    const bool same = memcmp(&found, &header, (size_t)got) == 0;
    if (!same && memcmp(&found, &nothing, sizeof found) != 0)
        return STATUS_DATA; /* the file of something else */
    if (same && got == (ssize_t)sizeof found)
        return STATUS_OK;
    return pwrite(data_fd, &header, sizeof header, 0) == (ssize_t)sizeof header ? STATUS_OK : STATUS_OS;
}

/* The identity that a control file states, checked. */
struct identity {
    uint8_t id[16];
    uint32_t max_readers, max_slots, state;
    uint64_t rows_offset;
};

/* Read the identity with read(), not through a mapping: then garbage of any length is an error, not a signal. */
static enum status control_check(int fd, struct identity *identity)
{
    struct control control;
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return STATUS_OS;
    ssize_t got = pread(fd, &control, sizeof control, 0);
    if (got < 0)
        return STATUS_OS;
    if (!S_ISREG(stat.st_mode) || got != (ssize_t)sizeof control || memcmp(control.magic, CHANNEL_MAGIC, 8) != 0)
        return STATUS_FORMAT;
    if (control.layout != CHANNEL_LAYOUT || control.byte_order != CHANNEL_BYTE_ORDER)
        return STATUS_LAYOUT;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t rows_nbytes = ((uint64_t)control.max_readers + 1) * CHANNEL_LINE;
    if (control.max_readers == 0 || control.max_readers > CHANNEL_MAX_READERS || control.max_slots < 2 ||
        control.max_slots > CHANNEL_MAX_SLOTS || control.rows_offset < sizeof control ||
        control.rows_offset % page != 0 || control.rows_offset > (uint64_t)stat.st_size ||
        rows_nbytes > (uint64_t)stat.st_size - control.rows_offset)
        return STATUS_FORMAT;
    *identity = (struct identity){.max_readers = control.max_readers,
                                  .max_slots = control.max_slots,
                                  .state = control.state,
                                  .rows_offset = control.rows_offset};
    memcpy(identity->id, control.id, sizeof identity->id);
    return STATUS_OK;
}

/* Check that this is the data file of that channel. Ids are random: two channels never have the same. */
static enum status data_check(int fd, const uint8_t id[16])
{
    struct data_header header;
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return STATUS_OS;
    ssize_t got = S_ISREG(stat.st_mode) ? pread(fd, &header, sizeof header, 0) : 0;
    if (got < 0)
        return STATUS_OS;
    if (got != (ssize_t)sizeof header || memcmp(header.magic, CHANNEL_DATA_MAGIC, sizeof header.magic) != 0)
        return STATUS_DATA;
    if (header.layout != CHANNEL_LAYOUT || header.byte_order != CHANNEL_BYTE_ORDER)
        return STATUS_LAYOUT;
    return memcmp(header.id, id, sizeof header.id) == 0 ? STATUS_OK : STATUS_MIXED;
}

static enum status attachment_map_control(struct attachment *a, const uint8_t *id)
{
    struct identity identity;
    enum status status = control_check(a->control_fd, &identity);
    if (status == STATUS_OK && id != NULL && memcmp(identity.id, id, sizeof identity.id) != 0)
        status = STATUS_OTHER;
    if (status == STATUS_OK && a->data_fd >= 0)
        status = data_check(a->data_fd, identity.id);
    if (status == STATUS_MIXED && identity.state == CHANNEL_NAMING)
        status = STATUS_NAMING;
    if (status != STATUS_OK)
        return status;
    a->channel.max_readers = identity.max_readers;
    a->channel.max_slots = identity.max_slots;
    int protection = a->role == ROLE_READER ? PROT_READ : PROT_READ | PROT_WRITE;
    a->control_nbytes = page_round(sizeof(struct control));
    a->rows_nbytes = page_round((uint64_t)(a->channel.max_readers + 1) * CHANNEL_LINE);
    void *control = mmap(NULL, a->control_nbytes, protection, MAP_SHARED, a->control_fd, 0);
    if (control == MAP_FAILED)
        return STATUS_OS;
    a->channel.control = control;
    void *rows =
        mmap(NULL, a->rows_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->control_fd, (off_t)identity.rows_offset);
    if (rows == MAP_FAILED)
        return STATUS_OS;
    a->channel.shared = rows;
    a->channel.rows = rows;
    return STATUS_OK;
}

static uint64_t base_bit(uint64_t base) { return base == 0 ? 0 : slot_bit(latest_slot(base)); }

/* Read which versions have a base, with read(), since the file may be damaged. One that cannot be read has none. */
static void bases_inherit(struct attachment *a)
{
    for (unsigned slot = 0; slot < a->channel.max_slots; slot++) {
        const struct slot_extent *extent = &a->channel.control->slots[slot];
        const off_t offset = (off_t)shared_load_relaxed(&extent->offset);
        struct slot_header header;
        if (shared_load_relaxed(&extent->capacity) != 0 &&
            pread(a->data_fd, &header, sizeof header, offset) == (ssize_t)sizeof header)
            a->bases[slot] = base_bit(header.base);
    }
}

static void publisher_begin(struct attachment *a)
{
    bases_inherit(a);
    shared_store_relaxed(&a->channel.control->publisher_pid, (uint32_t)getpid());
    shared_store_release(&a->channel.control->state, CHANNEL_OPEN);
}

static enum status attachment_lock_role(struct attachment *a)
{
    if (a->role == ROLE_PUBLISHER) {
        enum status status = lock_take(a->control_fd, 0);
        if (status != STATUS_OK)
            return status;
        if (a->data_fd >= 0)
            publisher_begin(a);
        return STATUS_OK;
    }
    return row_take(&a->channel, a->control_fd, 0, &a->journal, &a->row);
}

enum status attachment_open(int control_fd, int data_fd, enum attachment_role role, const uint8_t *id,
                            struct attachment **result)
{
    struct attachment *a = calloc(1, sizeof *a);
    if (a == NULL) {
        close(control_fd);
        close(data_fd);
        errno = ENOMEM;
        return STATUS_OS;
    }
    a->role = role;
    a->control_fd = descriptor_keep(control_fd);
    a->data_fd = descriptor_keep(data_fd);
    a->control_file = descriptor_file(a->control_fd);
    a->data_file = descriptor_file(a->data_fd);
    a->fork_fd = -1;
    a->inherited = role == ROLE_PUBLISHER ? UINT64_MAX : 0;
    pthread_mutex_init(&a->lock, NULL);
    const bool kept = a->control_fd >= 0 && (a->data_fd >= 0 || (role == ROLE_PUBLISHER && data_fd < 0));
    enum status status = kept ? attachment_map_control(a, id) : STATUS_OS;
    if (status == STATUS_OK)
        status = attachment_lock_role(a);
    if (status != STATUS_OK) {
        int cause = errno;
        attachment_close(a);
        errno = cause;
        return status;
    }
    fork_follow(a);
    *result = a;
    return STATUS_OK;
}

enum status attachment_adopt(struct attachment *a, int data_fd)
{
    int fd = descriptor_keep(data_fd);
    enum status status = fd < 0 ? STATUS_OS : data_check(fd, a->channel.control->id);
    if (status == STATUS_OK && (a->role != ROLE_PUBLISHER || a->forked || a->data_fd >= 0))
        status = STATUS_FORKED; /* no publisher, or not any more */
    if (status != STATUS_OK) {
        int cause = errno;
        close(fd);
        errno = cause;
        return status;
    }
    a->data_fd = fd;
    a->data_file = descriptor_file(fd);
    publisher_begin(a);
    return STATUS_OK;
}

bool attachment_has_control(const struct attachment *a) { return descriptor_is(a->control_fd, &a->control_file); }

bool attachment_has_data(const struct attachment *a) { return descriptor_is(a->data_fd, &a->data_file); }

void attachment_set_naming(struct attachment *a, bool naming)
{
    /* release: what it says of the names comes after they changed; the next holder of the lock reads it after the
     * kernel gave it the lock */
    shared_store_release(&a->channel.control->state, naming ? CHANNEL_NAMING : CHANNEL_OPEN);
}

static void orphan_return(struct attachment *a, const uint8_t *address)
{
    for (struct orphan **link = &a->orphans; *link != NULL; link = &(*link)->next) {
        struct orphan *orphan = *link;
        if (orphan->map.base != address || --orphan->loans != 0)
            continue;
        munmap(orphan->map.base, orphan->map.length);
        *link = orphan->next;
        free(orphan);
        return;
    }
}

void attachment_close(struct attachment *a)
{
    fork_forget(a);
    if (a->row != 0) {
        shared_store_release(&a->channel.rows[a->row].held, 0);
        shared_store_relaxed(&a->channel.rows[a->row].pid, 0);
    }
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++)
        mapping_drop(a, slot);
    if (a->channel.rows != NULL)
        munmap(a->channel.rows, a->rows_nbytes);
    if (a->channel.control != NULL)
        munmap(a->channel.control, a->control_nbytes);
    if (attachment_has_control(a))
        close(a->control_fd); /* and the kernel releases the lock */
    if (attachment_has_data(a))
        close(a->data_fd);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* -- slots ------------------------------------------------------------------------------------------------------ */

/* Read each field once, then check it, and use the checked value from then on: another process can write the memory. */
static enum status header_read(const struct slot_mapping *map, uint64_t version, struct pin *pin)
{
    const struct slot_header *header = (const struct slot_header *)map->base;
    if (shared_read_once(header->version) != version)
        return STATUS_FORMAT;
    pin->version = version;
    pin->address = map->base;
    pin->nbytes = shared_read_once(header->nbytes);
    pin->schema_nbytes = shared_read_once(header->schema_nbytes);
    pin->schema_id = shared_read_once(header->schema_id);
    pin->published_ns = shared_read_once(header->published_ns);
    pin->base = shared_read_once(header->base);
    if (pin->nbytes > map->length || pin->nbytes < sizeof *header || pin->schema_nbytes > pin->nbytes - sizeof *header)
        return STATUS_FORMAT;
    return STATUS_OK;
}

/* A reader may always hold this many versions, however many slots the publisher has reserved. */
enum { HELD_ALWAYS = 4 };

/* Return whether this reader may hold one slot more. A reader that holds a few always may. A reader that holds many
 * leaves the slots alone that the publisher has reserved for itself. Other readers may pin at the same time, so each of
 * them may hold one too many. */
static bool slot_is_granted(struct attachment *a)
{
    const struct channel *channel = &a->channel;
    /* a number that is wrong only refuses; relaxed: nothing else is told by it */
    unsigned reserved = a->role == ROLE_READER ? shared_load_relaxed(&channel->control->reserve_slots) : 0;
    if (reserved == 0 || __builtin_popcountll(shared_load_relaxed(&channel->rows[a->row].held)) < HELD_ALWAYS)
        return true;
    for (;;) {
        if ((unsigned)__builtin_popcountll(~channel_taken(channel)) > reserved)
            return true;
        if (attachment_reclaim(a) == 0) /* the slots of dead readers are free */
            return false;
    }
}

static enum status pin_locked(struct attachment *a, struct pin *pin)
{
    const struct channel *channel = &a->channel;
    if (a->row == 0) { /* a forked child that found no row at the fork may find one now */
        enum status status = STATUS_NO_ROW;
        if (a->control_fd >= 0)
            status = attachment_has_control(a) ? row_take(channel, a->control_fd, 0, &a->journal, &a->row) : STATUS_OS;
        if (status != STATUS_OK)
            return status;
    }
    uint64_t latest = channel_latest(channel);
    if (latest_version(latest) == 0)
        return STATUS_FORMAT; /* a channel gets its name with its first version */
    if (a->pins[latest_slot(latest)] == 0 && !slot_is_granted(a))
        return STATUS_NO_SLOT;
    if (a->pins[latest_slot(latest)] == 0) /* else the bit is set, and the slot has still this version */
        latest = channel_pin(channel, &channel->rows[a->row]);
    unsigned slot = latest_slot(latest);
    a->pins[slot]++;
    enum status status = slot_map(a, slot);
    if (status == STATUS_OK)
        status = header_read(&a->maps[slot], latest_version(latest), pin);
    if (status != STATUS_OK) {
        if (--a->pins[slot] == 0)
            channel_unpin(&channel->rows[a->row], slot);
        return status;
    }
    pin->slot = slot;
    pin->generation = a->generation;
    return STATUS_OK;
}

enum status attachment_pin(struct attachment *a, struct pin *pin)
{
    pthread_mutex_lock(&a->lock);
    enum status status = pin_locked(a, pin);
    pthread_mutex_unlock(&a->lock);
    return status;
}

/* The version holds its base: this adds a pin that may outlive that of the version. */
static enum status pin_base_locked(struct attachment *a, const struct pin *pin, struct pin *base)
{
    const unsigned slot = latest_slot(pin->base);
    if (pin->base == 0 || slot >= a->channel.max_slots || pin->generation != a->generation)
        return STATUS_FORMAT;
    enum status status = slot_map(a, slot);
    if (status == STATUS_OK)
        status = header_read(&a->maps[slot], latest_version(pin->base), base);
    if (status != STATUS_OK)
        return status;
    if (a->pins[slot]++ == 0)
        channel_hold(&a->channel.rows[a->row], slot);
    base->slot = slot;
    base->generation = a->generation;
    return STATUS_OK;
}

enum status attachment_pin_base(struct attachment *a, const struct pin *pin, struct pin *base)
{
    pthread_mutex_lock(&a->lock);
    enum status status = pin_base_locked(a, pin, base);
    pthread_mutex_unlock(&a->lock);
    return status;
}

/* A pin from before a fork that had to copy (see fork_child_one) holds nothing of the channel any more. */
void attachment_unpin(struct attachment *a, unsigned slot, uint32_t generation)
{
    pthread_mutex_lock(&a->lock);
    if (generation == a->generation && --a->pins[slot] == 0)
        channel_unpin(&a->channel.rows[a->row], slot);
    pthread_mutex_unlock(&a->lock);
}

enum status attachment_map_private(struct attachment *a, const struct pin *pin, uint8_t **base)
{
    int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_NORESERVE;
    pthread_mutex_lock(&a->lock);
    void *memory;
    if (pin->generation == a->generation) {
        memory = !attachment_has_data(a)
                     ? MAP_FAILED
                     : mmap(NULL, pin->nbytes, protection, flags, a->data_fd, (off_t)a->maps[pin->slot].offset);
    } else { /* the pin is a copy already, see fork_child_one */
        memory = mmap(NULL, pin->nbytes, protection, flags | MAP_ANONYMOUS, -1, 0);
        if (memory != MAP_FAILED)
            memcpy(memory, pin->address, pin->nbytes);
    }
    pthread_mutex_unlock(&a->lock);
    if (memory == MAP_FAILED)
        return STATUS_OS;
    *base = memory;
    return STATUS_OK;
}

enum status attachment_wait(struct attachment *a, uint64_t seen, int64_t timeout_ns)
{
    const shared_u32 *word = channel_low(&a->channel);
    uint64_t latest = channel_latest(&a->channel);
    if (latest_version(latest) > seen)
        return STATUS_OK;
    int64_t spin_ns = timeout_ns < WAIT_SPIN_NS ? timeout_ns : WAIT_SPIN_NS;
    if (!futex_spin_politely(&a->manner, word, (uint32_t)latest, spin_ns) &&
        futex_sleep(word, (uint32_t)latest, &a->channel.shared->sleepers, timeout_ns) == FUTEX_INTERRUPTED)
        return STATUS_INTERRUPTED;
    return latest_version(channel_latest(&a->channel)) > seen ? STATUS_OK : STATUS_TIMEOUT;
}

/* An attachment without a descriptor belongs to a forked child that got none: it has no channel any more. */
static enum status attachment_look(struct attachment *a, uint32_t byte, bool *held)
{
    enum status status = STATUS_OK;
    if (a->control_fd >= 0) /* another file under this number says nothing about living processes */
        status = attachment_has_control(a) ? lock_look(a->control_fd, byte) : STATUS_OS;
    *held = status != STATUS_OK;
    return status == STATUS_BUSY ? STATUS_OK : status;
}

enum status attachment_publisher_alive(struct attachment *a, bool *alive)
{
    *alive = !a->forked;
    return a->role == ROLE_PUBLISHER ? STATUS_OK : attachment_look(a, 0, alive);
}

enum status attachment_map(struct attachment *a, unsigned slot, uint8_t **address, uint64_t *capacity)
{
    pthread_mutex_lock(&a->lock);
    enum status status = slot_map(a, slot);
    *address = a->maps[slot].base;
    *capacity = a->maps[slot].length;
    pthread_mutex_unlock(&a->lock);
    return status;
}

enum status attachment_finish(struct attachment *a, unsigned slot, const struct slot_header *header)
{
    uint8_t *address;
    uint64_t capacity;
    enum status status = attachment_map(a, slot, &address, &capacity);
    if (status != STATUS_OK)
        return status;
    if (header->nbytes > capacity || header->nbytes < sizeof *header ||
        header->schema_nbytes > header->nbytes - sizeof *header)
        return STATUS_FORMAT;
    pthread_mutex_lock(&a->lock);
    a->bases[slot] = base_bit(header->base);
    pthread_mutex_unlock(&a->lock);
    *(struct slot_header *)address = *header;
    return STATUS_OK;
}

enum status attachment_lend(struct attachment *a, unsigned slot, uint8_t **address, uint64_t *capacity)
{
    pthread_mutex_lock(&a->lock);
    enum status status = slot_map(a, slot);
    *address = a->maps[slot].base;
    *capacity = a->maps[slot].length;
    if (status == STATUS_OK)
        a->loans[slot]++;
    pthread_mutex_unlock(&a->lock);
    return status;
}

enum status attachment_seal(struct attachment *a, unsigned slot, const uint8_t *address)
{
    enum status status = STATUS_OK;
    pthread_mutex_lock(&a->lock);
    struct slot_mapping *map = &a->maps[slot];
    if (map->base == address) { /* else it was sealed before */
        const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_FIXED;
        status = !attachment_has_data(a) ||
                         mmap(map->base, map->length, protection, flags, a->data_fd, (off_t)map->offset) == MAP_FAILED
                     ? STATUS_OS
                     : STATUS_OK;
        if (status == STATUS_OK)
            mapping_drop(a, slot);
    }
    pthread_mutex_unlock(&a->lock);
    return status;
}

void attachment_return(struct attachment *a, unsigned slot, const uint8_t *address)
{
    pthread_mutex_lock(&a->lock);
    if (a->maps[slot].base == address)
        a->loans[slot]--;
    else
        orphan_return(a, address);
    pthread_mutex_unlock(&a->lock);
}

void attachment_disown(struct attachment *a)
{
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
    const bool has_data = attachment_has_data(a);
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        const struct slot_mapping *map = &a->maps[slot];
        if (map->base != NULL && (!has_data || mmap(map->base, map->length, protection, flags, a->data_fd,
                                                    (off_t)map->offset) == MAP_FAILED))
            mprotect(map->base, map->length, PROT_READ); /* no memory: a signal is better than a torn version */
    }
}

void attachment_retire(struct attachment *a)
{
    if (a->role != ROLE_PUBLISHER || a->forked)
        return;
    pthread_mutex_lock(&a->lock);
    a->forked = true; /* from here on it may not publish, as a child may not */
    attachment_disown(a);
    pthread_mutex_unlock(&a->lock);
    shared_store_release(&a->channel.control->state, CHANNEL_CLOSED); /* pairs with the waiters' shared_load_acquire */
    futex_wake(&a->channel.shared->sleepers);
    if (attachment_has_control(a))
        lock_drop(a->control_fd, 0);
}

void attachment_abandon(struct attachment *a)
{
    if (a->role != ROLE_PUBLISHER || a->forked)
        return;
    if (attachment_has_control(a))
        lock_drop(a->control_fd, 0);
    a->forked = true;
}

unsigned attachment_reclaim(struct attachment *attachment)
{
    const struct channel *channel = &attachment->channel;
    unsigned reclaimed = 0;
    if (!attachment_has_control(attachment))
        return 0; /* the locks of another file say nothing about these rows */
    uint32_t high_water = shared_load_acquire(&channel->shared->high_water);
    for (uint32_t row = 1; row <= high_water && row <= channel->max_readers; row++) {
        struct reader_row *line = &channel->rows[row];
        if (row == attachment->row || shared_load_relaxed(&line->held) == 0 ||
            lock_take(attachment->control_fd, row) != STATUS_OK)
            continue; /* its owner is alive, or the kernel did not say that it is dead */
        row_note_dead(channel, row, &attachment->journal);
        shared_store_release(&line->held, 0); /* its owner is dead: the kernel gave us its lock */
        shared_store_relaxed(&line->pid, 0);
        lock_drop(attachment->control_fd, row);
        reclaimed++;
    }
    return reclaimed;
}

enum status attachment_row_alive(struct attachment *a, uint32_t row, bool *alive)
{
    return attachment_look(a, row, alive);
}
