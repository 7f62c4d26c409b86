/* The file of a queue: its sizes, and its layout. See queue_file.h. */
#include "queue_file.h"

#include <string.h>

#include "futex.h"
#include "rows.h"
#include "slots.h"
#include "space.h"

/* The boot of the kernel; zeros where it does not say, as without /proc. */
static enum status boot_read(uint8_t boot[16])
{
    char text[64] = "";
    int fd;
    memset(boot, 0, 16);
    while ((fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)) < 0)
        if (errno != EINTR)
            return errno == ENOENT || errno == EACCES || errno == EPERM ? STATUS_OK : STATUS_OS;
    ssize_t got;
    while ((got = read(fd, text, sizeof text - 1)) < 0 && errno == EINTR)
        ;
    int cause = errno;
    close(fd);
    errno = cause;
    if (got < 0)
        return STATUS_OS;
    for (size_t i = 0, at = 0; text[i] != 0 && at < 32; i++) {
        const char c = text[i];
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')) {
            boot[at / 2] = (uint8_t)(boot[at / 2] << 4 | (c <= '9' ? c - '0' : c - 'a' + 10));
            at++;
        }
    }
    return STATUS_OK;
}

/* Whether both are known, and differ. */
static bool boots_differ(const uint8_t one[16], const uint8_t other[16])
{
    static const uint8_t unknown[16];
    return memcmp(one, other, 16) != 0 && memcmp(one, unknown, 16) != 0 && memcmp(other, unknown, 16) != 0;
}

/* Fill in everything that follows from the sizes. */
static enum status head_make(struct queue_head *head, const struct queue_sizes *sizes)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint32_t slots = (2 * sizes->capacity + sizes->max_processes + 63) / 64 * 64;
    *head = (struct queue_head){
        .layout = QUEUE_LAYOUT,
        .byte_order = QUEUE_BYTE_ORDER,
        .max_processes = sizes->max_processes,
        .capacity = sizes->capacity,
        .slots = slots,
        .cells = 64,
        .small_nbytes = slots <= 8192 ? 1024 : 256,
        .page_nbytes = (uint32_t)page,
        .limit_pages = (sizes->nbytes + page - 1) / page,
        .created_ns = clock_wall_ns(),
    };
    memcpy(head->magic, QUEUE_MAGIC, sizeof head->magic);
    while (head->cells <= head->capacity)
        head->cells *= 2;
    head->window_nbytes = head->limit_pages * page;
    head->rows_offset = page_round(sizeof *head);
    head->slots_offset = head->rows_offset + page_round((uint64_t)(head->max_processes + 1) * QUEUE_LINE);
    head->ring_offset = head->slots_offset + page_round((uint64_t)slots * QUEUE_LINE);
    head->map_offset = head->ring_offset + page_round((uint64_t)head->cells * sizeof(uint64_t));
    head->small_offset = head->map_offset + page_round((uint64_t)slots / 64 * sizeof(uint64_t));
    head->windows_offset = head->small_offset + page_round((uint64_t)slots * head->small_nbytes);
    if (head->limit_pages > UINT32_MAX ||
        head->window_nbytes > ((uint64_t)INT64_MAX - head->windows_offset) / head->slots)
        return STATUS_TOO_LARGE;
    return STATUS_OK;
}

/* The first position is `cells`: cells of zeros are then of an older round. */
static void head_begin(struct queue_head *head)
{
    shared_store_relaxed(&head->tail, head->cells);
    shared_store_relaxed(&head->head, head->cells);
    shared_store_relaxed(&head->space, QUEUE_NO_SLOT);
}

static enum status map_begin(int fd, const struct queue_head *head)
{
    uint64_t bits = UINT64_MAX;
    for (uint32_t at = 0; at < head->slots / 64; at++)
        if (pwrite(fd, &bits, sizeof bits, (off_t)(head->map_offset + at * sizeof bits)) != (ssize_t)sizeof bits)
            return STATUS_OS;
    return STATUS_OK;
}

enum status queue_file_format(int fd, const uint8_t id[QUEUE_ID_NBYTES], const struct queue_sizes *sizes)
{
    struct queue_head head;
    enum status status = head_make(&head, sizes);
    if (status == STATUS_OK)
        status = boot_read(head.boot);
    if (status != STATUS_OK)
        return status;
    memcpy(head.id, id, sizeof head.id);
    head_begin(&head);
    if (ftruncate(fd, (off_t)(head.windows_offset + head.window_nbytes * head.slots)) != 0)
        return errno == EFBIG || errno == EINVAL ? STATUS_TOO_LARGE : STATUS_OS;
    status = space_reserve(fd, 0, head.windows_offset);
    if (status != STATUS_OK) { /* the file's length says how much was needed */
        const int cause = errno;
        (void)!ftruncate(fd, (off_t)head.windows_offset);
        errno = cause;
    }
    if (status == STATUS_OK)
        status = map_begin(fd, &head);
    if (status != STATUS_OK)
        return status;
    return pwrite(fd, &head, sizeof head, 0) == (ssize_t)sizeof head ? STATUS_OK : STATUS_OS;
}

enum status queue_file_check(int fd, const uint8_t *id, struct queue_head *head)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return STATUS_OS;
    ssize_t got = S_ISREG(stat.st_mode) ? pread(fd, head, sizeof *head, 0) : 0;
    if (got < 0)
        return STATUS_OS;
    if (got != (ssize_t)sizeof *head || memcmp(head->magic, QUEUE_MAGIC, sizeof head->magic) != 0)
        return STATUS_FORMAT;
    if (head->layout != QUEUE_LAYOUT || head->byte_order != QUEUE_BYTE_ORDER)
        return STATUS_LAYOUT;
    if (head->page_nbytes != (uint32_t)sysconf(_SC_PAGESIZE) || head->max_processes == 0 || head->capacity == 0 ||
        head->max_processes > QUEUE_MAX_PROCESSES || head->capacity > QUEUE_MAX_CAPACITY || head->limit_pages == 0 ||
        head->limit_pages > UINT32_MAX)
        return STATUS_FORMAT;
    struct queue_head expected;
    const struct queue_sizes sizes = {head->max_processes, head->capacity, head->limit_pages * head->page_nbytes};
    if (head_make(&expected, &sizes) != STATUS_OK)
        return STATUS_FORMAT;
    const size_t first = offsetof(struct queue_head, max_processes), behind = offsetof(struct queue_head, created_ns);
    if (memcmp((const char *)head + first, (const char *)&expected + first, behind - first) != 0 ||
        (uint64_t)stat.st_size < expected.windows_offset + expected.window_nbytes * expected.slots)
        return STATUS_FORMAT;
    enum status status = boot_read(expected.boot);
    if (status != STATUS_OK)
        return status;
    if (boots_differ(head->boot, expected.boot))
        return STATUS_BOOT;
    return id != NULL && memcmp(head->id, id, sizeof head->id) != 0 ? STATUS_OTHER : STATUS_OK;
}
