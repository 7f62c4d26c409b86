/* Producers, consumers and those that give back, as threads on one queue in memory, each of which dies at random
 * atomic steps: it leaves everything as it is, and comes back with another row. A row is reaped under a mutex, which
 * stands for the kernel's lock.
 *
 * ThreadSanitizer sees the payloads' reads and writes. A thread notes what it is about to do before each step that
 * counts, so after a death it is known which item may have been put, or finished, without being counted.
 */
#include "hooks.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>

#include "../../csrc/queue.c"
#include "../../csrc/queue_space.c"

#include "queue_memory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { ITEMS_PER_PRODUCER = 30000 };
#else
enum { ITEMS_PER_PRODUCER = 200000 };
#endif
enum { PRODUCERS = 2, CONSUMERS = 3, CAPACITY = 7, THREADS = PRODUCERS + CONSUMERS, DIES_ONCE_IN = 3000 };

struct worker {
    pthread_t thread;
    uint64_t stream;
    uint32_t row;
    bool is_producer;
    jmp_buf died;
    bool mortal;
    uint64_t next, busy; /* the next item to put; the item that is being put or finished, 0: none */
    uint64_t deaths, held;
};

static _Thread_local struct worker *self;

static void hook(void)
{
    if (self != NULL && self->mortal && check_random(&self->stream) % DIES_ONCE_IN == 0) {
        self->mortal = false;
        longjmp(self->died, 1);
    }
}

enum { ITEMS = PRODUCERS * ITEMS_PER_PRODUCER + 1 };
static struct worker workers[THREADS];
static _Atomic uint8_t finished[ITEMS]; /* how often it was counted */
static _Atomic uint8_t unsure[ITEMS];   /* 1: put by a thread that died; 2: finished by a thread that died */
static _Atomic unsigned producing;

/* -- rows: dead ones, and free ones ------------------------------------------------------------------------------ */

static pthread_mutex_t rows_lock = PTHREAD_MUTEX_INITIALIZER;
static enum { ROW_FREE, ROW_ALIVE, ROW_DEAD } row_states[MEMORY_ROWS + 1];

static void rows_reap(void)
{
    const bool mortal = self->mortal;
    self->mortal = false; /* a mutex that dies with its holder is more than this test has */
    pthread_mutex_lock(&rows_lock);
    for (uint32_t row = 1; row <= MEMORY_ROWS; row++)
        if (row_states[row] == ROW_DEAD) {
            struct queue_reaped reaped = {0};
            CHECK(queue_reap(&queue, row, &reaped) == STATUS_OK);
            row_states[row] = ROW_FREE;
        }
    pthread_mutex_unlock(&rows_lock);
    self->mortal = mortal;
}

static uint32_t row_begin(void)
{
    uint32_t row = 1;
    pthread_mutex_lock(&rows_lock);
    while (row_states[row] != ROW_FREE)
        row++;
    row_states[row] = ROW_ALIVE;
    pthread_mutex_unlock(&rows_lock);
    shared_store_release(&queue.rows[row].attached, 1);
    return row;
}

/* -- their lives ------------------------------------------------------------------------------------------------- */

static void item_count(void)
{
    atomic_fetch_add(&finished[self->busy], 1);
    self->busy = 0;
}

static void produce(uint64_t behind)
{
    while (self->next < behind) {
        uint32_t slot;
        const uint64_t pages = self->next % 4;
        if (queue_claim(&queue, self->row, pages, &slot) != STATUS_OK) {
            rows_reap();
            sched_yield();
            continue;
        }
        if (!space_change(&queue, slot, pages)) { /* another slot's pages are in the way */
            CHECK(queue_release(&queue, self->row, slot) == STATUS_OK);
            if (queue_claim(&queue, self->row, UINT32_MAX, &slot) == STATUS_OK) {
                (void)space_change(&queue, slot, 0);
                CHECK(queue_release(&queue, self->row, slot) == STATUS_OK);
            }
            sched_yield();
            continue;
        }
        payload_write(slot, self->next);
        self->busy = self->next;
        enum status status;
        while ((status = queue_insert(&queue, self->row, slot)) == STATUS_FULL) {
            rows_reap();
            sched_yield();
        }
        CHECK(status == STATUS_OK, "status %d", (int)status);
        self->busy = 0;
        self->next++;
    }
}

static void consume(void)
{
    for (;;) {
        uint32_t slot;
        enum status status = queue_take(&queue, self->row, &slot);
        if (status == STATUS_ENDED)
            return;
        if (status == STATUS_EMPTY) {
            rows_reap();
            sched_yield();
            continue;
        }
        CHECK(status == STATUS_OK, "status %d", (int)status);
        const uint64_t item = payload_read(slot);
        if (check_random(&self->stream) % 8 == 0) {
            CHECK(queue_give_back(&queue, self->row, slot) == STATUS_OK);
            continue;
        }
        self->busy = item;
        CHECK(queue_finish(&queue, self->row, slot) == STATUS_OK);
        item_count();
        self->held++;
        CHECK(payload_read(slot) == item, "item %" PRIu64 " changed while it was held", item);
        CHECK(queue_release(&queue, self->row, slot) == STATUS_OK);
    }
}

static void died(void)
{
    self->deaths++;
    if (self->busy != 0)
        atomic_fetch_or(&unsure[self->busy], self->is_producer ? 1 : 2);
    if (self->is_producer && self->busy != 0)
        self->next = self->busy + 1;
    self->busy = 0;
    pthread_mutex_lock(&rows_lock);
    row_states[self->row] = ROW_DEAD;
    pthread_mutex_unlock(&rows_lock);
}

static void *live(void *argument)
{
    self = argument;
    const uint64_t number = (uint64_t)(self - workers), behind = (number + 1) * ITEMS_PER_PRODUCER + 1;
    self->next = number * ITEMS_PER_PRODUCER + 1;
    if (setjmp(self->died) != 0)
        died();
    rows_reap();
    self->row = row_begin();
    self->mortal = true;
    if (self->is_producer)
        produce(behind);
    else
        consume();
    self->mortal = false;
    if (self->is_producer && atomic_fetch_sub(&producing, 1) == 1) {
        rows_reap();
        CHECK(queue_close(&queue) == STATUS_OK);
    }
    return NULL;
}

int main(void)
{
    check_begin("stress_queue");
    queue_begin(CAPACITY, MEMORY_CELLS, 3 * CAPACITY);
    for (unsigned row = 1; row <= MEMORY_ROWS; row++)
        atomic_store(&queue.rows[row].attached, 0);
    atomic_store(&producing, PRODUCERS);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].stream = check_stream(i);
        workers[i].is_producer = i < PRODUCERS;
        pthread_create(&workers[i].thread, NULL, live, &workers[i]);
    }
    uint64_t deaths = 0, held = 0, sure = 0;
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        deaths += workers[i].deaths;
        held += workers[i].held;
    }
    for (uint64_t item = 1; item < ITEMS; item++) {
        const unsigned count = atomic_load(&finished[item]);
        if (atomic_load(&unsure[item]) == 0)
            sure++;
        if (atomic_load(&unsure[item]) == 0 ? count != 1 : count > 1)
            CHECK(false, "item %" PRIu64 " was finished %u times", item, count);
    }
    uint64_t pages = 0;
    for (uint32_t slot = 0; slot < MEMORY_SLOTS; slot++)
        pages += slot_pages(&queue, slot);
    CHECK(pages <= queue.limit_pages);
    CHECK(deaths > 10 && sure > ITEMS / 2);
    printf("stress_queue: %u items, %" PRIu64 " deaths, %" PRIu64 " items finished exactly once\n", ITEMS - 1, deaths,
           sure);
    return check_end();
}
