/* The places of a channel's slots. See slots.h. */
#include "slots.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "descriptors.h"

uint64_t page_round(uint64_t nbytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (nbytes + page - 1) / page * page;
}

/* A mapping that is lent out stays until the last draft is gone: a user may keep an array of an edit that is over. */
void mapping_drop(struct attachment *a, unsigned slot)
{
    struct slot_mapping *map = &a->maps[slot];
    struct orphan *orphan = a->loans[slot] != 0 ? malloc(sizeof *orphan) : NULL;
    if (orphan != NULL) {
        *orphan = (struct orphan){*map, a->loans[slot], a->orphans};
        a->orphans = orphan;
    } else if (map->base != NULL && a->loans[slot] == 0) {
        munmap(map->base, map->length);
    }
    *map = (struct slot_mapping){0};
    a->loans[slot] = 0;
}

bool extent_is_inside(uint64_t offset, uint64_t capacity, uint64_t file_nbytes)
{
    return offset % (uint64_t)sysconf(_SC_PAGESIZE) == 0 && offset >= sizeof(struct data_header) &&
           offset <= file_nbytes && capacity <= file_nbytes - offset;
}

enum status slot_map(struct attachment *a, unsigned slot)
{
    const struct slot_extent *extent = &a->channel.control->slots[slot];
    uint64_t offset = shared_load_acquire(&extent->offset);
    uint64_t length = shared_load_acquire(&extent->capacity);
    struct slot_mapping *map = &a->maps[slot];
    if (map->base != NULL && map->offset == offset && map->length == length && length != 0)
        return STATUS_OK;
    struct stat stat;
    if (!descriptor_stat(a->data_fd, &a->data_file, &stat))
        return STATUS_OS;
    if (length < sizeof(struct slot_header) || !extent_is_inside(offset, length, (uint64_t)stat.st_size))
        return STATUS_FORMAT;
    mapping_drop(a, slot); /* nothing in this process uses it: the slot was free when its extent changed */
    int protection = a->role == ROLE_READER ? PROT_READ : PROT_READ | PROT_WRITE;
    int flags = a->forked ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED; /* see attachment_disown */
    void *base = mmap(NULL, length, protection, flags, a->data_fd, (off_t)offset);
    if (base == MAP_FAILED)
        return STATUS_OS;
    *map = (struct slot_mapping){base, offset, length};
    return STATUS_OK;
}
