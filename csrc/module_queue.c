/* Queue, QueueDraft, QueueItem and QueuePrivate: see module.h. */
#include "module.h"

#include <string.h>
#include <sys/mman.h>

#include "channel.h"
#include "futex.h"
#include "queue_side.h"
#include "tree_plan.h"

/* Slots of at least this size are given their space without the GIL. */
enum { BEGIN_LARGE_NBYTES = 65536 };

typedef struct queue_object {
    PyObject_HEAD
    struct queue_side *side;
    dev_t device;
    ino_t inode;
    struct queue_object **link, *next; /* this process's queues; `link` is NULL outside that list */
} QueueObject;

typedef struct {
    PyObject_HEAD
    QueueObject *owner;
    struct queue_place place;
    bool done; /* its item is in the queue */
} QueueDraftObject;

typedef struct {
    PyObject_HEAD
    QueueObject *owner;
    struct queue_place place;
    uint64_t nbytes, schema_nbytes; /* as they were when they were checked */
    int64_t published_ns;
    bool finished;
    uint8_t *writable; /* a private mapping of the item, or NULL: what its QueuePrivates export */
} QueueItemObject;

typedef struct {
    PyObject_HEAD
    QueueObject *owner;
    bool for_room;
} QueueGateObject;

/* -- Queue ------------------------------------------------------------------------------------------------------- */

/* A file has one side in a process, and so one row; guarded by the GIL, as module_channel.c's readers are. */
static QueueObject *queue_find(const struct core *core, int fd, const uint8_t *id)
{
#ifndef Py_GIL_DISABLED
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return NULL;
    for (QueueObject *queue = core->queues; queue != NULL; queue = queue->next)
        if (queue->device == stat.st_dev && queue->inode == stat.st_ino && queue_side_has_file(queue->side) &&
            queue->side->queue.head != NULL &&
            (id == NULL || memcmp(queue->side->queue.head->id, id, QUEUE_ID_NBYTES) == 0))
            return queue;
#endif
    return NULL;
}

static void queue_add(struct core *core, QueueObject *queue)
{
#ifndef Py_GIL_DISABLED
    struct stat stat;
    if (fstat(queue->side->fd, &stat) != 0)
        return;
    queue->device = stat.st_dev;
    queue->inode = stat.st_ino;
    queue->link = &core->queues;
    queue->next = core->queues;
    if (core->queues != NULL)
        core->queues->link = &queue->next;
    core->queues = queue;
#endif
}

static PyObject *Queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "id", NULL};
    int fd;
    const char *id = NULL;
    Py_ssize_t id_nbytes = QUEUE_ID_NBYTES;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|z#", names, &fd, &id, &id_nbytes))
        return NULL;
    if (id != NULL && id_nbytes != QUEUE_ID_NBYTES) {
        PyErr_Format(PyExc_ValueError, "queue id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    struct core *core = PyType_GetModuleState(type);
    QueueObject *self = queue_find(core, fd, (const uint8_t *)id);
    if (self != NULL) {
        close(fd);
        return Py_NewRef((PyObject *)self);
    }
    self = PyObject_New(QueueObject, type);
    if (self == NULL) {
        close(fd);
        return NULL;
    }
    self->side = NULL;
    self->link = NULL;
    enum status status = queue_side_open(fd, (const uint8_t *)id, &self->side);
    if (status != STATUS_OK) {
        status_raise(core, status);
        Py_DECREF(self);
        return NULL;
    }
    queue_add(core, self);
    return (PyObject *)self;
}

static void Queue_dealloc(PyObject *object)
{
    QueueObject *self = (QueueObject *)object;
    if (self->link != NULL) {
        *self->link = self->next;
        if (self->next != NULL)
            self->next->link = self->link;
    }
    if (self->side != NULL)
        queue_side_close(self->side);
    object_free(object);
}

static struct queue_side *side_of(PyObject *self) { return ((QueueObject *)self)->side; }

/* The shared part; NULL with an exception set in a forked child that has none. */
static const struct queue *queue_of(PyObject *self)
{
    const struct queue *queue = &side_of(self)->queue;
    if (queue->head != NULL)
        return queue;
    errno = EBADF;
    PyErr_SetFromErrno(PyExc_OSError);
    return NULL;
}

static PyObject *Queue_begin(PyObject *self, PyObject *args)
{
    unsigned long long nbytes;
    int windowed = 0;
    if (!PyArg_ParseTuple(args, "K|p", &nbytes, &windowed))
        return NULL;
    QueueDraftObject *draft = PyObject_New(QueueDraftObject, core_of(self)->queue_draft_type);
    if (draft == NULL)
        return NULL;
    draft->owner = NULL;
    draft->done = false;
    enum status status;
    do { /* signals that keep coming are handled before the next try */
        if (nbytes >= BEGIN_LARGE_NBYTES) {
            Py_BEGIN_ALLOW_THREADS
            status = queue_side_begin(side_of(self), nbytes, windowed, &draft->place);
            Py_END_ALLOW_THREADS
        } else {
            status = queue_side_begin(side_of(self), nbytes, windowed, &draft->place);
        }
    } while (status == STATUS_INTERRUPTED && PyErr_CheckSignals() == 0);
    if (status != STATUS_OK) {
        if (status != STATUS_INTERRUPTED)
            status_raise(core_of(self), status);
        Py_DECREF(draft);
        return NULL;
    }
    draft->owner = (QueueObject *)Py_NewRef(self);
    return (PyObject *)draft;
}

/* Write the item's header; the rest is there already. */
static bool header_write(QueueDraftObject *draft, uint64_t nbytes, uint64_t schema_nbytes)
{
    if (nbytes > draft->place.nbytes || nbytes < sizeof(struct slot_header) ||
        schema_nbytes > nbytes - sizeof(struct slot_header))
        return false;
    *(struct slot_header *)draft->place.address = (struct slot_header){
        .published_ns = clock_wall_ns(),
        .nbytes = nbytes,
        .schema_nbytes = schema_nbytes,
    };
    return true;
}

/* The draft that is the first argument, if it is one of this queue that was not put yet. */
static QueueDraftObject *draft_of(PyObject *self, PyObject *args, unsigned long long *nbytes,
                                  unsigned long long *schema_nbytes)
{
    PyObject *argument;
    if (!PyArg_ParseTuple(args, "O!KK", core_of(self)->queue_draft_type, &argument, nbytes, schema_nbytes))
        return NULL;
    QueueDraftObject *draft = (QueueDraftObject *)argument;
    if (draft->owner == (QueueObject *)self && !draft->done)
        return draft;
    status_raise(core_of(self), STATUS_NOT_OWNED);
    return NULL;
}

static PyObject *Queue_put(PyObject *self, PyObject *args)
{
    unsigned long long nbytes, schema_nbytes;
    QueueDraftObject *draft = draft_of(self, args, &nbytes, &schema_nbytes);
    if (draft == NULL)
        return NULL;
    enum status status = STATUS_FORMAT;
    if (draft->place.orphaned || header_write(draft, nbytes, schema_nbytes))
        status = queue_side_put(side_of(self), &draft->place);
    if (status == STATUS_FULL)
        Py_RETURN_FALSE;
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    draft->done = true;
    Py_RETURN_TRUE;
}

static PyObject *Queue_discard(PyObject *self, PyObject *argument)
{
    QueueDraftObject *draft = (QueueDraftObject *)argument;
    if (!PyObject_TypeCheck(argument, core_of(self)->queue_draft_type) || draft->owner != (QueueObject *)self) {
        PyErr_SetString(PyExc_TypeError, "discard: expected a QueueDraft of this queue");
        return NULL;
    }
    if (draft->done)
        Py_RETURN_NONE;
    enum status status = draft->place.orphaned ? STATUS_OK : queue_side_seal(side_of(self), &draft->place);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    const struct queue_place place = {.slot = draft->place.slot, .generation = draft->place.generation};
    draft->done = true;
    queue_side_end(side_of(self), &place, QUEUE_END_FREE);
    Py_RETURN_NONE;
}

static PyObject *Queue_seal(PyObject *self, PyObject *args)
{
    unsigned long long nbytes, schema_nbytes;
    QueueDraftObject *draft = draft_of(self, args, &nbytes, &schema_nbytes);
    if (draft == NULL)
        return NULL;
    enum status status = STATUS_FORMAT;
    if (!draft->place.orphaned && header_write(draft, nbytes, schema_nbytes))
        status = queue_side_seal(side_of(self), &draft->place);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

/* Read each field once, then check it, and use the checked value from then on: another process can write the memory. */
static bool header_read(QueueItemObject *item)
{
    const struct slot_header *header = (const struct slot_header *)item->place.address;
    item->nbytes = shared_read_once(header->nbytes);
    item->schema_nbytes = shared_read_once(header->schema_nbytes);
    item->published_ns = shared_read_once(header->published_ns);
    return item->nbytes <= item->place.nbytes && item->nbytes >= sizeof *header &&
           item->schema_nbytes <= item->nbytes - sizeof *header;
}

/* The next item; NULL with a status, or with an exception for STATUS_OK. */
static QueueItemObject *item_take(PyObject *self, enum status *status)
{
    struct queue_place place;
    *status = queue_side_take(side_of(self), &place);
    if (*status != STATUS_OK)
        return NULL;
    QueueItemObject *item = PyObject_New(QueueItemObject, core_of(self)->queue_item_type);
    if (item == NULL) {
        queue_side_end(side_of(self), &place, QUEUE_END_BACK);
        return NULL;
    }
    item->owner = (QueueObject *)Py_NewRef(self);
    item->place = place;
    item->writable = NULL;
    item->finished = !header_read(item); /* a damaged item is dropped: it would come back for ever */
    if (item->finished) {
        Py_DECREF(item);
        *status = STATUS_FORMAT;
        return NULL;
    }
    return item;
}

static PyObject *Queue_take(PyObject *self, PyObject *unused)
{
    enum status status;
    QueueItemObject *item = item_take(self, &status);
    if (status == STATUS_EMPTY)
        Py_RETURN_NONE;
    return status == STATUS_OK ? (PyObject *)item : status_raise(core_of(self), status);
}

static bool item_has_schema(const QueueItemObject *item, PyObject *plan)
{
    const char *schema;
    const uint64_t nbytes = tree_plan_schema(plan, &schema);
    return nbytes == item->schema_nbytes && tree_plan_nbytes(plan) <= item->nbytes &&
           memcmp(item->place.address + sizeof(struct slot_header), schema, nbytes) == 0;
}

static PyObject *Queue_get_tree(PyObject *self, PyObject *plan)
{
    enum status status;
    if (!PyObject_TypeCheck(plan, core_of(self)->tree_plan_type)) {
        PyErr_SetString(PyExc_TypeError, "get_tree: expected a TreePlan");
        return NULL;
    }
    QueueItemObject *item = item_take(self, &status);
    if (status == STATUS_EMPTY)
        return Py_NewRef(Py_NotImplemented);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    if (item == NULL || !item_has_schema(item, plan))
        return (PyObject *)item;
    PyObject *value = tree_plan_read(plan, (PyObject *)item, item->place.address);
    if (value != NULL) {
        status = queue_side_finish(side_of(self), &item->place);
        item->finished = status == STATUS_OK;
        if (status != STATUS_OK) {
            Py_CLEAR(value);
            status_raise(core_of(self), status);
        }
    }
    Py_DECREF(item);
    return value;
}

/* Write the item of a plan, and put it. */
static enum status tree_put(struct queue_side *side, PyObject *plan, PyObject *value, struct queue_place *place,
                            bool *same)
{
    QueueDraftObject draft = {.place = *place};
    const char *schema;
    const uint64_t nbytes = tree_plan_nbytes(plan), schema_nbytes = tree_plan_schema(plan, &schema);
    *same = tree_plan_write(plan, value, place->address);
    if (!*same)
        return STATUS_FORMAT;
    if (!header_write(&draft, nbytes, schema_nbytes))
        return STATUS_FORMAT;
    memcpy(place->address + sizeof(struct slot_header), schema, schema_nbytes);
    return queue_side_put(side, place);
}

static PyObject *Queue_put_tree(PyObject *self, PyObject *args)
{
    PyObject *plan, *value;
    struct queue_place place;
    bool same = true;
    if (!PyArg_ParseTuple(args, "O!O", core_of(self)->tree_plan_type, &plan, &value))
        return NULL;
    enum status status = queue_side_begin(side_of(self), tree_plan_nbytes(plan), false, &place);
    if (status == STATUS_OK) {
        status = tree_put(side_of(self), plan, value, &place, &same);
        if (status != STATUS_OK)
            queue_side_end(side_of(self), &place, QUEUE_END_FREE);
    }
    return PyLong_FromLong(status == STATUS_OK ? 1 : same ? -1 : 0);
}

static PyObject *Queue_wait(PyObject *self, PyObject *args)
{
    int for_room;
    unsigned long long seen;
    double timeout_s;
    if (!PyArg_ParseTuple(args, "pKd", &for_room, &seen, &timeout_s))
        return NULL;
    enum status status;
    Py_BEGIN_ALLOW_THREADS
    status = queue_side_wait(side_of(self), for_room, seen, (int64_t)(timeout_s * 1e9));
    Py_END_ALLOW_THREADS
    if (status == STATUS_INTERRUPTED && PyErr_CheckSignals() != 0)
        return NULL;
    return PyBool_FromLong(status == STATUS_OK);
}

static PyObject *Queue_events(PyObject *self, PyObject *argument)
{
    const int for_room = PyObject_IsTrue(argument);
    const struct queue *queue = for_room < 0 ? NULL : queue_of(self);
    if (queue == NULL)
        return NULL;
    struct queue_gate *gate = for_room ? &queue->head->room : &queue->head->items;
    return PyLong_FromUnsignedLongLong(shared_load_acquire(&gate->events));
}

static PyObject *Queue_close(PyObject *self, PyObject *unused)
{
    const struct queue *queue = queue_of(self);
    if (queue == NULL)
        return NULL;
    enum status status = queue_close(queue);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

static PyObject *Queue_reap(PyObject *self, PyObject *argument)
{
    const int all = PyObject_IsTrue(argument);
    if (all < 0)
        return NULL;
    return PyLong_FromUnsignedLong(queue_side_reap(side_of(self), all));
}

static PyObject *Queue_look(PyObject *self, PyObject *unused)
{
    const struct queue *queue = queue_of(self);
    uint64_t waiting;
    bool closed;
    if (queue == NULL)
        return NULL;
    enum status status = queue_look(queue, &waiting, &closed);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    return Py_BuildValue("(KO)", (unsigned long long)waiting, closed ? Py_True : Py_False);
}

static PyObject *Queue_rows(PyObject *self, PyObject *unused)
{
    const struct queue *queue = queue_of(self);
    PyObject *list = queue == NULL ? NULL : PyList_New(0);
    if (list == NULL)
        return NULL;
    const uint32_t high_water = shared_load_acquire(&queue->head->high_water);
    for (uint32_t row = 1; list != NULL && row <= high_water && row <= queue->max_processes; row++) {
        const struct queue_row *line = &queue->rows[row];
        bool alive;
        enum status status = queue_side_row_alive(side_of(self), row, &alive);
        if (status != STATUS_OK) {
            status_raise(core_of(self), status);
            Py_DECREF(list);
            return NULL;
        }
        if (alive && !list_append_new(list, Py_BuildValue("(IILI)", row, shared_load_relaxed(&line->pid),
                                                          (long long)shared_load_relaxed(&line->attached_ns),
                                                          shared_load_relaxed(&line->waits))))
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *Queue_slots(PyObject *self, PyObject *unused)
{
    const struct queue *queue = queue_of(self);
    PyObject *list = queue == NULL ? NULL : PyList_New(0);
    for (uint32_t slot = 0; list != NULL && slot < queue->slot_count; slot++) {
        const uint64_t word = shared_load_acquire(&queue->slots[slot].word), pages = slot_pages(queue, slot);
        if (word_state(word) == QUEUE_FREE && pages == 0)
            continue;
        if (!list_append_new(list, Py_BuildValue("(IIIKK)", slot, (unsigned)word_state(word), word_row(word),
                                                 (unsigned long long)word_position(word),
                                                 (unsigned long long)(pages * queue->page_nbytes))))
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *fd_make(struct queue_side *side) { return PyLong_FromLong(queue_side_has_file(side) ? side->fd : -1); }

static PyObject *queue_id_make(const struct queue *queue)
{
    return PyBytes_FromStringAndSize(queue->head == NULL ? "" : (const char *)queue->head->id,
                                     queue->head == NULL ? 0 : QUEUE_ID_NBYTES);
}

#define QUEUE_FIELDS(FIELD)                                                               \
    FIELD(Queue, fd, fd_make, self->side)                                                 \
    FIELD(Queue, id, queue_id_make, &self->side->queue)                                   \
    FIELD(Queue, row, PyLong_FromUnsignedLong, self->side->row)                           \
    FIELD(Queue, capacity, PyLong_FromUnsignedLong, self->side->queue.capacity)           \
    FIELD(Queue, max_processes, PyLong_FromUnsignedLong, self->side->queue.max_processes) \
    FIELD(Queue, small_nbytes, PyLong_FromUnsignedLong, self->side->queue.small_nbytes)   \
    FIELD(Queue, limit_nbytes, PyLong_FromUnsignedLongLong,                               \
          self->side->queue.limit_pages * self->side->queue.page_nbytes)
QUEUE_FIELDS(CORE_GETTER)

static PyMethodDef Queue_methods[] = {
    {"begin", Queue_begin, METH_VARARGS,
     "begin($self, nbytes, windowed=False, /)\n--\n\n"
     "Return a QueueDraft with at least this room. A windowed one can be sealed."},
    {"put", Queue_put, METH_VARARGS,
     "put($self, draft, nbytes, schema_nbytes, /)\n--\n\n"
     "Put a draft that is otherwise complete into the queue; return whether there was room."},
    {"seal", Queue_seal, METH_VARARGS,
     "seal($self, draft, nbytes, schema_nbytes, /)\n--\n\n"
     "Let later writes through a windowed draft, which is complete and will be put, go to a private copy."},
    {"discard", Queue_discard, METH_O,
     "discard($self, draft, /)\n--\n\n"
     "Give up a windowed draft, although its bytes are still looked at; nothing if it was put."},
    {"take", Queue_take, METH_NOARGS,
     "take($self, /)\n--\n\n"
     "Take the next item; None if no item waits."},
    {"put_tree", Queue_put_tree, METH_VARARGS,
     "put_tree($self, plan, value, /)\n--\n\n"
     "Put a value of the plan's structure. Return 1; 0 if it has another structure, -1 if it cannot be put now."},
    {"get_tree", Queue_get_tree, METH_O,
     "get_tree($self, plan, /)\n--\n\n"
     "Take the next item. Return its value if it has the plan's structure, and finish it; otherwise return the "
     "QueueItem, or NotImplemented if no item waits."},
    {"wait", Queue_wait, METH_VARARGS,
     "wait($self, for_room, seen, timeout_s, /)\n--\n\n"
     "Wait for events other than those `seen`; return whether there were some."},
    {"events", Queue_events, METH_O,
     "events($self, for_room, /)\n--\n\n"
     "Return the number of events: of items that came, or of room that came."},
    {"close", Queue_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Let no item come behind those in the queue."},
    {"reap", Queue_reap, METH_O,
     "reap($self, all, /)\n--\n\n"
     "Undo what dead processes left; return how many were found."},
    {"look", Queue_look, METH_NOARGS,
     "look($self, /)\n--\n\n"
     "Return the number of items that wait, and whether the queue is closed."},
    {"rows", Queue_rows, METH_NOARGS,
     "rows($self, /)\n--\n\n"
     "Return (row, pid, attached_ns, waits) of each living process."},
    {"slots", Queue_slots, METH_NOARGS,
     "slots($self, /)\n--\n\n"
     "Return (slot, state, row, position, nbytes) of each slot that is not free or has pages."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Queue_getset[] = {QUEUE_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Queue_slots_[] = {
    {Py_tp_doc, "Queue(fd, id=None)\n--\n\n"
                "This process's side of a queue, of the one with this `id` if one is given. Owns the descriptor, also "
                "when it fails."},
    {Py_tp_new, Queue_new},
    {Py_tp_dealloc, Queue_dealloc},
    {Py_tp_methods, Queue_methods},
    {Py_tp_getset, Queue_getset},
    {0, NULL},
};
static PyType_Spec Queue_spec = {"untorn._core.Queue", sizeof(QueueObject), 0, Py_TPFLAGS_DEFAULT, Queue_slots_};

/* -- QueueDraft, QueueItem and QueuePrivate ---------------------------------------------------------------------- */

static void QueueDraft_dealloc(PyObject *self)
{
    QueueDraftObject *draft = (QueueDraftObject *)self;
    if (draft->owner != NULL) {
        queue_side_end(draft->owner->side, &draft->place, draft->done ? QUEUE_END_GONE : QUEUE_END_FREE);
        Py_DECREF(draft->owner);
    }
    object_free(self);
}

static int QueueDraft_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    QueueDraftObject *draft = (QueueDraftObject *)self;
    if (draft->done && !draft->place.orphaned) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the item is in the queue; its bytes are not this process's any more");
        return -1;
    }
    return PyBuffer_FillInfo(view, self, draft->place.address, (Py_ssize_t)draft->place.nbytes, 0, flags);
}

static PyType_Slot QueueDraft_slots[] = {
    {Py_tp_doc, "A slot of a queue that is being written. Exports its bytes, writable."},
    {Py_tp_dealloc, QueueDraft_dealloc},
    {Py_bf_getbuffer, QueueDraft_getbuffer},
    {0, NULL},
};
static PyType_Spec QueueDraft_spec = {"untorn._core.QueueDraft", sizeof(QueueDraftObject), 0,
                                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, QueueDraft_slots};

static void QueueItem_dealloc(PyObject *self)
{
    QueueItemObject *item = (QueueItemObject *)self;
    if (item->writable != NULL)
        munmap(item->writable, item->place.nbytes);
    queue_side_end(item->owner->side, &item->place, item->finished ? QUEUE_END_FREE : QUEUE_END_BACK);
    Py_DECREF(item->owner);
    object_free(self);
}

static int QueueItem_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    QueueItemObject *item = (QueueItemObject *)self;
    return PyBuffer_FillInfo(view, self, item->place.address, (Py_ssize_t)item->nbytes, 1, flags);
}

static PyObject *QueueItem_finish(PyObject *self, PyObject *unused)
{
    QueueItemObject *item = (QueueItemObject *)self;
    if (item->finished)
        Py_RETURN_NONE;
    enum status status = queue_side_finish(item->owner->side, &item->place);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    item->finished = true;
    Py_RETURN_NONE;
}

static PyObject *QueueItem_schema(PyObject *self, PyObject *unused)
{
    const QueueItemObject *item = (const QueueItemObject *)self;
    const char *text = (const char *)item->place.address + sizeof(struct slot_header);
    return PyBytes_FromStringAndSize(text, (Py_ssize_t)item->schema_nbytes);
}

typedef struct {
    PyObject_HEAD
    QueueItemObject *item; /* it has the mapping */
} QueuePrivateObject;

static PyObject *QueueItem_private(PyObject *self, PyObject *unused)
{
    QueueItemObject *item = (QueueItemObject *)self;
    enum status status = STATUS_OK;
    OBJECT_LOCK(self);
    if (item->writable == NULL)
        status = queue_side_map_private(item->owner->side, &item->place, &item->writable);
    OBJECT_UNLOCK();
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    QueuePrivateObject *made = PyObject_New(QueuePrivateObject, core_of(self)->queue_private_type);
    if (made != NULL)
        made->item = (QueueItemObject *)Py_NewRef(self);
    return (PyObject *)made;
}

static void QueuePrivate_dealloc(PyObject *self)
{
    Py_DECREF(((QueuePrivateObject *)self)->item);
    object_free(self);
}

static int QueuePrivate_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const QueueItemObject *item = ((QueuePrivateObject *)self)->item;
    return PyBuffer_FillInfo(view, self, item->writable, (Py_ssize_t)item->nbytes, 0, flags);
}

static PyType_Slot QueuePrivate_slots[] = {
    {Py_tp_doc, "One item of a queue, writable: pages that are written become its own."},
    {Py_tp_dealloc, QueuePrivate_dealloc},
    {Py_bf_getbuffer, QueuePrivate_getbuffer},
    {0, NULL},
};
static PyType_Spec QueuePrivate_spec = {"untorn._core.QueuePrivate", sizeof(QueuePrivateObject), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, QueuePrivate_slots};

static PyMethodDef QueueItem_methods[] = {
    {"finish", QueueItem_finish, METH_NOARGS,
     "finish($self, /)\n--\n\n"
     "Let nobody get this item again. Its bytes stay until the last view of them is gone."},
    {"schema", QueueItem_schema, METH_NOARGS,
     "schema($self, /)\n--\n\n"
     "Return a copy of the schema's bytes."},
    {"private", QueueItem_private, METH_NOARGS,
     "private($self, /)\n--\n\n"
     "Return the same bytes, writable; no other process sees what is written."},
    {NULL, NULL, 0, NULL},
};

#define QUEUE_ITEM_FIELDS(FIELD)                                            \
    FIELD(QueueItem, nbytes, PyLong_FromUnsignedLongLong, self->nbytes)     \
    FIELD(QueueItem, published_ns, PyLong_FromLongLong, self->published_ns) \
    FIELD(QueueItem, finished, PyBool_FromLong, self->finished)
QUEUE_ITEM_FIELDS(CORE_GETTER)

static PyGetSetDef QueueItem_getset[] = {QUEUE_ITEM_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot QueueItem_slots[] = {
    {Py_tp_doc,
     "An item that was taken from a queue. Exports its bytes, read-only. When the last view of them dies, its "
     "slot is free, or, if it was not finished, it is in the queue again."},
    {Py_tp_dealloc, QueueItem_dealloc},
    {Py_tp_methods, QueueItem_methods},
    {Py_tp_getset, QueueItem_getset},
    {Py_bf_getbuffer, QueueItem_getbuffer},
    {0, NULL},
};
static PyType_Spec QueueItem_spec = {"untorn._core.QueueItem", sizeof(QueueItemObject), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, QueueItem_slots};

/* -- QueueGate --------------------------------------------------------------------------------------------------- */

struct queue_gate *gate_of(PyObject *object)
{
    const QueueGateObject *self = (const QueueGateObject *)object;
    struct queue_head *head = self->owner->side->queue.head;
    return head == NULL ? NULL : self->for_room ? &head->room : &head->items;
}

static PyObject *QueueGate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue", "for_room", NULL};
    PyObject *owner;
    int for_room;
    struct core *core = PyType_GetModuleState(type);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!p", names, core->queue_type, &owner, &for_room))
        return NULL;
    QueueGateObject *self = PyObject_New(QueueGateObject, type);
    if (self == NULL)
        return NULL;
    self->owner = (QueueObject *)Py_NewRef(owner);
    self->for_room = for_room != 0;
    return (PyObject *)self;
}

static void QueueGate_dealloc(PyObject *self)
{
    Py_DECREF(((QueueGateObject *)self)->owner);
    object_free(self);
}

static PyObject *events_make(const QueueGateObject *self)
{
    struct queue_gate *gate = gate_of((PyObject *)self);
    return PyLong_FromUnsignedLongLong(gate == NULL ? 0 : shared_load_acquire(&gate->events));
}

#define QUEUE_GATE_FIELDS(FIELD) FIELD(QueueGate, version, events_make, self)
QUEUE_GATE_FIELDS(CORE_GETTER)

static PyGetSetDef QueueGate_getset[] = {QUEUE_GATE_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot QueueGate_slots[] = {
    {Py_tp_doc, "QueueGate(queue, for_room)\n--\n\nWhat a Watch waits for at a queue: items, or room."},
    {Py_tp_new, QueueGate_new},
    {Py_tp_dealloc, QueueGate_dealloc},
    {Py_tp_getset, QueueGate_getset},
    {0, NULL},
};
static PyType_Spec QueueGate_spec = {"untorn._core.QueueGate", sizeof(QueueGateObject), 0, Py_TPFLAGS_DEFAULT,
                                     QueueGate_slots};

/* -- the file ---------------------------------------------------------------------------------------------------- */

static PyObject *core_format_queue(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    unsigned max_processes, capacity;
    unsigned long long nbytes;
    if (!PyArg_ParseTuple(args, "iy#IIK", &fd, &id, &id_nbytes, &max_processes, &capacity, &nbytes))
        return NULL;
    if (id_nbytes != QUEUE_ID_NBYTES) {
        PyErr_Format(PyExc_ValueError, "queue id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    const struct queue_sizes sizes = {max_processes, capacity, nbytes};
    enum status status;
    do { /* signals that keep coming are handled before the next try */
        status = queue_format(fd, (const uint8_t *)id, &sizes);
    } while (status == STATUS_INTERRUPTED && PyErr_CheckSignals() == 0);
    if (status == STATUS_INTERRUPTED)
        return NULL;
    if (status != STATUS_OK)
        return status_raise(core_of_module(module), status);
    Py_RETURN_NONE;
}

static PyMethodDef queue_functions[] = {
    {"format_queue", core_format_queue, METH_VARARGS,
     "format_queue($module, fd, id, max_processes, capacity, nbytes, /)\n--\n\n"
     "Lay out an empty file for a queue."},
    {NULL, NULL, 0, NULL},
};

static const struct core_constant queue_constants[] = {
    CORE_CONSTANT(QUEUE_LAYOUT),
    CORE_CONSTANT(QUEUE_MAX_CAPACITY),
    CORE_CONSTANT(QUEUE_MAX_PROCESSES),
    CORE_CONSTANT(QUEUE_FREE),
    CORE_CONSTANT(QUEUE_WRITING),
    CORE_CONSTANT(QUEUE_OFFERED),
    CORE_CONSTANT(QUEUE_READY),
    CORE_CONSTANT(QUEUE_TAKEN),
    CORE_CONSTANT(QUEUE_HELD),
    CORE_CONSTANT(QUEUE_RETURNED),
    {NULL, 0},
};

bool module_add_queue(PyObject *module)
{
    struct core *core = core_of_module(module);
    return type_add(module, &Queue_spec, &core->queue_type) &&
           type_add(module, &QueueDraft_spec, &core->queue_draft_type) &&
           type_add(module, &QueueItem_spec, &core->queue_item_type) &&
           type_add(module, &QueuePrivate_spec, &core->queue_private_type) &&
           type_add(module, &QueueGate_spec, &core->queue_gate_type) &&
           PyModule_AddFunctions(module, queue_functions) == 0 && constants_add(module, queue_constants);
}
