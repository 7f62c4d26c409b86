/* Memory and descriptors that forked children must not share: see own.h. */
#include "own.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct own *registry;
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;

/* So that nobody changes the list while it is copied. */
static void fork_prepare(void) { pthread_mutex_lock(&registry_lock); }
static void fork_parent(void) { pthread_mutex_unlock(&registry_lock); }

static void fork_child(void)
{
    for (struct own *own = registry; own != NULL; own = own->next) {
        const bool has = descriptor_is(own->fd, &own->file);
        if (own->memory == NULL) {
            if (has)
                close(own->fd);
            own->fd = -1;
        } else if (!has || mmap(own->memory, own->nbytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, own->fd, 0) == MAP_FAILED) {
            mprotect(own->memory, own->nbytes, PROT_NONE); /* no copy can be had: better none than the parent's */
        }
    }
    pthread_mutex_unlock(&registry_lock);
}

static void registry_start(void) { pthread_atfork(fork_prepare, fork_parent, fork_child); }

void own_add(struct own *own)
{
    own->file = descriptor_file(own->fd);
    pthread_once(&registry_once, registry_start);
    pthread_mutex_lock(&registry_lock);
    own->previous = NULL;
    own->next = registry;
    if (registry != NULL)
        registry->previous = own;
    registry = own;
    pthread_mutex_unlock(&registry_lock);
}

static void own_unlink_locked(struct own *own)
{
    if (own->next != NULL)
        own->next->previous = own->previous;
    if (own->previous != NULL)
        own->previous->next = own->next;
    else
        registry = own->next;
}

void own_remove(struct own *own)
{
    pthread_mutex_lock(&registry_lock);
    own_unlink_locked(own);
    pthread_mutex_unlock(&registry_lock);
}

int own_descriptor(int fd)
{
    struct own *own = calloc(1, sizeof *own);
    if (own == NULL)
        return -1;
    own->fd = fd;
    own_add(own);
    return 0;
}

void own_descriptor_end(int fd)
{
    pthread_mutex_lock(&registry_lock);
    struct own *own = registry;
    while (own != NULL && (own->memory != NULL || own->fd != fd))
        own = own->next;
    if (own != NULL)
        own_unlink_locked(own);
    pthread_mutex_unlock(&registry_lock);
    free(own);
}
