/* One publisher at full speed, readers that pin, read, keep old versions and release them, all as threads.
 *
 *   on files    every thread has its own attachment to one pair of memfds, and renews it now and then: the
 *               whole of attachment.c, with slots that change their size
 *   on memory   only the protocol, on memory that all threads share. ThreadSanitizer sees the payloads' reads and
 *               writes here (on files each thread has its own addresses). Its happens-before knows no fences and
 *               needs none for these: a payload is published by `latest` (release, acquire) and given back by the
 *               held word (release, acquire). The fences only decide which slot is chosen, and a wrong choice shows
 *               as a race or as unequal words.
 */
#include <pthread.h>

#include "channel_files.h"

enum { READERS = 4, OLD = 3, SLOTS = 16, WORDS = 97 };

static const uint64_t VERSIONS = SANITIZED ? 40000 : 200000;

static _Atomic bool over;
static _Atomic uint64_t pinned; /* in all */
static _Atomic uint64_t waits;  /* of the publisher, for a slot */

/* Readers have looked at something before the publisher is through, however the threads are scheduled. */
static bool publisher_goes_on(uint64_t version) { return version < VERSIONS || atomic_load(&pinned) < 1000; }

/* -- on files --------------------------------------------------------------------------------------------------- */

struct files_reader {
    pthread_t thread;
    struct channel_files files;
    uint64_t stream;
};

static void let_go(struct attachment *reader, struct pin *pin)
{
    CHECK(pin_is_whole(pin), "version %" PRIu64 " when it is let go", pin->version);
    attachment_unpin(reader, pin->slot, pin->generation);
    pin->version = 0;
}

/* A reader's life: some pins, then it closes, perhaps with some of them still held. */
static void files_read(struct attachment *reader, uint64_t *stream)
{
    struct pin old[OLD] = {0};
    uint64_t last = 0;
    for (uint64_t rounds = 100 + check_random(stream) % 1000; rounds > 0 && !atomic_load(&over); rounds--) {
        struct pin *pin = &old[check_random(stream) % OLD];
        if (pin->version != 0)
            let_go(reader, pin);
        if (check_random(stream) % 64 == 0)
            attachment_wait(reader, last, 1000000);
        if (!CHECK(attachment_pin(reader, pin) == STATUS_OK))
            break;
        atomic_fetch_add(&pinned, 1);
        CHECK(pin_is_whole(pin) && pin->version >= last, "version %" PRIu64 " after %" PRIu64, pin->version, last);
        last = pin->version;
    }
    for (unsigned i = 0; i < OLD; i++)
        if (old[i].version != 0)
            CHECK(pin_is_whole(&old[i]));
}

static void *files_reader_run(void *argument)
{
    struct files_reader *self = argument;
    while (!atomic_load(&over)) {
        struct attachment *reader = files_attach(self->files, ROLE_READER);
        files_read(reader, &self->stream);
        attachment_close(reader);
    }
    return NULL;
}

static void stress_files(void)
{
    struct channel_files files = files_make(READERS, SLOTS, 4);
    struct attachment *publisher = files_attach(files, ROLE_PUBLISHER);
    struct files_reader readers[READERS];
    uint64_t stream = check_stream(0);
    atomic_store(&over, false);
    atomic_store(&pinned, 0);
    CHECK(version_publish(publisher, WORDS) == STATUS_OK);
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct files_reader){.files = files, .stream = check_stream(1 + i)};
        pthread_create(&readers[i].thread, NULL, files_reader_run, &readers[i]);
    }
    for (uint64_t version = 1; publisher_goes_on(version);) {
        const uint64_t words = check_random(&stream) % 512 == 0 ? 8 * WORDS : WORDS; /* sometimes a slot must grow */
        const enum status status = version_publish(publisher, words);
        CHECK(status == STATUS_OK || status == STATUS_NO_SLOT, "status %d", (int)status);
        version += status == STATUS_OK;
        if (status == STATUS_NO_SLOT) { /* a reader sits in its last resort */
            atomic_fetch_add(&waits, 1);
            sched_yield();
        }
    }
    atomic_store(&over, true);
    for (unsigned i = 0; i < READERS; i++)
        pthread_join(readers[i].thread, NULL);
    CHECK(channel_held(&publisher->channel) == 0);
    attachment_close(publisher);
    files_close(files);
}

/* -- on memory -------------------------------------------------------------------------------------------------- */

static struct control control;
static struct reader_row rows[READERS + 1];
static const struct channel memory = {&control, (struct shared_row *)rows, rows, READERS, SLOTS};
static uint64_t payloads[SLOTS][WORDS];

static bool payload_is_whole(uint64_t latest)
{
    const uint64_t *payload = payloads[latest_slot(latest)];
    for (unsigned i = 0; i < WORDS; i++)
        if (payload[i] != latest_version(latest))
            return false;
    return true;
}

struct memory_reader {
    pthread_t thread;
    struct reader_row *row;
    uint64_t stream;
};

static void *memory_reader_run(void *argument)
{
    struct memory_reader *self = argument;
    uint64_t old[OLD] = {0}, last = 0; /* a slot at most once: it is one bit */
    for (unsigned at = 0; !atomic_load(&over); at = (unsigned)(check_random(&self->stream) % OLD)) {
        if (old[at] != 0) {
            CHECK(payload_is_whole(old[at]), "version %" PRIu64 " when it is let go", latest_version(old[at]));
            bool shared = false;
            for (unsigned i = 0; i < OLD; i++)
                shared |= i != at && old[i] == old[at];
            if (!shared)
                channel_unpin(self->row, latest_slot(old[at]));
        }
        old[at] = channel_pin(&memory, self->row);
        atomic_fetch_add(&pinned, 1);
        CHECK(payload_is_whole(old[at]) && latest_version(old[at]) >= last, "version %" PRIu64 " after %" PRIu64,
              latest_version(old[at]), last);
        last = latest_version(old[at]);
    }
    for (unsigned i = 0; i < OLD; i++)
        if (old[i] != 0) {
            CHECK(payload_is_whole(old[i]));
        }
    shared_store_release(&self->row->held, 0);
    return NULL;
}

static void memory_publish(uint64_t version)
{
    uint64_t free;
    while ((free = ~channel_taken(&memory)) == 0) {
        atomic_fetch_add(&waits, 1);
        sched_yield();
    }
    const unsigned slot = (unsigned)__builtin_ctzll(free); /* the lowest: the one that is used again soonest */
    for (unsigned i = 0; i < WORDS; i++)
        payloads[slot][i] = version;
    channel_publish(&memory, version, slot);
}

static void stress_memory(void)
{
    struct memory_reader readers[READERS];
    atomic_store(&over, false);
    atomic_store(&pinned, 0);
    atomic_store(&memory.shared->high_water, READERS);
    memory_publish(1);
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct memory_reader){.row = &rows[1 + i], .stream = check_stream(10 + i)};
        pthread_create(&readers[i].thread, NULL, memory_reader_run, &readers[i]);
    }
    for (uint64_t version = 2; publisher_goes_on(version); version++)
        memory_publish(version);
    atomic_store(&over, true);
    for (unsigned i = 0; i < READERS; i++)
        pthread_join(readers[i].thread, NULL);
    CHECK(channel_held(&memory) == 0);
}

int main(void)
{
    check_begin("stress_channel");
    stress_files();
    const uint64_t on_files = atomic_load(&pinned);
    stress_memory();
    printf("stress_channel: %" PRIu64 " versions twice, %" PRIu64 " and %" PRIu64 " pins, the publisher waited %" PRIu64
           " times\n",
           VERSIONS, on_files, atomic_load(&pinned), atomic_load(&waits));
    return check_end();
}
