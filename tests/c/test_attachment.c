/* Attachments on real memfds: attaching, garbage, the space of slots, and fork and kills with real processes.
 *
 * A child reports the number of its failed checks through its exit status, and its progress through a pipe.
 */
#include <signal.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "channel_files.h"

enum { WORDS = 1024, READERS = 8 };

static uint64_t payload_nbytes(uint64_t words) { return sizeof(struct slot_header) + words * sizeof(uint64_t); }

static uint64_t file_used_nbytes(int fd)
{
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0);
    return (uint64_t)stat.st_blocks * 512;
}

static uint64_t page_nbytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static uint64_t row_held(struct attachment *attachment)
{
    return shared_load_acquire(&attachment->channel.rows[attachment->row].held);
}

/* -- processes -------------------------------------------------------------------------------------------------- */

struct child {
    pid_t pid;
    int to, from; /* the parent's ends: "go on", "I am there" */
};

/* Returns 0 in the child, as fork does. Attachments stand still meanwhile, as in any fork. */
static bool child_start(struct child *child)
{
    int to[2], from[2];
    CHECK(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    fflush(stdout);
    child->pid = fork();
    if (child->pid == 0) {
        *child = (struct child){0, from[1], to[0]};
        close(to[1]);
        close(from[0]);
        atomic_store(&check_state.failures, 0);
        return true;
    }
    CHECK(child->pid > 0);
    *child = (struct child){child->pid, to[1], from[0]};
    close(to[0]);
    close(from[1]);
    return false;
}

static bool child_send(const struct child *child) { return write(child->to, "", 1) == 1; }
static bool child_await(const struct child *child)
{
    char byte;
    return read(child->from, &byte, 1) == 1;
}

static void child_exit(void) { _exit(atomic_load(&check_state.failures) != 0); }

static void child_join(struct child *child, bool killed)
{
    int status = -1;
    if (killed)
        kill(child->pid, SIGKILL);
    CHECK(waitpid(child->pid, &status, 0) == child->pid);
    CHECK(killed ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    close(child->to);
    close(child->from);
}

/* -- attaching -------------------------------------------------------------------------------------------------- */

static bool publisher_lives(struct attachment *attachment)
{
    bool alive = false;
    CHECK(attachment_publisher_alive(attachment, &alive) == STATUS_OK);
    return alive;
}

static bool row_lives(struct attachment *attachment, uint32_t row)
{
    bool alive = false;
    CHECK(attachment_row_alive(attachment, row, &alive) == STATUS_OK);
    return alive;
}

static void test_format(void)
{
    struct channel_files files = files_make(READERS, 6, 3);
    struct control control;
    CHECK(pread(files.control, &control, sizeof control, 0) == (ssize_t)sizeof control);
    CHECK(memcmp(control.magic, CHANNEL_MAGIC, 8) == 0 && control.layout == CHANNEL_LAYOUT);
    CHECK(control.max_readers == READERS && control.max_slots == 6 && control.keep_slots == 3);
    CHECK(control.rows_offset % page_nbytes() == 0 && control.rows_offset >= sizeof control);
    CHECK(control.latest == 0 && control.state == CHANNEL_OPEN && control.created_ns > 0);
    CHECK(attachment_control_nbytes(1) == 2 * page_nbytes());
    CHECK(attachment_control_nbytes(65535) ==
          page_nbytes() + (65536 * CHANNEL_LINE + page_nbytes() - 1) / page_nbytes() * page_nbytes());
    files_close(files);
}

static void test_roles(void)
{
    struct channel_files files = files_make(2, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *second, *reader, *writer;
    CHECK(files_try(files, ROLE_PUBLISHER, &second) == STATUS_BUSY);
    reader = files_attach(files, ROLE_READER);
    writer = files_attach(files, ROLE_WRITER);
    CHECK(publisher->row == 0 && reader->row == 1 && writer->row == 2);
    CHECK(files_try(files, ROLE_READER, &second) == STATUS_NO_ROW);
    CHECK(publisher_lives(publisher) && publisher_lives(reader) && publisher_lives(writer));
    CHECK(row_lives(publisher, 1) && row_lives(publisher, 2) && row_lives(reader, 2));
    CHECK(!row_lives(reader, 1), "one's own row");
    attachment_close(reader);
    CHECK(!row_lives(publisher, 1));
    reader = files_attach(files, ROLE_READER);
    CHECK(reader->row == 1, "a row is used again");
    attachment_close(publisher);
    CHECK(!publisher_lives(reader));
    publisher = files_attach(files, ROLE_PUBLISHER);
    CHECK(publisher_lives(reader));
    attachment_close(publisher);
    attachment_close(reader);
    attachment_close(writer);
    files_close(files);
}

static void garbage_check(const void *bytes, size_t nbytes, enum status expected, const char *what)
{
    for (enum attachment_role role = ROLE_READER; role <= ROLE_PUBLISHER; role++) {
        struct channel_files files = {memfd_create("garbage", MFD_CLOEXEC), memfd_create("garbage", MFD_CLOEXEC)};
        struct attachment *attachment = NULL;
        CHECK(pwrite(files.control, bytes, nbytes, 0) == (ssize_t)nbytes);
        CHECK(attachment_format_data(files.data, FILES_ID) == STATUS_OK);
        enum status status = files_try(files, role, &attachment);
        CHECK(status == expected, "%s as role %d: status %d", what, (int)role, (int)status);
        if (status == STATUS_OK)
            attachment_close(attachment);
        files_close(files);
    }
}

static void test_garbage(void)
{
    const size_t nbytes = attachment_control_nbytes(READERS);
    struct channel_files files = files_make(READERS, 4, 2);
    uint8_t *good = malloc(nbytes), *bad = malloc(nbytes);
    CHECK(pread(files.control, good, nbytes, 0) == (ssize_t)nbytes);
    files_close(files);
    garbage_check(good, nbytes, STATUS_OK, "a channel");
    garbage_check(good, 0, STATUS_FORMAT, "an empty file");
    garbage_check(good, 7, STATUS_FORMAT, "seven bytes");
    garbage_check(good, sizeof(struct control) - 1, STATUS_FORMAT, "half a page");
    garbage_check(good, sizeof(struct control), STATUS_FORMAT, "no rows");
    garbage_check(good, page_nbytes() + READERS * CHANNEL_LINE, STATUS_FORMAT, "one row too few");
    static const struct {
        size_t offset, nbytes;
        uint64_t value;
        enum status expected;
    } edits[] = {
        {offsetof(struct control, magic), 1, 'U', STATUS_FORMAT},
        {offsetof(struct control, magic) + 6, 1, '\n', STATUS_FORMAT},
        {offsetof(struct control, layout), 4, CHANNEL_LAYOUT + 1, STATUS_LAYOUT},
        {offsetof(struct control, byte_order), 4, 0x04030201, STATUS_LAYOUT},
        {offsetof(struct control, max_readers), 4, 0, STATUS_FORMAT},
        {offsetof(struct control, max_readers), 4, CHANNEL_MAX_READERS + 1, STATUS_FORMAT},
        {offsetof(struct control, max_readers), 4, UINT32_MAX, STATUS_FORMAT},
        {offsetof(struct control, max_readers), 4, 64 * 1024 - 1, STATUS_FORMAT},
        {offsetof(struct control, max_slots), 4, 1, STATUS_FORMAT},
        {offsetof(struct control, max_slots), 4, CHANNEL_MAX_SLOTS + 1, STATUS_FORMAT},
        {offsetof(struct control, rows_offset), 8, 0, STATUS_FORMAT},
        {offsetof(struct control, rows_offset), 8, 2048, STATUS_FORMAT},
        {offsetof(struct control, rows_offset), 8, UINT64_C(1) << 63, STATUS_FORMAT},
        {offsetof(struct control, rows_offset), 8, UINT64_MAX - 4095, STATUS_FORMAT},
    };
    for (unsigned i = 0; i < sizeof edits / sizeof *edits; i++) {
        char what[32];
        snprintf(what, sizeof what, "edit %u", i);
        memcpy(bad, good, nbytes);
        memcpy(bad + edits[i].offset, &edits[i].value, edits[i].nbytes);
        garbage_check(bad, nbytes, edits[i].expected, what);
    }
    uint64_t stream = check_stream(0);
    for (int round = 0; round < 50; round++) {
        for (size_t i = 0; i < nbytes; i++)
            bad[i] = (uint8_t)check_random(&stream);
        garbage_check(bad, 1 + check_random(&stream) % nbytes, STATUS_FORMAT, "noise");
    }
    free(good);
    free(bad);
}

/* Two files that are each a channel's, but not of one channel, are refused in every role, before any lock is taken. */
static void test_two_files_one_channel(void)
{
    static const uint8_t other_id[CHANNEL_ID_NBYTES] = "another channel";
    struct channel_files files = files_make(READERS, 4, 2), other = files_make(READERS, 4, 2);
    struct attachment *attachment = NULL;
    struct data_header header;
    CHECK(pwrite(other.control, other_id, sizeof other_id, offsetof(struct control, id)) == (ssize_t)sizeof other_id);
    CHECK(pwrite(other.data, other_id, sizeof other_id, offsetof(struct data_header, id)) == (ssize_t)sizeof other_id);
    const struct channel_files mixed[] = {{files.control, other.data}, {other.control, files.data}};
    for (enum attachment_role role = ROLE_READER; role <= ROLE_PUBLISHER; role++) {
        for (unsigned i = 0; i < 2; i++) {
            for (uint32_t state = CHANNEL_OPEN; state <= CHANNEL_NAMING; state++) {
                CHECK(pwrite(mixed[i].control, &state, sizeof state, offsetof(struct control, state)) ==
                      (ssize_t)sizeof state);
                enum status expected = state == CHANNEL_NAMING ? STATUS_NAMING : STATUS_MIXED;
                CHECK(files_try(mixed[i], role, &attachment) == expected, "role %d, state %u", (int)role, state);
            }
        }
        CHECK(attachment_open(file_reopen(files.control), file_reopen(files.data), role, other_id, &attachment) ==
              STATUS_OTHER);
        CHECK(attachment_open(file_reopen(files.control), file_reopen(files.data), role, FILES_ID, &attachment) ==
              STATUS_OK);
        attachment_close(attachment);
        CHECK(files_try(other, role, &attachment) == STATUS_OK);
        attachment_close(attachment);
    }
    CHECK(pread(files.data, &header, sizeof header, 0) == (ssize_t)sizeof header);
    for (size_t at = 0; at < offsetof(struct data_header, id); at++) {
        struct data_header damaged = header;
        ((uint8_t *)&damaged)[at] ^= 1;
        CHECK(pwrite(files.data, &damaged, sizeof damaged, 0) == (ssize_t)sizeof damaged);
        enum status expected = at < sizeof header.magic ? STATUS_DATA : STATUS_LAYOUT;
        CHECK(files_try(files, ROLE_READER, &attachment) == expected, "byte %zu", at);
        CHECK(attachment_format_data(files.data, FILES_ID) == STATUS_DATA, "another file is not touched");
    }
    for (off_t length = 0; length < (off_t)sizeof header; length++) {
        CHECK(ftruncate(files.data, 0) == 0 && pwrite(files.data, &header, (size_t)length, 0) == length);
        CHECK(files_try(files, ROLE_READER, &attachment) == STATUS_DATA, "%d bytes", (int)length);
        CHECK(attachment_format_data(files.data, other_id) == (length > 16 ? STATUS_DATA : STATUS_OK), "%d bytes",
              (int)length);
        CHECK(ftruncate(files.data, 0) == 0 && pwrite(files.data, &header, (size_t)length, 0) == length);
        CHECK(attachment_format_data(files.data, FILES_ID) == STATUS_OK);
        CHECK(files_try(files, ROLE_READER, &attachment) == STATUS_OK);
        attachment_close(attachment);
    }
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(files_try((struct channel_files){files.control, null}, ROLE_READER, &attachment) == STATUS_DATA);
    CHECK(files_try((struct channel_files){null, files.data}, ROLE_READER, &attachment) == STATUS_FORMAT);
    close(null);
    files_close(files);
    files_close(other);
}

/* A publisher without a data file: it has the lock, and changes nothing before it has the right data file. */
static void test_adopt(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher, *second;
    uint32_t state = CHANNEL_NAMING;
    CHECK(pwrite(files.control, &state, sizeof state, offsetof(struct control, state)) == (ssize_t)sizeof state);
    for (enum attachment_role role = ROLE_READER; role <= ROLE_WRITER; role++)
        CHECK(attachment_open(file_reopen(files.control), -1, role, NULL, &second) == STATUS_OS);
    CHECK(attachment_open(file_reopen(files.control), -1, ROLE_PUBLISHER, NULL, &publisher) == STATUS_OK);
    CHECK(attachment_open(file_reopen(files.control), -1, ROLE_PUBLISHER, NULL, &second) == STATUS_BUSY);
    CHECK(files_try(files, ROLE_PUBLISHER, &second) == STATUS_BUSY);
    CHECK(attachment_adopt(publisher, file_reopen(files.control)) == STATUS_DATA);
    CHECK(publisher->channel.control->state == CHANNEL_NAMING && publisher->channel.control->publisher_pid == 0);
    struct child child; /* inherits the lock as little as that of any publisher */
    if (child_start(&child)) {
        CHECK(attachment_adopt(publisher, file_reopen(files.data)) == STATUS_FORKED);
        child_send(&child);
        child_await(&child);
        child_exit();
    }
    CHECK(child_await(&child));
    attachment_close(publisher);
    CHECK(attachment_open(file_reopen(files.control), -1, ROLE_PUBLISHER, NULL, &publisher) == STATUS_OK);
    child_send(&child);
    child_join(&child, false);
    CHECK(attachment_adopt(publisher, file_reopen(files.data)) == STATUS_OK);
    CHECK(publisher->channel.control->state == CHANNEL_OPEN);
    CHECK(publisher->channel.control->publisher_pid == (uint32_t)getpid());
    CHECK(attachment_adopt(publisher, file_reopen(files.data)) == STATUS_FORKED, "it has one");
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    attachment_set_naming(publisher, true);
    CHECK(publisher->channel.control->state == CHANNEL_NAMING);
    attachment_close(publisher);
    files_close(files);
}

/* With the standard streams closed, nothing that is kept lands on their numbers; a child's duplicates neither. */
static void test_standard_streams_closed(void)
{
    struct child child;
    if (!child_start(&child)) {
        child_join(&child, false);
        return;
    }
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *attachment;
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    for (enum attachment_role role = ROLE_READER; role <= ROLE_PUBLISHER; role++) {
        attachment = files_attach(files, role);
        CHECK(attachment->control_fd > 2 && attachment->data_fd > 2);
        if (role != ROLE_PUBLISHER)
            attachment_close(attachment);
    }
    pid_t pid = fork();
    if (pid == 0) {
        bool low = attachment->control_fd <= 2 || attachment->data_fd <= 2;
        for (int fd = 0; fd < 3; fd++)
            low |= fcntl(fd, F_GETFD) != -1;
        _exit(low);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    attachment_close(attachment);
    for (int fd = 0; fd < 3; fd++)
        CHECK(fcntl(fd, F_GETFD) == -1, "descriptor %d", fd);
    child_exit();
}

/* A wild `latest`, a slot table that points anywhere, a header that promises too much: an answer, never a signal. */
static void test_garbage_behind_a_good_identity(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct control *control = publisher->channel.control;
    struct pin pin;
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT, "no version yet");
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    const uint64_t latest = channel_latest(&publisher->channel);
    struct slot_extent *extent = &control->slots[latest_slot(latest)];
    const uint64_t offset = extent->offset, capacity = extent->capacity;
    struct slot_header *header;
    uint8_t *address;
    uint64_t length;
    CHECK(attachment_map(publisher, latest_slot(latest), &address, &length) == STATUS_OK && length == capacity);
    header = (struct slot_header *)address;

    control->latest = latest_make(1, latest_slot(latest) + 1);
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT, "a slot without space");
    control->latest = latest_make(2, latest_slot(latest));
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT, "a slot of another version");
    control->latest = latest;
    static const uint64_t wild[] = {0, 1, 63, UINT64_C(1) << 40, UINT64_MAX, UINT64_MAX - 4095};
    for (unsigned i = 0; i < sizeof wild / sizeof *wild; i++) {
        extent->capacity = wild[i];
        CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT, "capacity %" PRIx64, wild[i]);
        extent->capacity = capacity;
        if (wild[i] <= 63)
            continue;
        extent->offset = wild[i];
        CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT, "offset %" PRIx64, wild[i]);
        extent->offset = offset;
    }
    const uint64_t nbytes = header->nbytes;
    header->nbytes = capacity + 1;
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT);
    header->nbytes = sizeof *header - 1;
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT);
    header->nbytes = nbytes;
    header->schema_nbytes = nbytes - sizeof *header + 1;
    CHECK(attachment_pin(reader, &pin) == STATUS_FORMAT);
    header->schema_nbytes = 0;
    CHECK(row_held(reader) == 0, "a failed pin holds nothing");
    CHECK(attachment_pin(reader, &pin) == STATUS_OK && pin_is_whole(&pin));
    attachment_unpin(reader, pin.slot, pin.generation);
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* -- slots ------------------------------------------------------------------------------------------------------ */

static void test_pin_and_unpin(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin first, again, second;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(attachment_pin(reader, &first) == STATUS_OK && attachment_pin(reader, &again) == STATUS_OK);
    CHECK(first.version == 1 && again.version == 1 && first.address == again.address && pin_is_whole(&first));
    CHECK(version_publish(publisher, 3 * WORDS) == STATUS_OK);
    CHECK(attachment_pin(reader, &second) == STATUS_OK && second.version == 2 && second.slot != first.slot);
    CHECK(row_held(reader) == (slot_bit(first.slot) | slot_bit(second.slot)));
    attachment_unpin(reader, first.slot, first.generation);
    CHECK((row_held(reader) & slot_bit(first.slot)) != 0, "two users, one left");
    for (int i = 0; i < 20; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(pin_is_whole(&again) && pin_is_whole(&second));
    attachment_unpin(reader, again.slot, again.generation);
    attachment_unpin(reader, second.slot, second.generation);
    CHECK(row_held(reader) == 0);
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* Publish a version that changes the one in this pin; NULL: that changes none. */
static void version_publish_over(struct attachment *publisher, const struct pin *base)
{
    const uint64_t version = latest_version(channel_latest(&publisher->channel)) + 1, nbytes = payload_nbytes(0);
    const struct slot_header header = {
        .version = version, .nbytes = nbytes, .base = base == NULL ? 0 : latest_make(base->version, base->slot)};
    unsigned slot;
    CHECK(attachment_pick(publisher, nbytes, &slot) == STATUS_OK && (base == NULL || slot != base->slot));
    CHECK(attachment_finish(publisher, slot, &header) == STATUS_OK);
    channel_publish(&publisher->channel, version, slot);
}

/* A base is not written while a version that refers to it is the latest or held, also by the next publisher, and a pin
 * of it may outlive that version's. */
static void test_base(void)
{
    struct channel_files files = files_make(READERS, 8, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin first, changes, base;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &first) == STATUS_OK);
    CHECK(attachment_pin_base(reader, &first, &base) == STATUS_FORMAT, "it has none");
    version_publish_over(publisher, &first);
    attachment_unpin(reader, first.slot, first.generation);
    for (int i = 0; i < 5; i++)
        version_publish_over(publisher, &first);
    CHECK(attachment_pin(reader, &changes) == STATUS_OK && latest_version(changes.base) == 1);
    attachment_retire(publisher);
    attachment_close(publisher);
    publisher = files_attach(files, ROLE_PUBLISHER);
    for (int i = 0; i < 20; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(attachment_pin_base(reader, &changes, &base) == STATUS_OK && base.slot == first.slot && pin_is_whole(&base));
    CHECK(row_held(reader) == (slot_bit(changes.slot) | slot_bit(base.slot)));
    attachment_unpin(reader, changes.slot, changes.generation);
    for (int i = 0; i < 20; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(pin_is_whole(&base));
    attachment_unpin(reader, base.slot, base.generation);
    CHECK(version_publish(publisher, 100 * WORDS) == STATUS_OK && version_publish(publisher, WORDS) == STATUS_OK);
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

static uint64_t capacity_of(const struct attachment *a, unsigned slot)
{
    return shared_load_relaxed(&a->channel.control->slots[slot].capacity);
}

/* Space that was claimed to be given back is given back once, and not picked meanwhile. */
static void test_spare(void)
{
    struct channel_files files = files_make(READERS, 8, 4);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    const uint64_t most = 50 * WORDS * sizeof(uint64_t);
    uint64_t nbytes, again;
    struct pin held;
    CHECK(version_publish(publisher, 100 * WORDS) == STATUS_OK && attachment_pin(reader, &held) == STATUS_OK);
    CHECK(version_publish(publisher, 100 * WORDS) == STATUS_OK && version_publish(publisher, WORDS) == STATUS_OK);
    const uint64_t claimed = attachment_claim_spare(publisher, most, &nbytes);
    CHECK(__builtin_popcountll(claimed) == 1 && nbytes > most && (claimed & slot_bit(held.slot)) == 0);
    CHECK(attachment_claim_spare(publisher, most, &again) == claimed && again == 0, "it was not given back yet");
    CHECK(version_publish(publisher, 100 * WORDS) == STATUS_OK);
    const unsigned newest = latest_slot(channel_latest(&publisher->channel));
    CHECK((claimed & slot_bit(newest)) == 0 && pin_is_whole(&held));
    attachment_release_spare(publisher, claimed);
    CHECK(capacity_of(publisher, (unsigned)__builtin_ctzll(claimed)) == 0);
    CHECK(version_publish(publisher, 100 * WORDS) == STATUS_OK && attachment_pin(reader, &held) == STATUS_OK);
    attachment_release_spare(publisher, claimed);
    CHECK(pin_is_whole(&held), "the second time it releases nothing");
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* A slot that is written beside the versions is left alone until a version refers to it, or it is given back. */
static void test_reserve(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    unsigned slot, other;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(attachment_reserve(publisher, payload_nbytes(WORDS), &slot) == STATUS_OK);
    for (int i = 0; i < 20; i++) {
        CHECK(version_publish(publisher, i % 2 ? WORDS : 100 * WORDS) == STATUS_OK);
        CHECK(latest_slot(channel_latest(&publisher->channel)) != slot && capacity_of(publisher, slot) != 0);
    }
    const struct slot_header header = {.version = 1, .nbytes = payload_nbytes(0)};
    const struct pin base = {.version = 1, .slot = slot};
    CHECK(attachment_finish(publisher, slot, &header) == STATUS_OK);
    version_publish_over(publisher, &base);
    attachment_unreserve(publisher, slot);
    for (int i = 0; i < 5; i++)
        version_publish_over(publisher, &base);
    CHECK(capacity_of(publisher, slot) != 0);
    version_publish_over(publisher, NULL);
    uint64_t nbytes, spare = attachment_claim_spare(publisher, 0, &nbytes);
    CHECK((spare & slot_bit(slot)) != 0 || capacity_of(publisher, slot) == 0, "no version refers to it any more");
    attachment_release_spare(publisher, spare);
    CHECK(attachment_reserve(publisher, UINT64_MAX / 2, &other) == STATUS_NO_SPACE, "more than a file can have");
    CHECK(attachment_reserve(publisher, payload_nbytes(WORDS), &slot) == STATUS_OK);
    CHECK(attachment_reserve(publisher, payload_nbytes(WORDS), &other) != STATUS_OK || other != slot);
    attachment_retire(publisher);
    CHECK(attachment_reserve(publisher, payload_nbytes(WORDS), &slot) == STATUS_FORKED);
    attachment_close(publisher);
    publisher = files_attach(files, ROLE_PUBLISHER); /* the next one gives the space back */
    for (int i = 0; i < 20; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    attachment_close(publisher);
    files_close(files);
}

/* Every slot held: NO_SLOT; one let go: that one. */
static void test_no_slot(void)
{
    enum { SLOTS = 5 };
    struct channel_files files = files_make(READERS, SLOTS, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin pins[SLOTS];
    for (unsigned i = 0; i < SLOTS; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pins[i]) == STATUS_OK);
    unsigned slot;
    CHECK(version_publish(publisher, WORDS) == STATUS_NO_SLOT);
    CHECK(attachment_pick_ready(publisher, payload_nbytes(WORDS), &slot) == STATUS_NO_SLOT);
    CHECK(attachment_grow(publisher, payload_nbytes(WORDS)) == STATUS_NO_SLOT);
    for (unsigned i = 0; i < SLOTS; i++)
        CHECK(pin_is_whole(&pins[i]));
    attachment_unpin(reader, pins[2].slot, pins[2].generation);
    CHECK(attachment_pick_ready(publisher, payload_nbytes(WORDS), &slot) == STATUS_OK && slot == pins[2].slot);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    attachment_close(reader);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK, "a reader that closes lets everything go");
    attachment_close(publisher);
    files_close(files);
}

/* Extents never overlap, and space that no reader holds and no slot needs is returned to the file system. */
static void test_space(void)
{
    enum { SLOTS = 6, KEEP = 2 };
    struct channel_files files = files_make(READERS, SLOTS, KEEP);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin pins[SLOTS];
    const uint64_t page = page_nbytes(), small = page / 8, large = 64 * page / 8;
    for (unsigned i = 0; i < 4; i++)
        CHECK(version_publish(publisher, large) == STATUS_OK && attachment_pin(reader, &pins[i]) == STATUS_OK);
    const struct slot_extent *slots = publisher->channel.control->slots;
    for (unsigned i = 0; i < SLOTS; i++)
        for (unsigned j = 0; j < i; j++)
            CHECK(slots[i].capacity == 0 || slots[j].capacity == 0 ||
                  slots[i].offset >= slots[j].offset + slots[j].capacity ||
                  slots[j].offset >= slots[i].offset + slots[i].capacity);
    const uint64_t four = file_used_nbytes(files.data);
    CHECK(four >= 4 * 64 * page);
    for (unsigned i = 0; i < 4; i++)
        attachment_unpin(reader, pins[i].slot, pins[i].generation);
    for (int i = 0; i < 6; i++)
        CHECK(version_publish(publisher, large) == STATUS_OK);
    CHECK(file_used_nbytes(files.data) <= (KEEP + 1) * 65 * page, "%" PRIu64 " of %" PRIu64,
          file_used_nbytes(files.data), four);
    CHECK(version_publish(publisher, 4 * large) == STATUS_OK && version_publish(publisher, 4 * large) == STATUS_OK);
    CHECK(attachment_pin(reader, &pins[0]) == STATUS_OK && pin_is_whole(&pins[0]), "a slot that moved is mapped again");
    CHECK(version_publish(publisher, small) == STATUS_OK && pin_is_whole(&pins[0]));
    attachment_unpin(reader, pins[0].slot, pins[0].generation);
    struct stat stat;
    CHECK(fstat(files.data, &stat) == 0);
    const off_t end = stat.st_size;
    for (int i = 0; i < 50; i++)
        CHECK(version_publish(publisher, i % 2 != 0 ? small : 4 * large) == STATUS_OK);
    CHECK(fstat(files.data, &stat) == 0 && stat.st_size <= 2 * end, "gaps are used again");
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* Grow gives one slot space, and touches no other. */
static void test_grow(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *writer = files_attach(files, ROLE_WRITER);
    const uint64_t nbytes = payload_nbytes(WORDS);
    unsigned slot;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(attachment_pick_ready(writer, nbytes, &slot) == STATUS_NO_SLOT, "the only one is the latest");
    CHECK(attachment_grow(publisher, nbytes) == STATUS_OK);
    CHECK(attachment_pick_ready(writer, nbytes, &slot) == STATUS_OK);
    const uint64_t used = file_used_nbytes(files.data);
    CHECK(attachment_grow(publisher, nbytes) == STATUS_OK && file_used_nbytes(files.data) == used,
          "there is one already");
    CHECK(attachment_pick_ready(writer, 100 * nbytes, &slot) == STATUS_NO_SLOT);
    CHECK(attachment_grow(publisher, 100 * nbytes) == STATUS_OK);
    CHECK(attachment_pick_ready(writer, 100 * nbytes, &slot) == STATUS_OK && file_used_nbytes(files.data) > used);
    uint8_t *address;
    uint64_t capacity;
    CHECK(attachment_map(writer, slot, &address, &capacity) == STATUS_OK && capacity >= 100 * nbytes);
    memset(address, 1, capacity); /* a writer's mapping is writable */
    attachment_close(writer);
    attachment_close(publisher);
    files_close(files);
}

/* The array of an edit that is over stays readable when its slot has moved. */
static void test_lend(void)
{
    struct channel_files files = files_make(READERS, 4, 1);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    uint8_t *address, *moved;
    uint64_t capacity, other;
    unsigned slot;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(attachment_pick(publisher, payload_nbytes(WORDS), &slot) == STATUS_OK);
    CHECK(attachment_lend(publisher, slot, &address, &capacity) == STATUS_OK);
    memset(address, 7, capacity);
    for (int i = 0; i < 4; i++) /* it is not published: it releases its space, and gets more elsewhere */
        CHECK(version_publish(publisher, 8 * WORDS) == STATUS_OK);
    CHECK(attachment_map(publisher, slot, &moved, &other) != STATUS_OK || moved != address);
    address[0] = address[capacity - 1] = 1; /* no signal */
    attachment_return(publisher, slot, address);
    munmap(address, capacity); /* forgotten, and so its borrower's */
    attachment_close(publisher);
    files_close(files);
}

static void test_full(const char *how, struct channel_files files, int expected)
{
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin pin;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pin) == STATUS_OK);
    const uint64_t used = file_used_nbytes(files.data);
    struct rlimit limit, small = {0};
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    small = (struct rlimit){1 << 20, limit.rlim_max};
    if (expected == EFBIG)
        CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    else
        CHECK(fcntl(files.data, F_ADD_SEALS, F_SEAL_GROW) == 0);
    errno = 0;
    enum status status = version_publish(publisher, 1 << 20);
    const int cause = errno;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(status == (expected == EPERM ? STATUS_OS : STATUS_NO_SPACE) && cause == expected, "%s: status %d, errno %d",
          how, (int)status, cause);
    CHECK(file_used_nbytes(files.data) <= used, "%s: the space that it had got is released", how);
    CHECK(pin_is_whole(&pin) && channel_latest(&publisher->channel) == latest_make(1, pin.slot), "%s", how);
    if (expected == EFBIG)
        CHECK(version_publish(publisher, 1 << 20) == STATUS_OK, "there is room again");
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* The data file is cut at every page while a reader holds an old version and the newest lies anywhere: the publisher is
 * told once if the newest is lost, does not write beyond the end, and continues. */
static void test_truncated(void)
{
    for (uint64_t pages = 0; pages <= 6; pages++) {
        struct channel_files files = files_make(READERS, 6, 4);
        struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
        struct control *control = publisher->channel.control;
        struct pin pin;
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pin) == STATUS_OK);
        const uint64_t held_end = control->slots[pin.slot].offset + control->slots[pin.slot].capacity;
        for (int i = 0; i < 4; i++)
            CHECK(version_publish(publisher, WORDS) == STATUS_OK);
        const struct slot_extent *latest = &control->slots[latest_slot(control->latest)];
        const uint64_t cut = pages * page_nbytes();
        const bool lost = latest->offset + latest->capacity > cut;
        CHECK(ftruncate(files.data, (off_t)cut) == 0);
        CHECK(version_publish(publisher, WORDS) == (lost ? STATUS_TRUNCATED : STATUS_OK), "cut at %" PRIu64, cut);
        for (uint64_t words = 1; words < 20 * WORDS; words += WORDS) {
            struct pin newest;
            CHECK(version_publish(publisher, words) == STATUS_OK, "cut at %" PRIu64, cut);
            if (CHECK(attachment_pin(reader, &newest) == STATUS_OK && pin_is_whole(&newest)))
                attachment_unpin(reader, newest.slot, newest.generation);
        }
        CHECK(held_end > cut || pin_is_whole(&pin), "what lies before the cut stays");
        attachment_close(reader);
        attachment_close(publisher);
        files_close(files);
    }
}

/* A publisher asks for its name's loss to be told, and is, each time, with nothing changed. */
static void test_unlinked(void)
{
    struct channel_files files = files_make(READERS, 4, 2); /* memfds, which have no names */
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    const uint64_t latest = channel_latest(&publisher->channel);
    publisher->named = true;
    CHECK(version_publish(publisher, WORDS) == STATUS_UNLINKED && version_publish(publisher, WORDS) == STATUS_UNLINKED);
    CHECK(channel_latest(&publisher->channel) == latest);
    publisher->named = false;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    attachment_close(publisher);
    files_close(files);
}

/* -- what a publisher finds ------------------------------------------------------------------------------------- */

static bool extents_are_apart(const struct control *control)
{
    const struct slot_extent *slots = control->slots;
    for (unsigned i = 0; i < CHANNEL_MAX_SLOTS; i++)
        for (unsigned j = 0; j < i; j++)
            if (slots[i].capacity != 0 && slots[j].capacity != 0 &&
                slots[i].offset < slots[j].offset + slots[j].capacity &&
                slots[j].offset < slots[i].offset + slots[i].capacity)
                return false;
    return true;
}

/* The slot table after a crash of the machine: every slot but the latest and the held ones lies just anywhere. */
static void table_scramble(struct attachment *publisher, uint64_t keep, uint64_t pages, uint64_t *stream)
{
    struct control *control = publisher->channel.control;
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        if ((keep & slot_bit(slot)) != 0 || slot == latest_slot(control->latest))
            continue;
        control->slots[slot].offset = check_random(stream) % pages * page_nbytes();
        control->slots[slot].capacity = check_random(stream) % pages * page_nbytes();
        if (check_random(stream) % 16 == 0)
            control->slots[slot].capacity = check_random(stream);
    }
}

static void test_inherited_table(void)
{
    enum { SLOTS = 8 };
    uint64_t stream = check_stream(1);
    for (int round = 0; round < 40; round++) {
        struct channel_files files = files_make(READERS, SLOTS, 4);
        struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
        struct attachment *late = files_attach(files, ROLE_READER);
        struct pin old, latest, newest;
        for (int i = 0; i < 6; i++) {
            CHECK(version_publish(publisher, WORDS << i % 3) == STATUS_OK);
            if (i == 2)
                CHECK(attachment_pin(reader, &old) == STATUS_OK);
        }
        CHECK(attachment_pin(reader, &latest) == STATUS_OK);
        table_scramble(publisher, slot_bit(old.slot), 16, &stream);
        if (round % 2 != 0) /* a row of before the crash, or a reader in its last resort: it says all slots */
            shared_store_relaxed(&late->channel.rows[late->row].held, UINT64_MAX);
        const bool dead = round % 4 == 1;
        if (dead) { /* its row stays as it is, and its lock goes */
            late->row = 0;
            attachment_close(late);
        }
        attachment_close(publisher);
        publisher = files_attach(files, ROLE_PUBLISHER);
        if (round % 4 == 3) {
            CHECK(version_publish(publisher, WORDS) == STATUS_NO_SLOT || pin_is_whole(&latest));
            shared_store_release(&late->channel.rows[late->row].held, 0);
        }
        for (int i = 0; i < 12; i++) {
            CHECK(version_publish(publisher, WORDS << (unsigned)(i + round) % 5) == STATUS_OK);
            CHECK(attachment_pin(reader, &newest) == STATUS_OK && pin_is_whole(&newest) && pin_is_whole(&old));
            CHECK(pin_is_whole(&latest), "round %d, version %d", round, i);
            attachment_unpin(reader, newest.slot, newest.generation);
        }
        CHECK(extents_are_apart(publisher->channel.control), "round %d", round);
        attachment_unpin(reader, old.slot, old.generation);
        attachment_unpin(reader, latest.slot, latest.generation);
        for (int i = 0; i < SLOTS; i++)
            CHECK(version_publish(publisher, WORDS) == STATUS_OK);
        uint64_t reserved = 0;
        for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++)
            reserved += publisher->channel.control->slots[slot].capacity;
        CHECK(file_used_nbytes(files.data) <= reserved + page_nbytes(), "what belongs to no slot is given back");
        if (!dead)
            attachment_close(late);
        attachment_close(reader);
        attachment_close(publisher);
        files_close(files);
    }
}

/* The latest points outside the file, or half out of it, or between two pages: the next version goes elsewhere. */
static void test_inherited_latest_outside(void)
{
    static const struct {
        uint64_t offset, capacity;
    } wild[] = {
        {UINT64_C(1) << 40, 4096}, {UINT64_MAX - 4095, 8192}, {0, UINT64_MAX}, {64, 4096}, {UINT64_MAX - 4095, 4096},
    };
    for (unsigned i = 0; i < sizeof wild / sizeof *wild; i++) {
        struct channel_files files = files_make(READERS, 4, 2);
        struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
        struct pin pin;
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
        struct slot_extent *extent =
            &publisher->channel.control->slots[latest_slot(channel_latest(&publisher->channel))];
        extent->offset = wild[i].offset;
        extent->capacity = wild[i].capacity;
        attachment_close(publisher);
        CHECK(attachment_pin(reader, &pin) != STATUS_OK);
        publisher = files_attach(files, ROLE_PUBLISHER);
        for (uint64_t version = 2; version < 8; version++) {
            CHECK(version_publish(publisher, 2 * WORDS) == STATUS_OK);
            CHECK(attachment_pin(reader, &pin) == STATUS_OK && pin.version == version && pin_is_whole(&pin), "case %u",
                  i);
            attachment_unpin(reader, pin.slot, pin.generation);
        }
        CHECK(extents_are_apart(publisher->channel.control));
        attachment_close(reader);
        attachment_close(publisher);
        files_close(files);
    }
}

/* That the test above can fail: a publisher that takes the table for its own writes over the latest. */
static void test_inherited_mutant(void)
{
    for (int trusting = 0; trusting < 2; trusting++) {
        struct channel_files files = files_make(READERS, 4, 2);
        struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
        struct pin pin;
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pin) == STATUS_OK);
        struct slot_extent *slots = publisher->channel.control->slots;
        slots[(pin.slot + 1) % 4].offset = slots[pin.slot].offset;
        slots[(pin.slot + 1) % 4].capacity = slots[pin.slot].capacity;
        attachment_close(publisher);
        publisher = files_attach(files, ROLE_PUBLISHER);
        if (trusting)
            publisher->inherited = 0;
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && pin_is_whole(&pin) == !trusting);
        attachment_close(reader);
        attachment_close(publisher);
        files_close(files);
    }
}

/* Attaching as the publisher by itself changes nothing: the caller may still find that these are not its files. */
static void test_inherited_until_picked(void)
{
    struct channel_files files = files_make(READERS, 4, 3);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    for (int i = 0; i < 5; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    struct slot_extent before[CHANNEL_MAX_SLOTS];
    memcpy(before, publisher->channel.control->slots, sizeof before);
    const uint64_t used = file_used_nbytes(files.data);
    attachment_close(publisher);
    publisher = files_attach(files, ROLE_PUBLISHER);
    CHECK(memcmp(before, publisher->channel.control->slots, sizeof before) == 0 &&
          file_used_nbytes(files.data) == used);
    attachment_close(publisher);
    files_close(files);
}

/* -- ends ------------------------------------------------------------------------------------------------------- */

static void test_retire(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER),
                      *next;
    struct pin pin;
    unsigned slot;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pin) == STATUS_OK);
    attachment_retire(reader);
    CHECK(publisher->channel.control->state == CHANNEL_OPEN, "a reader retires no publisher");
    attachment_retire(publisher);
    CHECK(reader->channel.control->state == CHANNEL_CLOSED && !publisher_lives(reader));
    CHECK(attachment_pick(publisher, 64, &slot) == STATUS_FORKED, "it is over");
    next = files_attach(files, ROLE_PUBLISHER);
    CHECK(reader->channel.control->state == CHANNEL_OPEN && publisher_lives(reader));
    CHECK(version_publish(next, WORDS) == STATUS_OK && latest_version(channel_latest(&reader->channel)) == 2,
          "it continues the versions");
    attachment_retire(publisher);
    CHECK(reader->channel.control->state == CHANNEL_OPEN, "and not twice");
    CHECK(pin_is_whole(&pin));
    attachment_close(publisher);
    attachment_close(next);
    CHECK(pin_is_whole(&pin), "when everybody is gone");
    attachment_close(reader);
    files_close(files);
}

static void test_wait(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct child child;
    CHECK(attachment_wait(reader, 0, 0) == STATUS_TIMEOUT && attachment_wait(reader, 0, 1000000) == STATUS_TIMEOUT);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_wait(reader, 0, 0) == STATUS_OK);
    if (child_start(&child)) {
        struct attachment *own = files_attach(files, ROLE_READER);
        CHECK(child_send(&child));
        enum status status;
        do
            status = attachment_wait(own, 1, INT64_C(60000000000));
        while (status == STATUS_INTERRUPTED);
        CHECK(status == STATUS_OK);
        child_exit();
    }
    CHECK(child_await(&child));
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    child_join(&child, false);
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* -- fork ------------------------------------------------------------------------------------------------------- */

static void test_fork_keeps_pins(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin pin;
    struct child child;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pin) == STATUS_OK);
    const uint32_t row = reader->row;
    const uint64_t handoffs = shared_load_acquire(&publisher->channel.shared->handoffs);
    if (child_start(&child)) {
        CHECK(reader->row != 0 && reader->row != row, "its own row");
        CHECK(reader->channel.rows[reader->row].pid == (uint32_t)getpid());
        CHECK(row_held(reader) == slot_bit(pin.slot));
        CHECK(child_send(&child) && child_await(&child)); /* the parent has let go and published over and over */
        CHECK(pin_is_whole(&pin));
        struct pin newest;
        CHECK(attachment_pin(reader, &newest) == STATUS_OK && newest.version > 1 && pin_is_whole(&newest));
        attachment_unpin(reader, pin.slot, pin.generation);
        attachment_unpin(reader, newest.slot, newest.generation);
        CHECK(row_held(reader) == 0);
        CHECK(child_send(&child) && child_await(&child));
        child_exit();
    }
    CHECK(child_await(&child));
    CHECK(reader->row == row, "the parent keeps its own");
    CHECK(shared_load_acquire(&publisher->channel.shared->handoffs) == handoffs + 1, "scans must look again");
    attachment_unpin(reader, pin.slot, pin.generation);
    CHECK(row_held(reader) == 0 && channel_held(&publisher->channel) == slot_bit(pin.slot));
    for (int i = 0; i < 10; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK &&
              latest_slot(channel_latest(&publisher->channel)) != pin.slot);
    CHECK(attachment_reclaim(publisher) == 0, "the child lives");
    CHECK(child_send(&child) && child_await(&child));
    CHECK(channel_held(&publisher->channel) == 0);
    CHECK(child_send(&child));
    child_join(&child, false);
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

/* The parent dies with its descriptors, the child holds on; and the other way round. */
static void test_fork_outlives_parent(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    struct child middle;
    int ready[2], stay[2];
    CHECK(pipe2(ready, O_CLOEXEC) == 0 && pipe2(stay, O_CLOEXEC) == 0);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    if (child_start(&middle)) {
        struct attachment *reader = files_attach(files, ROLE_READER);
        struct pin pin;
        CHECK(attachment_pin(reader, &pin) == STATUS_OK);
        close(stay[1]);
        if (fork() == 0) {
            char byte;
            close(middle.to); /* so that only the middle one's end is heard */
            CHECK(write(ready[1], "", 1) == 1);
            (void)!read(stay[0], &byte, 1);
            byte = (char)pin_is_whole(&pin);
            CHECK(write(ready[1], &byte, 1) == 1);
            child_exit();
        }
        child_exit();
    }
    close(stay[0]);
    char byte = 0;
    CHECK(read(ready[0], &byte, 1) == 1);
    child_join(&middle, false);
    attachment_reclaim(publisher);
    const uint64_t held = channel_held(&publisher->channel);
    CHECK(__builtin_popcountll(held) == 1, "held %" PRIx64, held);
    for (int i = 0; i < 10; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    close(stay[1]);
    close(ready[1]);
    CHECK(read(ready[0], &byte, 1) == 1 && byte == 1, "the grandchild's snapshot is whole");
    CHECK(read(ready[0], &byte, 1) == 0, "and it has ended");
    attachment_reclaim(publisher);
    CHECK(channel_held(&publisher->channel) == 0);
    attachment_close(publisher);
    files_close(files);
    close(ready[0]);
}

/* No row for the child: it gets copies, at the same addresses. */
static void test_fork_copies(void)
{
    struct channel_files files = files_make(1, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *reader = files_attach(files, ROLE_READER);
    struct pin pins[2], pin;
    struct child child;
    for (int i = 0; i < 2; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && attachment_pin(reader, &pins[i]) == STATUS_OK);
    if (child_start(&child)) {
        CHECK(reader->row == 0);
        CHECK(attachment_pin(reader, &pin) == STATUS_NO_ROW);
        CHECK(child_send(&child) && child_await(&child)); /* the parent has let go, and published */
        CHECK(pin_is_whole(&pins[0]) && pin_is_whole(&pins[1]));
        attachment_unpin(reader, pins[0].slot, pins[0].generation);
        CHECK(pin_is_whole(&pins[0]), "the copies belong to the views");
        CHECK(child_send(&child) && child_await(&child)); /* the parent has closed: there is a row */
        CHECK(attachment_pin(reader, &pin) == STATUS_OK && pin.version > 2 && pin_is_whole(&pin));
        attachment_unpin(reader, pins[1].slot, pins[1].generation);
        CHECK(row_held(reader) == slot_bit(pin.slot), "an old pin lets nothing new go");
        child_exit();
    }
    CHECK(child_await(&child));
    CHECK(pin_is_whole(&pins[0]) && pin_is_whole(&pins[1]));
    for (int i = 0; i < 2; i++)
        attachment_unpin(reader, pins[i].slot, pins[i].generation);
    CHECK(channel_held(&publisher->channel) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    CHECK(child_send(&child) && child_await(&child));
    attachment_close(reader);
    CHECK(child_send(&child));
    child_join(&child, false);
    attachment_close(publisher);
    files_close(files);
}

static void test_fork_publisher(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER), *next;
    struct child child;
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    if (child_start(&child)) {
        unsigned slot;
        CHECK(attachment_pick(publisher, 64, &slot) == STATUS_FORKED);
        attachment_retire(publisher);
        CHECK(publisher->channel.control->state == CHANNEL_OPEN, "a child retires no publisher");
        CHECK(!publisher_lives(publisher));
        CHECK(child_send(&child) && child_await(&child));
        child_exit();
    }
    CHECK(child_await(&child));
    CHECK(version_publish(publisher, WORDS) == STATUS_OK, "the parent still publishes");
    CHECK(files_try(files, ROLE_PUBLISHER, &next) == STATUS_BUSY);
    attachment_close(publisher);
    next = files_attach(files, ROLE_PUBLISHER); /* while the child lives: it keeps no lock */
    CHECK(child_send(&child));
    child_join(&child, false);
    CHECK(version_publish(next, WORDS) == STATUS_OK && latest_version(channel_latest(&next->channel)) == 3);
    attachment_close(next);
    files_close(files);
}

/* -- kills ------------------------------------------------------------------------------------------------------ */

static void test_kill_readers(void)
{
    enum { SLOTS = 4 };
    struct channel_files files = files_make(READERS, SLOTS, 2);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    struct child children[SLOTS];
    for (unsigned i = 0; i < SLOTS; i++) { /* each holds another version: all slots are held */
        CHECK(version_publish(publisher, WORDS) == STATUS_OK);
        if (child_start(&children[i])) {
            struct attachment *reader = files_attach(files, ROLE_READER);
            struct pin pin;
            CHECK(attachment_pin(reader, &pin) == STATUS_OK);
            if (i == SLOTS - 1) /* one in the middle of its last resort */
                shared_store_relaxed(&reader->channel.rows[reader->row].held, UINT64_MAX);
            CHECK(child_send(&children[i]));
            (void)child_await(&children[i]);
            child_exit();
        }
        CHECK(child_await(&children[i]));
    }
    CHECK(version_publish(publisher, WORDS) == STATUS_NO_SLOT && attachment_reclaim(publisher) == 0,
          "all of them live");
    for (unsigned i = 0; i < SLOTS; i++)
        child_join(&children[i], true);
    CHECK(row_lives(publisher, 1) == false && channel_held(&publisher->channel) != 0);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK, "their slots are taken back");
    CHECK(channel_held(&publisher->channel) == 0 && attachment_reclaim(publisher) == 0);
    struct attachment *reader = files_attach(files, ROLE_READER);
    CHECK(reader->row == 1 && row_held(reader) == 0, "their rows too");
    attachment_close(reader);
    attachment_close(publisher);
    files_close(files);
}

static void test_kill_publisher(void)
{
    struct channel_files files = files_make(READERS, 4, 2);
    struct attachment *reader = files_attach(files, ROLE_READER), *next;
    struct child child;
    struct pin pin;
    if (child_start(&child)) {
        struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
        CHECK(version_publish(publisher, WORDS) == STATUS_OK && child_send(&child));
        for (;;)
            CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    }
    CHECK(child_await(&child));
    CHECK(publisher_lives(reader) && files_try(files, ROLE_PUBLISHER, &next) == STATUS_BUSY);
    CHECK(attachment_pin(reader, &pin) == STATUS_OK);
    child_join(&child, true);
    CHECK(!publisher_lives(reader) && pin_is_whole(&pin));
    const uint64_t version = latest_version(channel_latest(&reader->channel));
    next = files_attach(files, ROLE_PUBLISHER);
    for (int i = 0; i < 10; i++)
        CHECK(version_publish(next, WORDS) == STATUS_OK);
    CHECK(latest_version(channel_latest(&reader->channel)) == version + 10 && pin_is_whole(&pin));
    attachment_close(next);
    attachment_close(reader);
    files_close(files);
}

int main(void)
{
    check_begin("test_attachment");
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    test_format();
    test_roles();
    test_garbage();
    test_two_files_one_channel();
    test_adopt();
    test_standard_streams_closed();
    test_garbage_behind_a_good_identity();
    test_pin_and_unpin();
    test_base();
    test_spare();
    test_reserve();
    test_no_slot();
    test_space();
    test_grow();
    test_lend();
    test_full("a limit", files_make(READERS, 4, 2), EFBIG);
    test_full("a seal", files_make(READERS, 4, 2), EPERM);
    test_truncated();
    test_unlinked();
    test_inherited_table();
    test_inherited_latest_outside();
    test_inherited_mutant();
    test_inherited_until_picked();
    test_retire();
    test_wait();
    test_fork_keeps_pins();
    test_fork_outlives_parent();
    test_fork_copies();
    test_fork_publisher();
    test_kill_readers();
    test_kill_publisher();
    return check_end();
}
