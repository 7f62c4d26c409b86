/* A channel with arbitrary bytes in its files: attaching, pinning, and taking over read and write nothing outside them.
 *
 *     input:  operations on the two files of a valid channel, which has two versions and a free slot:
 *             u8 what | u8 | u16 where | u64 value
 *
 * `what`: 0 to 5 put the value, or its first bytes, into control, rows or data, 6 and 7 cut a file short or make it
 * longer; other values are as 0. The library creates the channel for each input, so the corpus does not age with its
 * format.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attachment.h"
#include "channel_files.h"
#include "fuzz.h"

enum { OPERATION_NBYTES = 12, MAX_OPERATIONS = 64, READERS = 3, WORDS = 64, MAX_FILE_NBYTES = 1 << 20 };

static volatile uint64_t sink;

static struct channel_files channel_make(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    FUZZ_CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    FUZZ_CHECK(version_publish(publisher, 2 * WORDS) == STATUS_OK);
    attachment_close(publisher);
    return files;
}

static void put(int fd, uint64_t at, uint64_t value, unsigned nbytes)
{
    struct stat stat;
    if (fstat(fd, &stat) == 0 && at + sizeof value <= (uint64_t)stat.st_size)
        FUZZ_CHECK(pwrite(fd, &value, nbytes, (off_t)at) == (ssize_t)nbytes);
}

static void operation_do(struct channel_files files, const uint8_t *operation)
{
    const unsigned nbytes = operation[1] % 8 + 1;
    uint64_t where = operation[2] | (uint64_t)operation[3] << 8, value;
    memcpy(&value, operation + 4, sizeof value);
    switch (operation[0] & 7) {
    case 2:
        put(files.control, (uint64_t)sysconf(_SC_PAGESIZE) + where % ((READERS + 1) * CHANNEL_LINE), value, nbytes);
        break;
    case 3: put(files.control, 64 + where % 16, value, 8); break;        /* the latest */
    case 4: put(files.control, 128 + where % (4 * 16), value, 8); break; /* where its slots lie */
    case 5: put(files.data, where, value, nbytes); break;
    case 6: (void)!ftruncate(files.data, (off_t)(value % MAX_FILE_NBYTES)); break;
    case 7: (void)!ftruncate(files.control, (off_t)(value % MAX_FILE_NBYTES)); break;
    default: put(files.control, where % 1152, value, nbytes);
    }
}

static void memory_read(const uint8_t *address, uint64_t nbytes)
{
    for (uint64_t i = 0; i < nbytes; i += 64)
        sink += address[i];
    if (nbytes != 0)
        sink += address[nbytes - 1];
}

static void reader_try(struct channel_files files)
{
    struct attachment *reader;
    struct pin pins[2];
    if (files_try(files, ROLE_READER, &reader) != STATUS_OK)
        return;
    bool alive;
    (void)attachment_publisher_alive(reader, &alive);
    (void)attachment_wait(reader, UINT64_MAX >> 8, 0);
    for (int i = 0; i < 2; i++)
        if (attachment_pin(reader, &pins[i]) == STATUS_OK) {
            uint8_t *writable;
            FUZZ_CHECK(pins[i].nbytes >= sizeof(struct slot_header));
            memory_read(pins[i].address, pins[i].nbytes);
            if (attachment_map_private(reader, &pins[i], &writable) == STATUS_OK) {
                memset(writable, 0, pins[i].nbytes);
                munmap(writable, pins[i].nbytes);
            }
            attachment_unpin(reader, pins[i].slot, pins[i].generation);
        }
    attachment_close(reader);
}

static void publisher_try(struct channel_files files)
{
    struct attachment *publisher;
    if (files_try(files, ROLE_PUBLISHER, &publisher) != STATUS_OK)
        return;
    for (uint64_t words = WORDS; words <= 4 * WORDS; words *= 2) {
        uint8_t *address;
        uint64_t capacity;
        unsigned slot;
        const uint64_t nbytes = sizeof(struct slot_header) + words * sizeof(uint64_t);
        if (attachment_pick(publisher, nbytes, &slot) != STATUS_OK ||
            attachment_map(publisher, slot, &address, &capacity) != STATUS_OK)
            break;
        FUZZ_CHECK(slot < CHANNEL_MAX_SLOTS && capacity >= nbytes);
        memset(address, 0, nbytes);
        *(struct slot_header *)address = (struct slot_header){.version = words, .nbytes = nbytes};
        channel_publish(&publisher->channel, words, slot);
    }
    attachment_reclaim(publisher);
    attachment_retire(publisher);
    attachment_close(publisher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct channel_files files = channel_make();
    for (size_t i = 0; i < MAX_OPERATIONS && (i + 1) * OPERATION_NBYTES <= nbytes; i++)
        operation_do(files, data + i * OPERATION_NBYTES);
    reader_try(files);
    publisher_try(files);
    reader_try(files);
    files_close(files);
    return 0;
}
