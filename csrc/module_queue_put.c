/* QueueDraft, and how a Queue puts: see module.h. */
#include "module_queue.h"

#include <string.h>

#include "futex.h"
#include "slots.h"
#include "tree_plan.h"

/* Slots of at least this size are given their space without the GIL. */
enum { BEGIN_LARGE_NBYTES = 65536 };

typedef struct {
    PyObject_HEAD
    QueueObject *owner;
    struct queue_place place;
    bool done; /* its item is in the queue */
} QueueDraftObject;

PyObject *Queue_begin(PyObject *self, PyObject *args)
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

PyObject *Queue_put(PyObject *self, PyObject *args)
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

PyObject *Queue_discard(PyObject *self, PyObject *argument)
{
    QueueDraftObject *draft = (QueueDraftObject *)argument;
    if (!PyObject_TypeCheck(argument, core_of(self)->queue_draft_type) || draft->owner != (QueueObject *)self) {
        PyErr_SetString(PyExc_TypeError, "discard: expected a QueueDraft of this queue");
        return NULL;
    }
    if (draft->done || draft->place.generation != side_of(self)->generation)
        Py_RETURN_NONE;
    enum status status = draft->place.orphaned ? STATUS_OK : queue_side_seal(side_of(self), &draft->place);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    const struct queue_place place = {.slot = draft->place.slot, .generation = draft->place.generation};
    draft->done = true;
    queue_side_end(side_of(self), &place, QUEUE_END_FREE);
    Py_RETURN_NONE;
}

PyObject *Queue_seal(PyObject *self, PyObject *args)
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

PyObject *Queue_put_tree(PyObject *self, PyObject *args)
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

/* -- QueueDraft -------------------------------------------------------------------------------------------------- */

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

bool module_add_queue_put(PyObject *module)
{
    return type_add(module, &QueueDraft_spec, &core_of_module(module)->queue_draft_type);
}
