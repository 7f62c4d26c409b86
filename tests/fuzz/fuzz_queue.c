/* A queue with arbitrary bytes in its file: opening, taking, putting and reaping read and write nothing outside it, and
 * come to an end.
 *
 *     input:  operations on the file of a valid queue:
 *             u8 what | u8 | u16 where | u64 value
 *
 * In the queue wait a small item and one with pages; one was taken, and one is written, by a process that died. `what`:
 * 0 and 1 put the value, or its first bytes, into the head, 2 into the rows, 3 into the slots, 4 into the ring, 5 into
 * the map of free slots, 6 into an item, 7 makes the file shorter or longer; other values are as 0. The library makes
 * the queue for each input, so the corpus does not age with its layout.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "queue_side.h"
#include "slots.h"

enum { OPERATION_NBYTES = 12, MAX_OPERATIONS = 64, ROWS = 3, CAPACITY = 4, LIMIT_NBYTES = 1 << 16, TRIES = 80 };

static const uint8_t ID[QUEUE_ID_NBYTES] = "untorn fuzzing.";
static volatile uint64_t sink;

/* A second description of the same file, as another process would open it. */
static int file_reopen(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void item_put(struct queue_side *side, uint64_t nbytes)
{
    struct queue_place place;
    FUZZ_CHECK(queue_side_begin(side, nbytes, false, &place) == STATUS_OK);
    memset(place.address, 7, nbytes);
    FUZZ_CHECK(queue_side_put(side, &place) == STATUS_OK);
}

static int queue_make(struct queue_head *head)
{
    const struct queue_sizes sizes = {ROWS, CAPACITY, LIMIT_NBYTES};
    const int fd = memfd_create("queue", MFD_CLOEXEC);
    struct queue_side *side;
    struct queue_place place;
    FUZZ_CHECK(fd >= 0 && queue_file_format(fd, ID, &sizes) == STATUS_OK);
    FUZZ_CHECK(queue_side_open(file_reopen(fd), ID, &side) == STATUS_OK);
    item_put(side, 100);
    item_put(side, 5000);
    item_put(side, 200);
    FUZZ_CHECK(queue_side_take(side, &place) == STATUS_OK);
    FUZZ_CHECK(queue_side_begin(side, 9000, true, &place) == STATUS_OK);
    *head = *side->queue.head;
    queue_side_close(side); /* its row says nothing now, but its slots name it, as a dead process's do */
    const uint32_t attached = 1;
    FUZZ_CHECK(pwrite(fd, &attached, sizeof attached, (off_t)(head->rows_offset + QUEUE_LINE)) == sizeof attached);
    return fd;
}

static void put(int fd, uint64_t at, uint64_t value, unsigned nbytes)
{
    struct stat stat;
    if (fstat(fd, &stat) == 0 && at + sizeof value <= (uint64_t)stat.st_size)
        FUZZ_CHECK(pwrite(fd, &value, nbytes, (off_t)at) == (ssize_t)nbytes);
}

static void operation_do(int fd, const struct queue_head *head, const uint8_t *operation)
{
    const unsigned nbytes = operation[1] % 8 + 1;
    const uint64_t where = operation[2] | (uint64_t)operation[3] << 8;
    uint64_t value;
    memcpy(&value, operation + 4, sizeof value);
    switch (operation[0] & 7) {
    case 2: put(fd, head->rows_offset + where % ((ROWS + 1) * QUEUE_LINE), value, nbytes); break;
    case 3: put(fd, head->slots_offset + where % (8 * QUEUE_LINE), value, nbytes); break;
    case 4: put(fd, head->ring_offset + where % (head->cells * 8), value, nbytes); break;
    case 5: put(fd, head->map_offset + where % 8, value, nbytes); break;
    case 6: put(fd, head->small_offset + where, value, nbytes); break;
    case 7: (void)!ftruncate(fd, (off_t)(value % (2 * (head->windows_offset + head->slots * LIMIT_NBYTES)))); break;
    default: put(fd, where % sizeof *head, value, nbytes);
    }
}

static void memory_read(const uint8_t *address, uint64_t nbytes)
{
    for (uint64_t i = 0; i < nbytes; i += 64)
        sink += address[i];
    sink += address[nbytes - 1];
}

static bool item_try_get(struct queue_side *side, unsigned turn)
{
    struct queue_place place;
    uint8_t *writable;
    if (queue_side_take(side, &place) != STATUS_OK)
        return false;
    FUZZ_CHECK(place.nbytes >= sizeof(struct slot_header));
    memory_read(place.address, place.nbytes);
    if (queue_side_map_private(side, &place, &writable) == STATUS_OK) {
        memset(writable, 0, place.nbytes);
        munmap(writable, place.nbytes);
    }
    const bool finished = turn % 3 != 0 && queue_side_finish(side, &place) == STATUS_OK;
    queue_side_end(side, &place, finished ? QUEUE_END_FREE : QUEUE_END_BACK);
    return true;
}

static void item_try_put(struct queue_side *side, uint64_t nbytes, bool windowed)
{
    struct queue_place place;
    if (queue_side_begin(side, nbytes, windowed, &place) != STATUS_OK)
        return;
    FUZZ_CHECK(place.nbytes >= nbytes);
    memset(place.address, 1, nbytes);
    if (windowed)
        (void)queue_side_seal(side, &place);
    if (queue_side_put(side, &place) != STATUS_OK)
        queue_side_end(side, &place, QUEUE_END_FREE);
    else
        queue_side_end(side, &place, QUEUE_END_GONE);
}

static void side_try(int fd)
{
    struct queue_side *side;
    uint64_t waiting;
    bool closed, alive;
    if (queue_side_open(file_reopen(fd), NULL, &side) != STATUS_OK)
        return;
    (void)queue_look(&side->queue, &waiting, &closed);
    (void)queue_side_row_alive(side, 1, &alive);
    for (unsigned turn = 0; turn < TRIES && item_try_get(side, turn); turn++)
        ;
    for (unsigned turn = 0; turn < 2 * CAPACITY; turn++) {
        item_try_put(side, turn % 2 == 0 ? 100 : 3000 * turn, turn % 3 == 0);
        (void)item_try_get(side, turn);
    }
    (void)queue_side_reap(side, true);
    (void)queue_side_wait(side, false, UINT64_MAX, 0);
    (void)queue_close(&side->queue);
    for (unsigned turn = 0; turn < TRIES && item_try_get(side, turn); turn++)
        ;
    queue_side_close(side);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct queue_head head;
    const int fd = queue_make(&head);
    for (size_t i = 0; i < MAX_OPERATIONS && (i + 1) * OPERATION_NBYTES <= nbytes; i++)
        operation_do(fd, &head, data + i * OPERATION_NBYTES);
    side_try(fd);
    side_try(fd);
    close(fd);
    return 0;
}
