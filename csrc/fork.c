/* Attachments across fork. See fork.h. */
#include "fork.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "descriptors.h"
#include "rows.h"

/* All attachments that are followed. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct attachment *registry;
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;

static uint8_t *memory_copy(const struct slot_mapping *map)
{
    void *copy = mmap(NULL, map->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    memcpy(copy, map->base, map->length);
    return copy;
}

static int description_duplicate(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return descriptor_keep(open(path, O_RDWR | O_CLOEXEC));
}

static void fork_prepare_one(struct attachment *a)
{
    pthread_mutex_lock(&a->lock);
    a->fork_row = 0;
    a->fork_fd = attachment_has_control(a) ? description_duplicate(a->control_fd) : -1;
    if (a->row == 0)
        return;
    if (a->fork_fd >= 0)
        (void)row_take(&a->channel, a->fork_fd, shared_load_relaxed(&a->channel.rows[a->row].held), &a->journal,
                       &a->fork_row);
    if (a->fork_row != 0) {
        shared_add(&a->channel.shared->handoffs, 1); /* pairs with channel_held */
        return;
    }
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++)
        a->fork_copies[slot] = a->pins[slot] != 0 ? memory_copy(&a->maps[slot]) : NULL;
}

static void fork_parent_one(struct attachment *a)
{
    if (a->fork_fd >= 0)
        close(a->fork_fd); /* the child keeps the description, and with it the row, alive */
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        if (a->fork_copies[slot] != NULL)
            munmap(a->fork_copies[slot], a->maps[slot].length);
        a->fork_copies[slot] = NULL;
    }
    pthread_mutex_unlock(&a->lock);
}

/* Go over to the second description with the descriptor and with the mappings: these keep a description, and so its
 * locks, alive as well. Without one (no descriptor was left) this attachment ends here. */
static void fork_child_control(struct attachment *a)
{
    int flags = MAP_SHARED | MAP_FIXED, protection = a->role == ROLE_READER ? PROT_READ : PROT_READ | PROT_WRITE;
    off_t rows_offset = (off_t)a->channel.control->rows_offset;
    if (a->fork_fd < 0)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    void *control = mmap(a->channel.control, a->control_nbytes, protection, flags, a->fork_fd, 0);
    void *rows = mmap(a->channel.rows, a->rows_nbytes, PROT_READ | PROT_WRITE, flags, a->fork_fd, rows_offset);
    if (control == MAP_FAILED || rows == MAP_FAILED)
        abort(); /* no memory for a mapping that replaces one: this child could only do harm */
    if (a->fork_fd >= 0) {
        dup3(a->fork_fd, a->control_fd, O_CLOEXEC);
        close(a->fork_fd);
    } else {
        if (attachment_has_control(a))
            close(a->control_fd);
        a->control_fd = -1;
    }
}

static void fork_child_one(struct attachment *a)
{
    fork_child_control(a);
    if (a->role != ROLE_READER) {
        a->forked = true;
        attachment_disown(a);
    }
    if (a->fork_row != 0)
        shared_store_relaxed(&a->channel.rows[a->fork_row].pid, (uint32_t)getpid());
    if (a->row != 0 && a->fork_row == 0) {
        for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
            if (a->pins[slot] == 0)
                continue;
            if (a->fork_copies[slot] == NULL) /* no memory: a view that cannot be read is better than a torn one */
                mprotect(a->maps[slot].base, a->maps[slot].length, PROT_NONE);
            else
                mremap(a->fork_copies[slot], a->maps[slot].length, a->maps[slot].length, MREMAP_MAYMOVE | MREMAP_FIXED,
                       a->maps[slot].base);
            a->fork_copies[slot] = NULL;
            a->maps[slot] = (struct slot_mapping){0}; /* the copy belongs only to the views */
            a->pins[slot] = 0;
        }
        a->generation++;
    }
    a->row = a->fork_row;
    journal_clear(&a->journal);
    pthread_mutex_unlock(&a->lock);
}

static void fork_prepare(void)
{
    pthread_mutex_lock(&registry_lock);
    for (struct attachment *a = registry; a != NULL; a = a->next)
        fork_prepare_one(a);
}

static void fork_parent(void)
{
    for (struct attachment *a = registry; a != NULL; a = a->next)
        fork_parent_one(a);
    pthread_mutex_unlock(&registry_lock);
}

static void fork_child(void)
{
    for (struct attachment *a = registry; a != NULL; a = a->next)
        fork_child_one(a);
    pthread_mutex_unlock(&registry_lock);
}

static void registry_start(void) { pthread_atfork(fork_prepare, fork_parent, fork_child); }

void fork_follow(struct attachment *a)
{
    pthread_once(&registry_once, registry_start);
    pthread_mutex_lock(&registry_lock);
    a->next = registry;
    if (registry != NULL)
        registry->previous = a;
    registry = a;
    pthread_mutex_unlock(&registry_lock);
}

/* Look under the lock: a neighbour may be coming or going. */
void fork_forget(struct attachment *a)
{
    pthread_mutex_lock(&registry_lock);
    if (a->next != NULL)
        a->next->previous = a->previous;
    if (a->previous != NULL)
        a->previous->next = a->next;
    else if (registry == a)
        registry = a->next;
    pthread_mutex_unlock(&registry_lock);
}
