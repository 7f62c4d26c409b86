/* Queue and QueueGate: see module.h. */
#include "module_queue.h"

#include <string.h>

#include "futex.h"

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

static PyObject *Queue_pass_on(PyObject *self, PyObject *argument)
{
    const int for_room = PyObject_IsTrue(argument);
    const struct queue *queue = for_room < 0 ? NULL : queue_of(self);
    if (queue == NULL)
        return NULL;
    gate_pass_on(for_room ? &queue->head->room : &queue->head->items);
    Py_RETURN_NONE;
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

static PyObject *Queue_reap(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLong(queue_side_reap(side_of(self), false));
}

static PyObject *Queue_look_for_dead(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLong(queue_side_look(side_of(self)));
}

static PyObject *Queue_read_journal(PyObject *self, PyObject *unused)
{
    return journal_read(&side_of(self)->journal, &side_of(self)->lock);
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
    FIELD(Queue, has_news, PyBool_FromLong, journal_has_news(&self->side->journal))       \
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
     "Give up a windowed draft, although its bytes are still looked at; nothing if it was put, or is the parent's."},
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
    {"pass_on", Queue_pass_on, METH_O,
     "pass_on($self, for_room, /)\n--\n\n"
     "Wake another process that waits: this one was woken, and does not use what came."},
    {"close", Queue_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Let no item come behind those in the queue."},
    {"reap", Queue_reap, METH_NOARGS,
     "reap($self, /)\n--\n\n"
     "Undo what dead processes left that have slots; return how many were found."},
    {"look_for_dead", Queue_look_for_dead, METH_NOARGS,
     "look_for_dead($self, /)\n--\n\n"
     "Undo what any dead process left, unless a process did that a moment ago; return how many were found."},
    {"read_journal", Queue_read_journal, METH_NOARGS,
     "read_journal($self, /)\n--\n\n"
     "Return a list of (kind, pid, slots, nbytes, returned) of what happened since the last call, and how many "
     "more there were; see journal.h."},
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

static PyObject *QueueGate_pass_on(PyObject *self, PyObject *unused)
{
    struct queue_gate *gate = gate_of(self);
    if (gate != NULL)
        gate_pass_on(gate);
    Py_RETURN_NONE;
}

static PyMethodDef QueueGate_methods[] = {
    {"pass_on", QueueGate_pass_on, METH_NOARGS,
     "pass_on($self, /)\n--\n\n"
     "Wake another process that waits at this gate."},
    {NULL, NULL, 0, NULL},
};

#define QUEUE_GATE_FIELDS(FIELD) FIELD(QueueGate, version, events_make, self)
QUEUE_GATE_FIELDS(CORE_GETTER)

static PyGetSetDef QueueGate_getset[] = {QUEUE_GATE_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot QueueGate_slots[] = {
    {Py_tp_doc, "QueueGate(queue, for_room)\n--\n\nWhat a Watch waits for at a queue: items, or room."},
    {Py_tp_new, QueueGate_new},
    {Py_tp_dealloc, QueueGate_dealloc},
    {Py_tp_methods, QueueGate_methods},
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
        status = queue_file_format(fd, (const uint8_t *)id, &sizes);
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
           type_add(module, &QueueGate_spec, &core->queue_gate_type) && module_add_queue_put(module) &&
           module_add_queue_take(module) && PyModule_AddFunctions(module, queue_functions) == 0 &&
           constants_add(module, queue_constants);
}
