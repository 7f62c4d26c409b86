/* A channel on two memfds, for the tests that need real files: attach, publish, look whether a version is whole.
 *
 * A payload is 64-bit words that all equal the version: a torn read is a pair of unequal words.
 */
#ifndef UNTORN_TESTS_CHANNEL_FILES_H
#define UNTORN_TESTS_CHANNEL_FILES_H

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attachment.h"
#include "check.h"
#include "futex.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

struct channel_files {
    int control, data;
};

/* A second description of the same file, as another process would open it. */
static inline int file_reopen(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

static const uint8_t FILES_ID[CHANNEL_ID_NBYTES] = "untorn C tests";

static inline struct channel_files files_make(uint32_t max_readers, uint32_t max_slots, uint32_t keep_slots)
{
    struct channel_files files = {memfd_create("control", MFD_CLOEXEC | MFD_ALLOW_SEALING),
                                  memfd_create("data", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    CHECK(files.control >= 0 && files.data >= 0);
    CHECK(ftruncate(files.control, (off_t)attachment_control_nbytes(max_readers)) == 0);
    CHECK(attachment_format(files.control, FILES_ID, max_readers, max_slots, keep_slots) == STATUS_OK);
    CHECK(attachment_format_data(files.data, FILES_ID) == STATUS_OK);
    return files;
}

static inline void files_close(struct channel_files files)
{
    close(files.control);
    close(files.data);
}

static inline enum status files_try(struct channel_files files, enum attachment_role role, struct attachment **result)
{
    return attachment_open(file_reopen(files.control), file_reopen(files.data), role, NULL, result);
}

static inline struct attachment *files_attach(struct channel_files files, enum attachment_role role)
{
    struct attachment *attachment = NULL;
    enum status status = files_try(files, role, &attachment);
    if (!CHECK(status == STATUS_OK, "status %d, errno %d", (int)status, errno))
        exit(1);
    return attachment;
}

/* Publish the next version with `words` words of payload. */
static inline enum status version_publish(struct attachment *publisher, uint64_t words)
{
    const uint64_t version = latest_version(channel_latest(&publisher->channel)) + 1;
    const uint64_t nbytes = sizeof(struct slot_header) + words * sizeof(uint64_t);
    unsigned slot;
    uint8_t *address;
    uint64_t capacity;
    enum status status = attachment_pick(publisher, nbytes, &slot);
    if (status != STATUS_OK)
        return status;
    status = attachment_map(publisher, slot, &address, &capacity);
    if (status != STATUS_OK)
        return status;
    CHECK(capacity >= nbytes);
    uint64_t *payload = (uint64_t *)(address + sizeof(struct slot_header));
    for (uint64_t i = 0; i < words; i++)
        payload[i] = version;
    *(struct slot_header *)address = (struct slot_header){.version = version, .nbytes = nbytes};
    channel_publish(&publisher->channel, version, slot);
    return STATUS_OK;
}

/* Return whether the pinned slot is a whole version. */
static inline bool pin_is_whole(const struct pin *pin)
{
    const struct slot_header *header = (const struct slot_header *)pin->address;
    const uint64_t *payload = (const uint64_t *)(header + 1);
    const uint64_t words = (pin->nbytes - sizeof *header) / sizeof *payload;
    if (header->version != pin->version || header->nbytes != pin->nbytes)
        return false;
    for (uint64_t i = 0; i < words; i++)
        if (payload[i] != pin->version)
            return false;
    return true;
}

#endif
